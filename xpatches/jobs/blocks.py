"""The blocks of a dataset: each is read, made, written and recorded by itself, anywhere.

A block reads its own region of the image, extracts patches from it, say, and writes whole stored
objects; a mark beside the dataset says that it did, with a checksum of the samples it read. Blocks
can therefore be written in any order, by any process, again, and not again.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice, product
from math import prod
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.storage import MemoryStore, StorePath

from xpatches.documents import (
    Unfit,
    either,
    integer,
    mapping_of,
    one_of,
    parse,
    record,
    refuse,
    text,
)
from xpatches.dtypes import Array
from xpatches.geometry.boxes import count_parts, count_samples, part_at, within
from xpatches.jobs.folder import Folder
from xpatches.jobs.state import MARKS
from xpatches.jobs.writer import Run

Reader: TypeAlias = Callable[[tuple[slice, ...]], Array]
"""Gives the samples of a region as NumPy, in any thread or process."""
Put: TypeAlias = Callable[[tuple[slice, ...], Array], None]
"""Writes a part of a stored array."""


class Samples:
    """Samples of a source: of a region that is held, or of any; and the checksum of all read."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self.checksum = 0
        self._region: tuple[slice, ...] = ()
        self._held: Array | None = None

    def hold(self, region: tuple[slice, ...]) -> None:
        """Read a region, of which others are parts."""
        self._region, self._held = region, self._fetch(region)

    def of(self, region: tuple[slice, ...]) -> Array:
        """Give the samples of a region."""
        if self._held is None:
            return self._fetch(region)
        return self._held[within(region, self._region)]

    def _fetch(self, region: tuple[slice, ...]) -> Array:
        samples = self._read(region)
        self.checksum = _checksum(samples, self.checksum)
        return samples


@dataclass(frozen=True)
class StoredArray:
    """An array as it is stored."""

    name: str
    dims: tuple[Hashable, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    """Lengths of its chunks."""
    shards: tuple[int, ...] | None
    """Lengths of its shards, where it has some."""
    encoding: Mapping[str, Any]
    """How xarray encodes it."""

    @property
    def objects(self) -> tuple[int, ...]:
        """Lengths of what is written at once: shards, or chunks."""
        return self.shards or self.chunks

    @property
    def nbytes(self) -> int:
        """Bytes of all that is in it."""
        return self.dtype.itemsize * prod(self.shape)


@dataclass(frozen=True)
class BlockArray(ABC):
    """A stored array that is made block by block from regions of a source."""

    stored: StoredArray
    lengths: tuple[int, ...]
    """Of a block, along every dim: whole stored objects."""
    read: Reader
    """Reads the source."""
    itemsize: int
    """Bytes of a sample of the source."""

    def __len__(self) -> int:
        return count_parts(self.stored.shape, self.lengths)

    def place(self, number: int) -> tuple[slice, ...]:
        """Find a block in the array."""
        return part_at(number, self.stored.shape, self.lengths)

    @abstractmethod
    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """List the regions of the source that are read for a block, in order."""

    @abstractmethod
    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Make a block from samples, and put it where it belongs, whole objects at a time."""

    def describe(self, number: int) -> str:
        """Say what a block holds, and which samples it is made from, if they are others."""
        along = zip(self.stored.dims, self.place(number), strict=True)
        place = ", ".join(f"{dim}={part.start}:{part.stop}" for dim, part in along)
        return f"{self.stored.name!r}, {place}"


_CACHED = 1 << 18
"""Bytes that stay in cache between being copied and being added to a checksum."""


def _checksum(samples: Array, before: int) -> int:
    """Add samples, in C order, to a CRC-32C, part by part: it takes contiguous bytes only."""
    if samples.nbytes <= _CACHED or not samples.ndim:
        return int(google_crc32c.extend(before, samples.tobytes()))
    if len(samples) == 1:
        return _checksum(samples[0], before)
    rows = max(1, _CACHED * len(samples) // samples.nbytes)
    for first in range(0, len(samples), rows):
        before = _checksum(samples[first : first + rows], before)
    return before


@dataclass(frozen=True)
class Job:
    """The blocks of a dataset, which can be written by any process that has this."""

    folder: Folder
    arrays: tuple[BlockArray, ...]
    run: Run | None = None
    """Who writes them, once somebody does."""

    def __len__(self) -> int:
        return sum(map(len, self.arrays))

    @property
    def nbytes(self) -> int:
        """Bytes of all that is written."""
        return sum(array.stored.nbytes for array in self.arrays)

    def locate(self, number: int) -> tuple[BlockArray, int]:
        """Find a block by its number: its array, and its number there."""
        for array in self.arrays:
            if number < len(array):
                return array, number
            number -= len(array)
        raise IndexError(number)

    def write(self, number: int) -> int:
        """Make, write and record a block; the bytes of it."""
        assert self.run is not None
        run, (array, index) = self.run, self.locate(number)
        stored, samples, objects = array.stored, Samples(array.read), dict[str, int]()

        def put(place: tuple[slice, ...], values: Array) -> None:
            variable = xr.Variable(stored.dims, values, encoding=dict(stored.encoding))
            encoded = xr.conventions.encode_cf_variable(variable, name=stored.name)
            buffers = dict[str, Any]()
            self._array(stored.name, MemoryStore(buffers))[place] = encoded.to_numpy()
            contents = {name: memoryview(b.as_buffer_like()) for name, b in buffers.items()}
            run.publish(contents)
            objects.update({name: view.nbytes for name, view in contents.items()})
            buffers.clear()  # and not when zarr's array is collected

        run.check()  # before the user's function takes an hour
        array.write(index, samples, put)
        mark = {"run": run.id, "checksum": samples.checksum, "objects": objects}
        run.publish({f"{MARKS}/{self.mark(number)}": json.dumps(mark).encode()})
        return stored.dtype.itemsize * count_samples(array.place(index))

    def mark(self, number: int) -> str:
        """Name a block by its variable, so that nothing depends on the order of variables."""
        array, index = self.locate(number)
        return f"{array.stored.name}/{index}"

    def numbers(self, marks: Iterable[str]) -> list[int]:
        """Find blocks by their names, in order."""
        return numbers_of(marks, {array.stored.name: len(array) for array in self.arrays})

    def checksum(self, number: int) -> int:
        """Give the checksum of the samples under a block."""
        array, index = self.locate(number)
        samples = Samples(array.read)
        for region in array.reads(index):
            samples.of(region)
        return samples.checksum

    def source_bytes(self, number: int) -> int:
        """Count the bytes that are read for a block."""
        array, index = self.locate(number)
        return array.itemsize * sum(map(count_samples, array.reads(index)))

    def describe(self, number: int) -> str:
        """Say what a block holds, and which samples it is made from."""
        array, index = self.locate(number)
        return array.describe(index)

    def _array(self, name: str, store: Store) -> Any:
        """Give a stored array as if it lay in another store."""
        # Patches that are all fill value are written, too: -0.0 and NaN's bits are kept, and zarr
        # need not compare every chunk with the fill value, in its one thread for all.
        with_config: Any = zarr.AsyncArray
        path, config = StorePath(store, name), {"write_empty_chunks": True}
        return zarr.Array(with_config(self._metadata[name], path, config))

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        """What zarr says of every stored array."""
        metadata = dict[str, Any]()
        for name in (array.stored.name for array in self.arrays):
            if self.folder.get(f"{name}/zarr.json") is None:
                raise FileNotFoundError(
                    f"{name}/zarr.json of store {self.folder} is not there: it was removed, "
                    "or workers do not share the store; give a path or a URL that all reach"
                )
            path = self.folder.key(name)
            opened: Any = zarr.open_array(self.folder.store, path=path, mode="r", zarr_format=3)
            metadata[name] = opened.metadata
        return metadata

    def sound(self, runs: Collection[str]) -> dict[int, int | None]:
        """Find the blocks that some runs have written, and whose objects are there as they were.

        Returns
        -------
        dict
            By number, the checksum of the samples under the block, where it is known.
        """
        numbers = iter(self.numbers(self.folder.names(f"{MARKS}/")))
        checksums = dict[int, int | None]()
        while some := {f"{MARKS}/{self.mark(n)}": n for n in islice(numbers, _READ_AT_ONCE)}:
            contents = self.folder.contents(some)
            marks = {number: mark_in(contents[name]) for name, number in some.items()}
            ours = {n: mark for n, mark in marks.items() if mark is not None and mark.run in runs}
            sizes = self.folder.sizes(name for mark in ours.values() for name in mark.objects)
            for number, mark in ours.items():
                if all(sizes[name] == size for name, size in mark.objects.items()):
                    checksums[number] = mark.checksum
        return checksums

    def present(self) -> list[int]:
        """List the blocks all of whose objects are there, whoever wrote them."""
        blocks, first = list[int](), 0
        for array in self.arrays:
            stored = array.stored
            names = set(self.folder.names(f"{stored.name}/"))
            key_of = self._metadata[stored.name].encode_chunk_key
            for number in range(len(array)):
                index = (
                    range(part.start // length, -(-part.stop // length))
                    for part, length in zip(array.place(number), stored.objects, strict=True)
                )
                if all(key_of(i) in names for i in product(*index)):
                    blocks.append(first + number)
            first += len(array)
        return blocks


_READ_AT_ONCE = 4096
"""Marks of blocks that are in memory at a time."""


@dataclass(frozen=True)
class Mark:
    """What is noted of a block that is written."""

    run: str
    checksum: int | None
    """Of the samples that it was made from; None where that is not known."""
    objects: Mapping[str, int]
    """Names and bytes of what it wrote."""


def mark_in(content: bytes | None) -> Mark | None:
    """Read the mark of a block; None where there is none, or where it is damaged."""
    try:
        return Mark(**_mark("", parse(content)))
    except Unfit:
        return None


def _key(place: str, value: Any) -> str:
    """Check the name of an object, which lies in the folder."""
    name = text(place, value)
    if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        refuse(place, "the name of an object", name)
    return name


_mark = record(
    {
        "run": text,
        "checksum": either(one_of(None), integer),
        "objects": mapping_of(_key, integer),
    }
)


def numbers_of(marks: Iterable[str], counts: Mapping[str, int]) -> list[int]:
    """Find blocks by their names, in order; what is the name of none is left out.

    Parameters
    ----------
    marks
        The names.
    counts
        How many blocks every variable has.

    Examples
    --------
    >>> numbers_of(["b/0", "a/2", "a/9", "a/zarr.json"], {"a": 3, "b": 2})
    [2, 3]
    """
    firsts = dict(zip(counts, accumulate(counts.values(), initial=0), strict=False))
    numbers = []
    for mark in marks:
        name, _, number = mark.rpartition("/")
        known = number.isascii() and number.isdecimal() and len(number) < 20
        if known and f"{int(number)}" == number and int(number) < counts.get(name, 0):
            numbers.append(firsts[name] + int(number))
    return sorted(numbers)
