"""Read everything of a dataset that a job wrote, and say what is damaged."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import prod
from typing import Any

import zarr

from xpatches.arguments import as_flag
from xpatches.credentials import told
from xpatches.datasets.open import dataset_state
from xpatches.geometry.grid import walk
from xpatches.jobs.chunk_keys import ChunkKeys, chunk_keys
from xpatches.jobs.folder import JOB, Folder
from xpatches.jobs.job import Report
from xpatches.jobs.lock import writing
from xpatches.jobs.open import open_folder
from xpatches.jobs.progress import Progress
from xpatches.jobs.setup import say_incomplete, say_ready
from xpatches.jobs.state import Ready
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
    repair = as_flag("repair", repair)
    tell = (Progress if as_flag("progress", progress) else Report)().wait
    folder = open_folder(store, read_only=not repair)
    with ExitStack() as stack:
        if repair:
            folder.check_links()
            run, _ = stack.enter_context(writing(folder, tell))
        state = dataset_state(folder)
        complete, blocks = state["state"] == "complete", state["job"]["blocks"]
        damaged, objects, missing = dict[str, str](), 0, 0
        for path in _paths(folder, blocks):
            metadata = folder.get(f"{path}/zarr.json")
            try:
                array = None if metadata is None else _Array.opened(folder, path, metadata)
            except Exception as error:  # whatever zarr raises for what it cannot read
                damaged[f"{path}/zarr.json"] = _text(error)
                continue
            if array is None:
                damaged[f"{path}/zarr.json"] = "it is missing"
                continue
            tell(f"reading {len(array.indexes)} objects of {path!r}")
            objects += len(array.indexes)
            damaged |= array.damaged()
            if complete and path in blocks:  # which write all of its objects
                missing += prod(array.keys.counts) - len(array.indexes)
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


def _paths(folder: Folder, blocks: Iterable[str]) -> list[str]:
    """Find the arrays in a folder, and those that should be there."""
    documents = (name for name in folder.names() if name.endswith("/zarr.json"))
    return sorted(({name.removesuffix("/zarr.json") for name in documents} - {JOB}).union(blocks))


@dataclass(frozen=True)
class _Array:
    """An array in a folder, and its objects."""

    folder: Folder
    path: str
    keys: ChunkKeys
    stored: Any
    """As zarr opens it."""

    @classmethod
    def opened(cls, folder: Folder, path: str, metadata: bytes) -> "_Array":
        """Open an array."""
        keys = chunk_keys(metadata)
        if keys is None:
            raise ValueError("it is a group")
        stored = zarr.open_array(folder.store, path=folder.key(path), mode="r", zarr_format=3)
        return cls(folder, path, keys, stored)

    @cached_property
    def indexes(self) -> dict[str, tuple[int, ...]]:
        """Index of the chunk or shard in every object, by name."""
        return {
            f"{self.path}/{key}": index
            for key in self.folder.names(f"{self.path}/")
            if (index := self.keys.index_of(key)) is not None
        }

    def damaged(self) -> dict[str, str]:
        """Read all objects: what is wrong, by name."""
        damaged, left = dict[str, str](), iter(self.indexes)
        with ThreadPoolExecutor(available_cores()) as pool:
            while some := [*islice(left, _AT_ONCE)]:
                problems = zip(some, pool.map(self._read, some), strict=True)
                damaged |= {name: problem for name, problem in problems if problem is not None}
        return damaged

    def missing(self) -> Iterator[str]:
        """Name objects that are not there."""
        if prod(self.keys.counts) > len(self.indexes):
            known = set(self.indexes.values())
            for index in walk([*map(range, self.keys.counts)]):
                if index not in known:
                    yield f"{self.path}/{self.stored.metadata.encode_chunk_key(index)}"

    def _read(self, name: str) -> str | None:
        lengths = self.stored.shards or self.stored.chunks
        ends = zip(self.indexes[name], lengths, self.stored.shape, strict=True)
        place = tuple(slice(i * length, min((i + 1) * length, n)) for i, length, n in ends)
        try:
            self.folder.again(lambda: self.stored[place])
        except Exception as error:  # whatever its codecs raise
            return _text(error)
        return None


def _text(error: Exception) -> str:
    return told(error)[:200]
