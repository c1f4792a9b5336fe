"""Options of the command line, how they are parsed, and how errors are told."""

import re
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click
from zarr.errors import UnstableSpecificationWarning

from xpatches.cli.describe import printable
from xpatches.credentials import redacted
from xpatches.errors import JobError, PatchError

DONE, FAILED, USAGE, STOPPED = 0, 1, 2, 130
"""Exit codes."""


class Group(click.Group):
    """Commands, each with ``--debug`` and ``--json``, and a help that ends with an example."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; tell nothing of credentials that were typed, whatever is wrong there."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise click.UsageError(redacted(error.format_message()), error.ctx) from error

    def add(self, example: str, name: str | None = None) -> Callable[..., Any]:
        """Make a command."""

        def decorate(function: Callable[..., Any]) -> Any:
            @wraps(function)
            def run(debug: bool, **options: Any) -> None:
                with _reported(debug):
                    function(**options)

            debug = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
            as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
            return self.command(name, epilog=f"Example: {example}")(as_json(debug(run)))

        return decorate


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
        click.echo(f"xpatches: {printable(redacted(_typed(text)))}", err=True)
        wrong = isinstance(error, PatchError | FileNotFoundError)
        raise SystemExit(USAGE if wrong else FAILED) from None


def _typed(text: str) -> str:
    """Say in an error what is typed for the arguments of the library that it names.

    Those are ``name='word'``, ``name=True``, ``name ...`` at the beginning, and others if they are
    of several words, for which nothing else can be meant. Paths and names are left alone.
    """
    group: Any = click.get_current_context().find_root().command
    parameters = [parameter for command in group.commands.values() for parameter in command.params]
    for option in parameters:
        if not isinstance(option, click.Option):
            continue
        name, typed = option.name or "", max(option.opts, key=len)
        plain = name if "_" in name else rf"^{name}(?= (?:must|names|on) )"
        off = option.secondary_opts[0] if option.secondary_opts else typed
        for pattern, words in (
            (rf"{name}='(\w+)'", rf"{typed} \1"),
            (f"{name}=True", typed),
            (f"{name}=False", off),
            (plain, typed),
        ):
            text = re.sub(rf"(?<![\w/.'\"-]){pattern}(?![\w/.'\"-])", words, text)
    return text


class PerDim(click.ParamType):  # type: ignore[type-arg]
    """``y=256,x=128``, or one value for all dims."""

    name = "dims"

    def __init__(self, parse: Callable[[str], Any] = int, single: bool = True) -> None:
        self._parse, self._single = parse, single

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Parse what was typed."""
        if not isinstance(value, str):
            return value
        if "=" not in value and self._single:
            return self._parsed(value, value, param, ctx)
        values = {}
        for part in value.split(","):
            dim, equals, text = part.partition("=")
            if not (equals and dim.strip()):
                self.fail(f"{value!r} is not of the form y=256,x=256", param, ctx)
            values[dim.strip()] = self._parsed(text.strip(), value, param, ctx)
        return values

    def _parsed(self, text: str, whole: str, param: Any, ctx: Any) -> Any:
        try:
            return self._parse(text)
        except ValueError:
            self.fail(f"{text!r} in {whole!r} is no number of that kind", param, ctx)


def _padding(text: str) -> Any:
    """Parse "valid", "same" or BEFORE:AFTER."""
    before, colon, after = text.partition(":")
    return (int(before), int(after)) if colon else text


def number(text: str) -> int | float:
    """Parse a number; integers as they are, for floats do not hold all of them."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def names(text: str) -> tuple[str, ...]:
    """Parse names with commas between them."""
    return tuple(name.strip() for name in text.split(","))


def label(text: str) -> Any:
    """Parse a label: a number, or what xarray makes of a text."""
    try:
        return float(text)
    except ValueError:
        return text  # xarray understands dates


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command several options, in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


SOURCE = _options(
    click.option("--group", help="Group or array in SOURCE: labels/nuclei/0."),
    click.option("--dims", type=names, help="Dims of a zarr array that does not name them: y,x."),
    click.option(
        "--decode/--no-decode",
        default=None,
        help="Whether scale, offset and nodata of SOURCE are applied, which makes floats of "
        "integers. By default they are, but not those of GeoTIFF.",
    ),
)
"""What of a source is the image."""
CUT = _options(
    click.argument("source"),
    click.argument("out"),
    SOURCE,
    click.option("--var", "names", multiple=True, help="Variable to cut; all by default."),
    click.option(
        "--size", type=PerDim(single=False), required=True, help="Samples per patch: y=256,x=256."
    ),
    click.option(
        "--stride", type=PerDim(), help="One for all dims or y=128,x=64; the size if absent."
    ),
    click.option("--rate", type=PerDim(), default=1, help="Distance between samples; 1 if absent."),
    click.option(
        "--padding",
        type=PerDim(_padding),
        default="valid",
        help="valid, same or BEFORE:AFTER, for all dims or y=same,x=8:8.",
    ),
    click.option(
        "--pad-value",
        type=number,
        help="Value of samples beyond the image; its nodata if absent, or 0.",
    ),
)
"""How an image is cut."""
JOB = _options(
    click.option("--chunks", type=PerDim(single=False), help="Lengths of chunks by dim."),
    click.option("--shards", type=PerDim(single=False), help="Lengths of shards by dim."),
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
LABEL = click.option(
    "--label",
    type=click.Choice(["center", "origin"]),
    default="center",
    show_default=True,
    help="What of a patch gives it its labels.",
)
MAX_BYTES = click.option(
    "--max-bytes", help="Budget of a block, 32MiB: less makes more and smaller blocks."
)
