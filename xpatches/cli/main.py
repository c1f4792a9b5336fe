"""The command ``xpatches``: write patch datasets, map models, and look at what there is."""

import importlib
import inspect
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click
import xarray as xr
import zarr

from xpatches.cli.describe import about, printable, tell
from xpatches.cli.opening import open_image
from xpatches.cli.options import (
    CUT,
    DONE,
    FAILED,
    JOB,
    LABEL,
    MAX_BYTES,
    SOURCE,
    Group,
    PerDim,
    label,
    names,
    number,
)
from xpatches.credentials import redacted, told
from xpatches.datasets import verification
from xpatches.datasets.open import dataset_state, open_patches
from xpatches.display import plots as pictures
from xpatches.errors import PatchError
from xpatches.images.spec import SPEC_ATTR, read_spec
from xpatches.jobs.open import open_folder
from xpatches.jobs.state import StoredDataset
from xpatches.mapping.output import as_scale
from xpatches.reduction.kernel import SEPARABLE
from xpatches.stitching.choose import REDUCES
from xpatches.stitching.tapers import TAPERS


@click.group(cls=Group, epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped.")
@click.version_option(package_name="xpatches")
def main() -> None:
    """Patches of images too large for memory: cut, reduce or map them, zarr to zarr."""


@main.add(
    "xpatches extract image.zarr patches.zarr --var image --size y=256,x=256 --stride 128 "
    "--padding same --workers 4"
)
@CUT
@click.option(
    "--layout",
    type=click.Choice(["grid", "samples"]),
    default="grid",
    show_default=True,
    help="Patches along the image's dims, or along one dim, sample.",
)
@LABEL
@JOB
def extract(**options: Any) -> None:
    """Write all patches of the image SOURCE to the zarr store OUT.

    SOURCE is a zarr store or any file that xarray opens. OUT is a path or a URL; a job that was
    stopped or failed is finished with --resume.
    """
    _write("to_zarr", options, layout=options["layout"])


@main.add(
    "xpatches reduce image.zarr means.zarr --how mean --size y=256,x=256 --stride 128 --workers 4",
    name="reduce",
)
@CUT
@click.option(
    "--how",
    type=click.Choice([*SEPARABLE, "median"]),
    required=True,
    help="What becomes of the samples of a patch.",
)
@click.option(
    "--skipna/--no-skipna", default=None, help="Whether NaN is no sample; of floats if absent."
)
@click.option("--min-count", type=click.IntRange(0), help="Patches with fewer samples become NaN.")
@click.option(
    "--ignore-padding/--no-ignore-padding",
    default=None,
    help="Whether padding is no sample; it is none if absent where it is nodata.",
)
@LABEL
@MAX_BYTES
@JOB
def reduce_(**options: Any) -> None:
    """Reduce every patch of the image SOURCE to one sample, and write them to OUT.

    Everything else is as for extract.
    """
    _write("reduce_to_zarr", options)


@main.add(
    "xpatches map image.zarr mask.zarr --func mymodels.water:segment --size y=256,x=256 "
    "--stride 128 --padding same --output-dims y,x --output-dtype float32 --workers 4",
    name="map",
)
@click.option(
    "--func",
    required=True,
    metavar="MODULE:NAME",
    help="Function of a batch of patches, importable, if need be from here.",
)
@click.option("--factory", is_flag=True, help="It gives the function, once on every worker.")
@click.option("--labelled", is_flag=True, help="It takes a DataArray: patches with their labels.")
@CUT
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
@click.option("--output-dims", type=names, help="Dims that it returns behind the batch: class,y,x.")
@click.option(
    "--output-sizes", type=PerDim(single=False), help="Lengths of those that differ: class=3."
)
@click.option("--output-dtype", help="The image's if absent.")
@click.option(
    "--scale",
    type=PerDim(partial(as_scale, "--scale")),
    help="Samples returned per sample, 2 or 1/4, for all dims or y=2,x=2.",
)
@click.option("--fill-value", type=number, help="Value of samples that no patch holds.")
@MAX_BYTES
@click.option(
    "--materialize", metavar="STORE", help="Run every patch once, and keep what is returned here."
)
@JOB
def map_(**options: Any) -> None:
    """Run a model on all patches of the image SOURCE, and write the image it makes to OUT.

    Everything else is as for extract. See Patches.map for what the function is given.
    """
    _check_places(options)  # before a module is imported
    if options["materialize"]:
        _check_zarr_name("--materialize", options["materialize"])
        if options["dry_run"]:
            raise click.UsageError(
                "--dry-run plans maps without --materialize; leave out one of them"
            )
    words = ("output_dims", "output_sizes", "output_dtype", "scale")
    output = {word.removeprefix("output_"): options.pop(word) for word in words}
    function = _import(options.pop("func"), options["factory"])
    _write("map_to_zarr", {"func": function, "output": output, **options})


def _write(verb: str, options: dict[str, Any], **facts: Any) -> None:
    """Write what a verb makes of an image, or say what it would do.

    Parameters
    ----------
    verb
        Method of `Patches`.
    options
        Of the command: how the image is cut, and the verb's and the job's own.
    **facts
        What a dry run says besides the plan.
    """
    _check_places(options)
    source, out, as_json, quiet = _taken(options, "source", "out", "as_json", "quiet")
    scheduler, workers, dry_run = _taken(options, "scheduler", "workers", "dry_run")
    p = _cut(source, options)
    missing = _missing(out, options["resume"], options["overwrite"])
    if dry_run:
        tell({**facts, "missing": missing, **p.plan(verb, **options)}, as_json)
        return
    with _client(scheduler, workers, quiet):
        getattr(p, verb)(out, progress=not quiet, **options)
    if as_json:
        tell(about(open_folder(out, read_only=True), out), as_json)


def _taken(options: dict[str, Any], *names: str) -> list[Any]:
    """Take options out of others."""
    return [options.pop(name) for name in names]


def _check_places(options: dict[str, Any]) -> None:
    for first, second in (("scheduler", "workers"), ("resume", "overwrite")):
        if options[first] and options[second]:
            raise click.UsageError(f"--{first} and --{second} exclude each other; give one of them")
    if _same_place(options["source"], options["out"]):
        raise click.UsageError("OUT must not be SOURCE")
    _check_zarr_name("OUT", options["out"])


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


def _cut(source: str, options: dict[str, Any]) -> Any:
    """Open an image and cut it, as those of the options say that are for this; they are removed."""
    image = open_image(source, *_taken(options, "group", "dims", "decode"))
    names, fill_value = _taken(options, "names", "pad_value")
    cut = {name: options.pop(name) for name in ("size", "stride", "rate", "padding")}
    try:
        return _choose(image, names).patches(fill_value=fill_value, **cut)
    except PatchError as error:
        raise PatchError(re.sub(r"^fill_value\b", "--pad-value", str(error))) from error


def _missing(out: str, resume: bool, overwrite: bool) -> int | None:
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


@main.add("xpatches info patches.zarr")
@click.argument("store")
@SOURCE
def info(store: str, as_json: bool, **source: Any) -> None:
    """Say what STORE holds: an image, or a patch dataset and whether it is complete."""
    tell(about(open_folder(store, read_only=True), store, source), as_json)


@main.add("xpatches verify patches.zarr --repair")
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
        tell({"store": redacted(store), **facts}, as_json)
    else:
        tell({"store": redacted(store), **facts, "damaged": len(damaged)}, as_json)
        for name, problem in damaged.items():
            click.echo(printable(f"{name}: {problem}"))
    raise SystemExit(FAILED if damaged else DONE)


@main.add("xpatches show patches.zarr --sel y=48.2,x=16.4 -o patch.png")
@click.argument("store")
@click.option("--var", "name", help="Variable to draw, where there are several.")
@click.option(
    "--sel",
    type=PerDim(label, single=False),
    help="By label: y=48.2,x=16.4 the patch whose center is nearest, other dims as well.",
)
@click.option(
    "--isel",
    type=PerDim(single=False),
    help="By index: y=3,x=4 or sample=17, other dims as well (0 if absent).",
)
@click.option("-o", "--output", required=True, help="The picture: a .png, .jpg, .svg or .pdf.")
def show(store: str, name: str | None, sel: Any, isel: Any, output: str, as_json: bool) -> None:
    """Draw one patch of the patch dataset STORE, or the image that map or reduce wrote there."""
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
        if (made := job.get("map") or job.get("reduce")) is not None:
            stored = name or next(iter(job["blocks"]))
            spec = read_spec({SPEC_ATTR: made[stored]["patches"]})
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
    tell(told, as_json)


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
