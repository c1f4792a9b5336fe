"""The options of jobs, the same for every verb that writes to a store."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypedDict

from xpatches.arguments import as_flag, as_integer, as_lengths, as_mapping, shown
from xpatches.errors import PatchError


class JobOptions(TypedDict, total=False):
    """Options of a job, by which a verb writes its result to a zarr store.

    The store is set up, then independent tasks write blocks, each reading what it needs of the
    image and writing whole chunks or shards. They run on the workers of the dask client that is
    active, or in threads of this process. A block that fails is tried again; blocks that are done
    are recorded in the store, and a job that was killed or failed goes on from there. Large
    variables that are not cut are copied by such tasks, too.

    Parameters
    ----------
    chunks, shards
        Lengths by dim of the result, -1 for a whole dim; a shard is a stored object of several
        chunks, False for none. The verb says what they are by default.
    encoding
        By variable, how values are stored, as in `xarray.Dataset.to_zarr`: ``compressors``,
        ``dtype``, ``scale_factor``, ...
    checksums
        Whether every chunk of numbers ends with its CRC-32C (zarr's codec ``crc32c``), by which
        whoever reads it notices what was damaged. True by default.
    resume
        Finish what an earlier call with the same arguments began in the store.
    overwrite
        Replace whatever zarr holds there.
    retries
        How many times a block that fails is tried again; 2 by default.
    lock
        False to keep nobody else out of the store, where it cannot: then nobody else may write
        there.
    fsync
        Whether what is written is on the disk before it counts, so that it outlasts a loss of
        power; for stores on disks.
    progress
        Whether to tell of the progress on stderr. True by default.

    Raises
    ------
    PatchError
        If an option does not fit, or is unknown; if the store holds something and neither `resume`
        nor `overwrite` is given, or another job's blocks, or is being written; if the image is not
        the one that was read so far.
    JobError
        If blocks failed; all others are written then.
    """

    chunks: Mapping[Any, int] | None
    shards: Mapping[Any, int] | bool | None
    encoding: Mapping[Any, Mapping[str, Any]] | None
    checksums: bool
    resume: bool
    overwrite: bool
    retries: int
    lock: bool
    fsync: bool
    progress: bool


def as_options(verb: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Normalise all options of a job, of which some are given to a verb.

    Raises
    ------
    PatchError
        If one is unknown, or does not fit.
    """
    _check_known(verb, given)
    return {
        name: normalise(name, given.get(name, default))
        for name, (default, normalise) in _OPTIONS.items()
    }


def all_arguments(verb: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Give all arguments of a verb that have values: some are given, others have a default.

    Raises
    ------
    PatchError
        If one is unknown, or an option of a job does not fit.
    """
    _check_known(verb, given)
    own = inspect.signature(verb).parameters
    defaults = {name: of.default for name, of in own.items() if of.default is not of.empty}
    return {**defaults, **given, **(as_options(verb, given) if "job" in own else {})}


def _check_known(verb: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse arguments that a verb, a method, does not take: its own, and for ``**job`` a job's."""
    _, *own = inspect.signature(verb).parameters
    known = [*own[:-1], *_OPTIONS] if own[-1] == "job" else own
    for name in given:
        if name not in known:
            raise PatchError(
                f"{verb.__name__} has no argument {shown(name)}, but {', '.join(known)}; name one "
                "of those"
            )


def report_of(progress: bool) -> Any:
    """Make what is told of the progress of a job."""
    from xpatches.jobs.job import Report  # zarr and dask are loaded for jobs only
    from xpatches.jobs.progress import Progress

    return Progress() if progress else Report()


def _as_shards(what: str, value: object) -> dict[Any, int] | bool | None:
    return False if value is False else as_lengths(what, value)


def _as_encoding(what: str, value: object) -> dict[Any, dict[Any, Any]] | None:
    if value is None:
        return None
    encoding = as_mapping(what, value, "from variable to a mapping")
    return {
        name: as_mapping(f"{what} of {shown(name)}", words, "from word to value")
        for name, words in encoding.items()
    }


_OPTIONS: dict[str, tuple[Any, Callable[[str, Any], Any]]] = {
    "chunks": (None, as_lengths),
    "shards": (None, _as_shards),
    "encoding": (None, _as_encoding),
    "checksums": (True, as_flag),
    "resume": (False, as_flag),
    "overwrite": (False, as_flag),
    "retries": (2, partial(as_integer, least=0)),
    "lock": (True, as_flag),
    "fsync": (False, as_flag),
    "progress": (True, as_flag),
}
"""What an option is by default, and what normalises it."""
