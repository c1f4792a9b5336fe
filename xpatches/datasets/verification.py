"""Read everything of a dataset that a job wrote, and say what is damaged."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import prod
from typing import Any

import zarr

from xpatches.arguments import as_flag
from xpatches.datasets.open import dataset_state
from xpatches.geometry.grid import walk
from xpatches.jobs.folder import JOB, Folder
from xpatches.jobs.job import Report
from xpatches.jobs.lock import writing
from xpatches.jobs.nodes import ChunkKeys, chunk_keys
from xpatches.jobs.open import open_folder
from xpatches.jobs.progress import Progress
from xpatches.jobs.setup import say_incomplete, say_ready
from xpatches.jobs.state import Ready
from xpatches.redaction import told
from xpatches.threads import available_cores

_AT_ONCE = 256
"""Objects that are queued at a time."""
_LISTED = 1000
"""Objects that are missing, of an array, which are listed by name."""


def verify(store: Any, *, repair: bool = False, progress: bool = True) -> dict[str, Any]:
    """Read everything of a dataset that a job wrote, and say what is damaged.

    An object is damaged if it cannot be decoded, which with checksums tells of every changed bit,
    or if it is missing although a block writes it. Arrays stored with ``checksums=False`` may hold
    other values without being noticed.

    Parameters
    ----------
    store
        Where the dataset lies, as for `open_patches`.
    repair
        Remove what is damaged, and let the dataset be incomplete: the job that made it, called
        again with ``resume=True``, writes those blocks and nothing else.
    progress
        Whether to tell of the progress on stderr.

    Returns
    -------
    dict
        ``state``: ``"complete"`` or ``"incomplete"``; ``objects``: how many were read;
        ``missing``: how many are not there; ``damaged``: what is wrong, by name of the object, for
        at most 1000 of those that are missing.

    Raises
    ------
    PatchError
        If there is no dataset; if one is to be repaired to which someone writes.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from zarr.storage import MemoryStore
    >>> store, image = MemoryStore(), xr.DataArray(np.arange(16.0).reshape(4, 4), dims=("y", "x"))
    >>> made = image.patches(y=2, x=2).to_zarr(store, progress=False)
    >>> verify(store, progress=False)
    {'state': 'complete', 'objects': 5, 'missing': 0, 'damaged': {}}
    """
    repair, report = (
        as_flag("repair", repair),
        Progress if as_flag("progress", progress) else Report,
    )
    folder, tell = open_folder(store, read_only=not repair), report().wait
    with ExitStack() as stack:
        if repair:
            folder.check_links()
            run, _ = stack.enter_context(writing(folder, tell))
        state = dataset_state(folder)
        complete = state["state"] == "complete"
        damaged, objects, missing = dict[str, str](), 0, 0
        for array in _arrays(folder, state["job"]["blocks"]):
            if array.problem is not None:
                damaged[array.name] = array.problem
                continue
            tell(f"reading {len(array.stored)} objects of {array.path!r}")
            objects += len(array.stored)
            damaged |= array.damaged()
            if complete and array.is_made:
                missing += array.count - len(array.stored)
                damaged |= dict.fromkeys(islice(array.missing(), _LISTED), "it is missing")
        if repair and damaged:
            if complete:
                say_incomplete(run)
            run.remove_all(damaged)
            if complete:  # only now: a resumed job takes the blocks that are there for sound
                say_ready(run, Ready((), repair=True))
                complete = False
    return {
        "state": "complete" if complete else "incomplete",
        "objects": objects,
        "missing": missing,
        "damaged": damaged,
    }


@dataclass(frozen=True)
class _Array:
    """An array in a folder, and its objects."""

    folder: Folder
    path: str
    is_made: bool
    """Whether blocks make it, which write all of its objects."""
    metadata: bytes | None

    @property
    def name(self) -> str:
        """Name of what describes it."""
        return f"{self.path}/zarr.json"

    @cached_property
    def problem(self) -> str | None:
        """What is wrong with its metadata."""
        if self.metadata is None:
            return "it is missing"
        try:
            return None if self._keys and self._stored is not None else "it is a group"
        except Exception as error:  # whatever zarr raises for what it cannot read
            return _text(error)

    @cached_property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """Index of the chunk or shard in every object, by name."""
        indexes = {
            f"{self.path}/{key}": self._keys.index_of(key)
            for key in self.folder.names(f"{self.path}/")
        }
        return {name: index for name, index in indexes.items() if index is not None}

    @property
    def count(self) -> int:
        """Number of all objects."""
        return prod(self._keys.counts)

    def damaged(self) -> dict[str, str]:
        """Read all objects: what is wrong, by name."""
        found, left = dict[str, str](), iter(self.stored)
        with ThreadPoolExecutor(available_cores()) as pool:
            while some := [*islice(left, _AT_ONCE)]:
                problems = zip(some, pool.map(self._read, some), strict=True)
                found |= {name: problem for name, problem in problems if problem is not None}
        return found

    def missing(self) -> Iterator[str]:
        """Name objects that are not there."""
        if self.count > len(self.stored):
            known = set(self.stored.values())
            for index in walk([*map(range, self._keys.counts)]):
                if index not in known:
                    yield f"{self.path}/{self._stored.metadata.encode_chunk_key(index)}"

    def _read(self, name: str) -> str | None:
        array = self._stored
        lengths = array.shards or array.chunks
        ends = zip(self.stored[name], lengths, array.shape, strict=True)
        place = tuple(slice(i * length, min((i + 1) * length, n)) for i, length, n in ends)
        try:
            self.folder.again(lambda: array[place])
        except Exception as error:  # whatever its codecs raise
            return _text(error)
        return None

    @cached_property
    def _keys(self) -> ChunkKeys:
        keys = chunk_keys(self.metadata or b"")
        if keys is None:
            raise ValueError("it is a group")
        return keys

    @cached_property
    def _stored(self) -> Any:
        return zarr.open_array(
            self.folder.store, path=self.folder.key(self.path), mode="r", zarr_format=3
        )


def _arrays(folder: Folder, made: Collection[str]) -> Iterator[_Array]:
    """Find the arrays in a folder, and those that should be there."""
    documents = [name for name in folder.names() if name.endswith("/zarr.json")]
    found = {name.removesuffix("/zarr.json") for name in documents} - {JOB}
    for path in sorted(found.union(made)):
        yield _Array(folder, path, path in made, folder.get(f"{path}/zarr.json"))


def _text(error: Exception) -> str:
    return told(error)[:200]
