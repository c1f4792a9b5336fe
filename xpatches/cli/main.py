"""The command ``xpatches``: write patch datasets, map models, and look at what there is."""

import importlib
import inspect
import json
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial, wraps
from typing import Any

import click
import xarray as xr
import zarr
from zarr.errors import UnstableSpecificationWarning

from xpatches.cli.opening import open_image
from xpatches.datasets import verification
from xpatches.datasets.open import dataset_state, open_patches, undamaged
from xpatches.display import plots as pictures
from xpatches.display.text import readable
from xpatches.errors import JobError, PatchError
from xpatches.geometry.grid import AxisGrid
from xpatches.images.spec import SPEC_ATTR, read_spec
from xpatches.jobs.folder import Folder
from xpatches.jobs.lock import writer_of
from xpatches.jobs.open import open_folder
from xpatches.jobs.state import StoredDataset
from xpatches.mapping.output import as_scale
from xpatches.redaction import redacted, told
from xpatches.stitching.choose import REDUCES
from xpatches.stitching.tapers import TAPERS

DONE, FAILED, USAGE, STOPPED = 0, 1, 2, 130
"""Exit codes."""
_TYPED = {
    "resume and overwrite": "--resume and --overwrite",
    "resume=True": "--resume",
    "overwrite=True": "--overwrite",
    "reduce must": "--reduce must",
    "skipna=True": "--skipna",
    "skipna=False": "--no-skipna",
    "fill_value": "--fill-value",
    "max_bytes": "--max-bytes",
}
"""What arguments of the library, which its errors name, are on the command line."""
_CHOSEN = r"(padding|layout|label|taper|reduce)='(\w+)'"
"""Those whose values are words: ``--padding same``."""


class _PerDim(click.ParamType):  # type: ignore[type-arg]
    """``y=256,x=128``, or one value for all dims."""

    name = "dims"

    def __init__(self, of: Callable[[str], Any] = int, single: bool = True) -> None:
        self._of, self._single = of, single

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Parse what was typed."""
        if not isinstance(value, str):
            return value
        if "=" not in value and self._single:
            return self._parsed(value, value, param, ctx)
        made = {}
        for part in value.split(","):
            dim, equals, given = part.partition("=")
            if not (equals and dim.strip()):
                self.fail(f"{value!r} is not of the form y=256,x=256", param, ctx)
            made[dim.strip()] = self._parsed(given.strip(), value, param, ctx)
        return made

    def _parsed(self, text: str, whole: str, param: Any, ctx: Any) -> Any:
        try:
            return self._of(text)
        except ValueError:
            self.fail(f"{text!r} in {whole!r} is no number of that kind", param, ctx)


def _padding(text: str) -> Any:
    """Parse "valid", "same" or BEFORE:AFTER."""
    before, colon, after = text.partition(":")
    return (int(before), int(after)) if colon else text


def _number(text: str) -> int | float:
    """Parse a number; integers as they are, for floats do not hold all of them."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _label(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text  # xarray understands dates


def _typed(text: str) -> str:
    """Say in an error what is typed, but leave paths and names alone."""
    words = {re.escape(python): typed for python, typed in _TYPED.items()}
    for python, typed in {**words, _CHOSEN: r"--\1 \2"}.items():
        text = re.sub(rf"(?<![\w/.'\"-]){python}(?![\w/.'\"-])", typed, text)
    return text


@contextmanager
def _reported(debug: bool) -> Iterator[None]:
    """Turn errors into one line and an exit code."""

    def stop(*_: Any) -> None:  # as batch systems ask to
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    warnings.simplefilter("ignore", UnstableSpecificationWarning)  # of strings among the coords
    warnings.filterwarnings("ignore", "Object at .* is not recognized as a component of a Zarr")
    try:
        yield
    except KeyboardInterrupt as stopped:
        click.echo(f"xpatches: {_typed(str(stopped)) or 'interrupted'}", err=True)
        raise SystemExit(STOPPED) from None
    except (click.ClickException, SystemExit):
        raise
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, PatchError | JobError | OSError)
        text = str(error) if known else f"{type(error).__name__}: {error} (--debug shows where)"
        text = text if isinstance(error, JobError) else " ".join(text.split())
        click.echo(f"xpatches: {_printable(redacted(_typed(text)))}", err=True)
        wrong = isinstance(error, PatchError | FileNotFoundError)
        raise SystemExit(USAGE if wrong else FAILED) from None


def _command(example: str, **kwargs: Any) -> Callable[..., Any]:
    """Make a command with ``--debug`` and ``--json``, whose help ends with an example."""

    def decorate(function: Callable[..., Any]) -> Any:
        @wraps(function)
        def run(debug: bool, **given: Any) -> None:
            with _reported(debug):
                function(**given)

        made = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(run)
        made = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(made)
        return main.command(epilog=f"Example: {example}", **kwargs)(made)

    return decorate


class _Masking(click.Group):
    """Tells nothing of credentials that were typed, whatever is wrong with them."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise click.UsageError(redacted(error.format_message()), error.ctx) from error


@click.group(cls=_Masking, epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped.")
@click.version_option(package_name="xpatches")
def main() -> None:
    """Patches of images too large for memory: cut them, or map a model over them, zarr to zarr."""


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command several options, in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_SOURCE = _options(
    click.option("--group", help="Group or array in SOURCE: labels/nuclei/0."),
    click.option("--dims", type=_names, help="Dims of a zarr array that does not name them: y,x."),
    click.option(
        "--decode/--no-decode",
        default=None,
        help="Whether scale, offset and nodata of SOURCE are applied, which makes floats of "
        "integers. By default they are, but not those of GeoTIFF.",
    ),
)
"""What of a source is the image."""
_CUT = _options(
    _SOURCE,
    click.option("--var", "names", multiple=True, help="Variable to cut; all by default."),
    click.option(
        "--size", type=_PerDim(single=False), required=True, help="Samples per patch: y=256,x=256."
    ),
    click.option(
        "--stride", type=_PerDim(), help="One for all dims or y=128,x=64; the size if absent."
    ),
    click.option(
        "--rate", type=_PerDim(), default=1, help="Distance between samples; 1 if absent."
    ),
    click.option(
        "--padding",
        type=_PerDim(_padding),
        default="valid",
        help="valid, same or BEFORE:AFTER, for all dims or y=same,x=8:8.",
    ),
    click.option(
        "--pad-value",
        type=_number,
        help="Value of samples beyond the image; its nodata if absent, or 0.",
    ),
)
"""How an image is cut."""
_JOB = _options(
    click.option("--chunks", type=_PerDim(single=False), help="Lengths of chunks by dim."),
    click.option("--shards", type=_PerDim(single=False), help="Lengths of shards by dim."),
    click.option(
        "--scheduler", metavar="ADDRESS", help="Run on this dask cluster: tcp://host:8786"
    ),
    click.option(
        "--workers", type=click.IntRange(1), help="Run on so many processes of this machine."
    ),
    click.option(
        "--checksums/--no-checksums",
        default=True,
        show_default=True,
        help="Whether chunks are stored with checksums.",
    ),
    click.option("--resume", is_flag=True, help="Finish an incomplete dataset."),
    click.option("--overwrite", is_flag=True, help="Replace what is in OUT."),
    click.option(
        "--retries",
        type=click.IntRange(0),
        default=2,
        show_default=True,
        help="How often a block that fails is tried again.",
    ),
    click.option(
        "--lock/--no-lock",
        default=True,
        show_default=True,
        help="Whether other jobs are kept out of OUT while this one writes.",
    ),
    click.option("--fsync", is_flag=True, help="Wait until files are on the disk."),
    click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
    click.option("--quiet", is_flag=True, help="Tell nothing but errors."),
)
"""How it is written."""


@_command(
    "xpatches extract image.zarr patches.zarr --var image --size y=256,x=256 --stride 128 "
    "--padding same --workers 4"
)
@click.argument("source")
@click.argument("out")
@_CUT
@click.option(
    "--layout",
    type=click.Choice(["grid", "samples"]),
    default="grid",
    show_default=True,
    help="Patches along the image's dims, or along one dim, sample.",
)
@click.option(
    "--label",
    type=click.Choice(["center", "origin"]),
    default="center",
    show_default=True,
    help="What of a patch gives it its labels.",
)
@_JOB
def extract(
    source: str,
    out: str,
    layout: str,
    label: str,
    chunks: Any,
    shards: Any,
    scheduler: str | None,
    workers: int | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Write all patches of the image SOURCE to the zarr store OUT.

    SOURCE is a zarr store or any file that xarray opens. OUT is a path or a URL; a job that was
    stopped or failed is finished with --resume.
    """
    _check_places(source, out, scheduler, workers)
    p = _cut(source, given)
    left = _left(out, given["resume"], given["overwrite"])
    if dry_run:
        _tell({"layout": layout, "missing": left, **p.plan_zarr(layout, chunks, shards)}, as_json)
        return
    with _client(scheduler, workers, quiet):
        given |= {"layout": layout, "label": label, "chunks": chunks, "shards": shards}
        p.to_zarr(out, progress=not quiet, **given)
    if as_json:
        _tell(_about(open_folder(out, read_only=True), out), as_json)


@_command(
    "xpatches map image.zarr mask.zarr --func mymodels.water:segment --size y=256,x=256 "
    "--stride 128 --padding same --output-dims y,x --output-dtype float32 --workers 4",
    name="map",
)
@click.argument("source")
@click.argument("out")
@click.option(
    "--func",
    required=True,
    metavar="MODULE:NAME",
    help="Function of a batch of patches, importable, if need be from here.",
)
@click.option("--factory", is_flag=True, help="It gives the function, once on every worker.")
@click.option("--labelled", is_flag=True, help="It takes a DataArray: patches with their labels.")
@_CUT
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option(
    "--taper",
    type=click.Choice([*TAPERS]),
    help="Weights of a patch's samples, for the mean; hann if absent.",
)
@click.option(
    "--reduce",
    type=click.Choice(REDUCES),
    help="The mean if absent, of floats; others that overlap need this or --taper.",
)
@click.option(
    "--skipna/--no-skipna",
    default=None,
    help="Whether NaN counts for nothing where patches overlap; of floats if absent.",
)
@click.option(
    "--output-dims", type=_names, help="Dims that it returns behind the batch: class,y,x."
)
@click.option(
    "--output-sizes", type=_PerDim(single=False), help="Lengths of those that differ: class=3."
)
@click.option("--output-dtype", help="The image's if absent.")
@click.option(
    "--scale",
    type=_PerDim(partial(as_scale, "--scale")),
    help="Samples returned per sample, 2 or 1/4, for all dims or y=2,x=2.",
)
@click.option("--fill-value", type=_number, help="Value of samples that no patch holds.")
@click.option("--max-bytes", help="Budget of a block, 32MiB: less makes more and smaller blocks.")
@click.option(
    "--materialize", metavar="STORE", help="Run every patch once, and keep what is returned here."
)
@_JOB
def map_(
    source: str,
    out: str,
    func: str,
    output_dims: tuple[str, ...] | None,
    output_sizes: Any,
    output_dtype: str | None,
    scale: Any,
    scheduler: str | None,
    workers: int | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run a model on all patches of the image SOURCE, and write the image it makes to OUT.

    Everything else is as for extract. See Patches.map for what the function is given.
    """
    _check_places(source, out, scheduler, workers)
    if materialize := given["materialize"]:
        _check_zarr_name("--materialize", materialize)
    function = _import(func, given["factory"])
    p = _cut(source, given)
    given = {name: value for name, value in given.items() if value is not None}
    output = {
        "dims": output_dims,
        "sizes": output_sizes,
        "dtype": output_dtype,
        "scale": scale,
    }
    output = {name: value for name, value in output.items() if value is not None}
    left = _left(out, given["resume"], given["overwrite"])
    if dry_run and materialize:
        raise click.UsageError("--dry-run plans maps without --materialize; leave out one of them")
    if dry_run:
        planned = ("batch_size", "reduce", "max_bytes", "chunks", "shards")
        how = {name: given[name] for name in planned if name in given}
        _tell({"missing": left, **p.plan_map(output, **how)}, as_json)
        return
    with _client(scheduler, workers, quiet):
        p.map(function, output=output, store=out, progress=not quiet, **given)
    if as_json:
        _tell(_about(open_folder(out, read_only=True), out), as_json)


def _check_places(source: str, out: str, scheduler: str | None, workers: int | None) -> None:
    if scheduler and workers:
        raise click.UsageError("--scheduler and --workers exclude each other; give one of them")
    if _same_place(source, out):
        raise click.UsageError("OUT must not be SOURCE")
    _check_zarr_name("OUT", out)


def _check_zarr_name(what: str, place: str) -> None:
    """Refuse to write zarr under the name of another format, where there is no zarr yet."""
    path = re.split("[?#]", place)[0] if "://" in place else place
    name = path.rstrip("/").rpartition("/")[2]
    suffix = os.path.splitext(name)[1].lower()
    if suffix in ("", ".zarr", ".zip"):  # zip is refused with the reason
        return
    if "://" in place or os.path.isdir(place):
        folder = open_folder(place, read_only=True)
        if folder.get("zarr.json") is not None or folder.get(".zgroup") is not None:
            return
    raise click.UsageError(
        f"{what} is written as zarr and must end with .zarr or have no suffix, got "
        f"{redacted(place)!r}; write {name.removesuffix(suffix)}.zarr, and convert it"
    )


def _cut(source: str, given: dict[str, Any]) -> Any:
    """Open an image and cut it, as those of the options say that are for this; they are removed."""
    opened = {name: given.pop(name) for name in ("group", "dims", "decode")}
    image = _choose(open_image(source, **opened), given.pop("names"))
    how = {name: given.pop(name) for name in ("stride", "rate", "padding")}
    size, pad_value = given.pop("size"), given.pop("pad_value")
    try:
        return image.patches(size, fill_value=pad_value, **how)
    except PatchError as error:
        raise PatchError(re.sub(r"^fill_value\b", "--pad-value", str(error))) from error


def _left(out: str, resume: bool, overwrite: bool) -> int | None:
    """Refuse a store that may not be written, before workers are started; count missing blocks."""
    open_folder(out)
    if "://" in out or os.path.exists(os.path.expanduser(out)):
        folder = open_folder(out, read_only=True)
        state = StoredDataset(folder).check_state(resume, overwrite)
        if resume and state in ("writing", "complete"):
            missing: int = dataset_state(folder)["missing"]
            return missing
    return None


def _import(func: str, factory: bool) -> Any:
    """Import a function, ``package.module:name``; the folder where this runs is searched last."""
    module, colon, name = func.partition(":")
    if not (colon and module and name) or module.startswith("."):
        raise click.UsageError(f"--func must be MODULE:NAME, got {func!r}")
    sys.path.append(os.getcwd())  # workers are given the path
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise click.UsageError(f"--func: {error}; the path is searched, then here") from error
    except (Exception, SystemExit) as error:  # whatever a module raises
        raise PatchError(
            f"--func: {module!r} cannot be imported: {told(error)} (--debug shows where)"
        ) from error
    at = getattr(found, "__file__", None) or "built in"
    for part in name.split("."):
        if not hasattr(found, part):
            raise click.UsageError(f"--func: {module!r} has no {name!r} ({at})")
        found = getattr(found, part)
    if not callable(found):
        raise click.UsageError(f"--func must name a function, got {found!r}")
    try:
        takes = inspect.signature(found, follow_wrapped=False)
    except ValueError:  # it does not say
        return found
    try:
        takes.bind(*() if factory else (None,))
    except TypeError as error:
        wanted = "no argument" if factory else "one argument, a batch of patches,"
        raise click.UsageError(
            f"--func {func} must take {wanted} {'with' if factory else 'without'} --factory, got "
            f"{takes}"
        ) from error
    return found


@_command("xpatches info patches.zarr")
@click.argument("store")
@_SOURCE
def info(store: str, as_json: bool, **source: Any) -> None:
    """Say what STORE holds: an image, or a patch dataset and whether it is complete."""
    _tell(_about(open_folder(store, read_only=True), store, source), as_json)


@_command("xpatches verify patches.zarr --repair")
@click.argument("store")
@click.option("--repair", is_flag=True, help="Remove what is damaged, for --resume to write again.")
@click.option("--quiet", is_flag=True, help="Tell nothing but what is damaged.")
def verify(store: str, repair: bool, quiet: bool, as_json: bool) -> None:
    """Read everything of the patch dataset STORE, and say what is damaged.

    Exits with 1 if anything is. After --repair the dataset is incomplete: the command that wrote
    it, with --resume, writes those blocks again.
    """
    facts = verification.verify(store, repair=repair, progress=not quiet)
    damaged = facts["damaged"]
    if as_json:
        _tell({"store": redacted(store), **facts}, as_json)
    else:
        _tell({"store": redacted(store), **facts, "damaged": len(damaged)}, as_json)
        for name, problem in damaged.items():
            click.echo(_printable(f"{name}: {problem}"))
    raise SystemExit(FAILED if damaged else DONE)


@_command("xpatches show patches.zarr --sel y=48.2,x=16.4 -o patch.png")
@click.argument("store")
@click.option("--var", "name", help="Variable to draw, where there are several.")
@click.option(
    "--sel",
    type=_PerDim(_label, single=False),
    help="By label: y=48.2,x=16.4 the patch whose center is nearest, other dims as well.",
)
@click.option(
    "--isel",
    type=_PerDim(single=False),
    help="By index: y=3,x=4 or sample=17, other dims as well (0 if absent).",
)
@click.option("-o", "--output", required=True, help="The picture: a .png, .jpg, .svg or .pdf.")
def show(store: str, name: str | None, sel: Any, isel: Any, output: str, as_json: bool) -> None:
    """Draw one patch of the patch dataset STORE, or the image that map wrote to STORE."""
    job = dataset_state(open_folder(store, read_only=True))["job"]
    if job["layout"] == "runs":
        raise click.UsageError(
            f"{redacted(store)} holds what a model made of single patches; name the image that was "
            "made of it"
        )
    opened = open_patches(store, chunks=None)
    if isinstance(opened, xr.Dataset):
        if name not in job["blocks"]:
            raise click.UsageError(f"--var must name one of {(*job['blocks'],)}, got {name}")
        opened = opened[name]
    elif name not in (None, opened.name):
        raise click.UsageError(f"--var {name} is not {opened.name!r}, which the store holds")
    path = output if os.path.splitext(output)[1] else f"{output}.png"
    told: dict[str, Any] = {"picture": path}
    try:
        if job["layout"] == "image":
            stored = name or next(iter(job["blocks"]))
            spec = read_spec({SPEC_ATTR: job["map"][stored]["patches"]})
            dims = [*map(str, spec.grid.dims)]
            with zarr.config.set({"async.concurrency": 1}):  # shards that are decoded at once
                image, told["steps"], told["chosen"] = pictures.choose_image(
                    opened, dims, sel or {}, isel or {}
                )
            pictures.draw_image(image, told["steps"], told["chosen"], path)
        else:
            patch, chosen = pictures.choose(opened, sel or {}, isel or {})
            told |= {"origin": pictures.draw(patch, chosen, path), "chosen": chosen}
    except ImportError:
        raise click.UsageError('show needs matplotlib: pip install "xpatches[show]"') from None
    _tell(told, as_json)


def _choose(opened: xr.DataArray | xr.Dataset, names: tuple[str, ...]) -> Any:
    """Give the variables that are named: one as an array, several as a Dataset."""
    if isinstance(opened, xr.DataArray):
        return opened
    for name in names:
        if name not in opened.data_vars:
            raise click.UsageError(f"--var {name} is not among {tuple(opened.data_vars)}")
    chosen = names or tuple(map(str, opened.data_vars))
    return opened[chosen[0]] if len(chosen) == 1 else opened[list(chosen)]


@contextmanager
def _client(scheduler: str | None, workers: int | None, quiet: bool) -> Iterator[None]:
    """Make a dask client active where one is asked for."""
    if scheduler is None and workers is None:
        yield
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise click.UsageError(
            '--scheduler and --workers need distributed: pip install "xpatches[distributed]"'
        ) from None
    if scheduler is not None:
        with Client(scheduler):  # type: ignore[no-untyped-call]
            yield
        return
    if not quiet:
        click.echo(f"xpatches: starting workers, {workers}", err=True)
    # A terminal interrupts all processes; workers are stopped by this one, when it has to stop.
    plain = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        cluster = LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,  # what fails in a block, the job tells
        )
    finally:
        signal.signal(signal.SIGINT, plain)
    with cluster, Client(cluster):  # type: ignore[no-untyped-call]
        yield


def _same_place(source: str, out: str) -> bool:
    source, out = source.removeprefix("file://"), out.removeprefix("file://")
    if "://" in source or "://" in out:
        return source.rstrip("/") == out.rstrip("/")
    return os.path.realpath(source) == os.path.realpath(out)


def _about(folder: Folder, given: str, source: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe what lies in a store; of what the options say, where it is an image."""
    dataset = StoredDataset(folder)
    if any(value is not None for value in (source or {}).values()) or not dataset.exists():
        if dataset.state() == "begun":  # and killed before anything could be said of it
            return {"store": redacted(given), "holds": "patches", "state": "incomplete"}
        image = open_image(given, **(source or {}))
        return {
            "store": redacted(given),
            "holds": "image",
            "variables": {
                str(name): {
                    "dtype": str(variable.dtype),
                    "dims": {str(dim): n for dim, n in variable.sizes.items()},
                    "chunks": variable.encoding.get("chunks"),
                    "shards": variable.encoding.get("shards"),
                }
                for name, variable in image.data_vars.items()
            },
        }
    state = dataset_state(folder)
    job = state.pop("job")
    arrays = {}
    for name in job["blocks"]:
        with undamaged(folder):
            stored: Any = zarr.open_array(folder.store, path=folder.key(name), mode="r")
        axes = read_spec(stored.attrs).grid.axes if SPEC_ATTR in stored.attrs else ()
        arrays[name] = {
            "dtype": str(stored.dtype),
            "dims": dict(zip(stored.metadata.dimension_names, stored.shape, strict=True)),
            "chunks": stored.chunks,
            "shards": stored.shards,
            "patches": {axis.dim: _numbers(axis) for axis in axes},
            "bytes": stored.nbytes,
        }
    return {
        "store": redacted(given),
        "holds": {"image": "an image that was mapped", "runs": "what a model made of patches"}.get(
            job["layout"], "patches"
        ),
        **state,
        "writer": writer_of(folder),
        "layout": job["layout"],
        "variables": arrays,
    }


def _numbers(axis: AxisGrid) -> dict[str, Any]:
    """Give the numbers of an axis, but for its name."""
    return {key: value for key, value in asdict(axis).items() if key != "dim"}


def _tell(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print facts, as JSON or as indented lines."""

    def lines(facts: Mapping[str, Any], indent: str) -> Iterator[str]:
        for key, value in facts.items():
            if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
                yield f"{indent}{key}:"
                yield from lines(value, indent + "  ")
            elif isinstance(value, Mapping):
                if value:
                    pairs = (f"{k} {_short(k, v)}" for k, v in value.items())
                    yield f"{indent}{key}: {', '.join(pairs)}"
            elif value is not None:
                yield f"{indent}{key}: {_short(key, value)}"

    click.echo(json.dumps(facts) if as_json else "\n".join(map(_printable, lines(facts, ""))))


def _printable(text: str) -> str:
    """Escape what would steer a terminal: names may come from a store."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _short(key: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return (":" if key == "padding" else " x ").join(map(str, value))
    if "bytes" in key:
        return readable(value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)
