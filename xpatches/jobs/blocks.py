"""The blocks of a dataset: each is read, made, written and recorded by itself, anywhere.

A block reads its own region of the image, extracts patches from it, say, and writes whole stored
objects; a mark beside the dataset says that it did, with a checksum of the samples it read. Blocks
can therefore be written in any order, by any process, again, and not again.
"""

import json
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice, product
from math import prod
from typing import Any, Protocol, TypeAlias

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
        self._starts: list[int] = []
        self._held: Array | None = None

    def hold(self, region: tuple[slice, ...]) -> None:
        """Read a region, of which others are parts."""
        self._starts = [along.start for along in region]
        self._held = self._fetch(region)

    def of(self, region: tuple[slice, ...]) -> Array:
        """Give the samples of a region."""
        if self._held is None:
            return self._fetch(region)
        pairs = zip(region, self._starts, strict=True)
        return self._held[
            tuple(slice(along.start - start, along.stop - start) for along, start in pairs)
        ]

    def _fetch(self, region: tuple[slice, ...]) -> Array:
        samples = self._read(region)
        self.checksum = _checksum(samples, self.checksum)
        return samples


class Part(Protocol):
    """A stored array that is made block by block from regions of a source."""

    @property
    def name(self) -> str:
        """Of the stored array."""

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Its dims."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of what is made."""

    @property
    def chunks(self) -> tuple[int, ...]:
        """Lengths of its chunks."""

    @property
    def shards(self) -> tuple[int, ...] | None:
        """Lengths of its shards, where it has some."""

    @property
    def encoding(self) -> Mapping[str, Any]:
        """How xarray encodes it."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of a block, along every dim."""

    def __len__(self) -> int:
        """Count the blocks."""

    def place(self, number: int) -> tuple[slice, ...]:
        """Find a block in the array: whole stored objects."""

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """List the regions of the source that are read for a block, in order."""

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Make a block from samples, and put it where it belongs, whole objects at a time."""

    @property
    def read(self) -> Reader:
        """What reads the source."""

    @property
    def itemsize(self) -> int:
        """Bytes of a sample of the source."""

    def describe(self, number: int) -> str:
        """Say what a block holds, and which samples it is made from."""


_PART = 1 << 18
"""Bytes that stay in cache between being copied and being added to a checksum."""


def _checksum(samples: Array, before: int) -> int:
    """Add samples, in C order, to a CRC-32C, part by part: it takes contiguous bytes only."""
    if samples.nbytes <= _PART or not samples.ndim:
        return int(google_crc32c.extend(before, samples.tobytes()))
    if len(samples) == 1:
        return _checksum(samples[0], before)
    rows = max(1, _PART * len(samples) // samples.nbytes)
    for first in range(0, len(samples), rows):
        before = _checksum(samples[first : first + rows], before)
    return before


@dataclass(frozen=True)
class Job:
    """The blocks of a dataset, which can be written by any process that has this."""

    folder: Folder
    parts: tuple[Part, ...]
    run: Run | None = None
    """Who writes them, once somebody does."""

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def nbytes(self) -> int:
        """Bytes of all that is written."""
        return sum(part.dtype.itemsize * prod(part.shape) for part in self.parts)

    def locate(self, number: int) -> tuple[Part, int]:
        """Find a block by its number: its part, and its number there."""
        for part in self.parts:
            if number < len(part):
                return part, number
            number -= len(part)
        raise IndexError(number)

    def write(self, number: int) -> int:
        """Make, write and record a block; the bytes of it."""
        assert self.run is not None
        run, (part, of) = self.run, self.locate(number)
        samples, nbytes, objects = Samples(part.read), 0, dict[str, int]()

        def put(place: tuple[slice, ...], values: Array) -> None:
            nonlocal nbytes
            nbytes += values.nbytes
            variable = xr.Variable(part.dims, values, encoding=dict(part.encoding))
            encoded = xr.conventions.encode_cf_variable(variable, name=part.name)
            made = Folder(MemoryStore())
            self._array(part.name, made.store)[place] = encoded.to_numpy()
            contents = made.views(made.names())
            run.publish(contents)
            objects.update({name: view.nbytes for name, view in contents.items()})
            made.remove_all(contents)  # and not when zarr's array is collected

        run.check()  # before the user's function takes an hour
        part.write(of, samples, put)
        mark = {"run": run.id, "checksum": samples.checksum, "objects": objects}
        run.publish({f"{MARKS}/{self.mark(number)}": json.dumps(mark).encode()})
        return nbytes

    def mark(self, number: int) -> str:
        """Name a block by its variable, so that nothing depends on the order of variables."""
        part, of = self.locate(number)
        return f"{part.name}/{of}"

    def numbers(self, marks: Iterable[str]) -> list[int]:
        """Find blocks by their names, in order."""
        return numbers_of(marks, {part.name: len(part) for part in self.parts})

    def checksum(self, number: int) -> int:
        """Give the checksum of the samples under a block."""
        part, of = self.locate(number)
        samples = Samples(part.read)
        for region in part.reads(of):
            samples.of(region)
        return samples.checksum

    def source_bytes(self, number: int) -> int:
        """Count the bytes that are read for a block."""
        part, of = self.locate(number)
        samples: int = sum(prod(o.stop - o.start for o in region) for region in part.reads(of))
        return part.itemsize * samples

    def describe(self, number: int) -> str:
        """Say what a block holds, and which samples it is made from."""
        part, of = self.locate(number)
        return part.describe(of)

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
        found = dict[str, Any]()
        for part in self.parts:
            path = self.folder.key(part.name)
            if self.folder.get(f"{part.name}/zarr.json") is None:
                raise FileNotFoundError(
                    f"{part.name}/zarr.json of store {self.folder} is not there: it was removed, "
                    "or workers do not share the store; give a path or a URL that all reach"
                )
            array: Any = zarr.open_array(self.folder.store, path=path, mode="r", zarr_format=3)
            found[part.name] = array.metadata
        return found

    def sound(self, runs: Collection[str]) -> dict[int, int | None]:
        """Find the blocks that some runs have written, and whose objects are there as they were.

        Returns
        -------
        dict
            By number, the checksum of the samples under the block, where it is known.
        """
        names = iter(self.numbers(self.folder.names(f"{MARKS}/")))
        found = dict[int, int | None]()
        while some := {f"{MARKS}/{self.mark(n)}": n for n in islice(names, _READ_AT_ONCE)}:
            contents = self.folder.contents(some)
            marks = {number: mark_in(contents[name]) for name, number in some.items()}
            ours = {n: mark for n, mark in marks.items() if mark is not None and mark.run in runs}
            sizes = self.folder.sizes(name for mark in ours.values() for name in mark.objects)
            for number, mark in ours.items():
                if all(sizes[name] == size for name, size in mark.objects.items()):
                    found[number] = mark.checksum
        return found

    def present(self) -> list[int]:
        """List the blocks all of whose objects are there, whoever wrote them."""
        found = []
        for first, part in zip(
            accumulate(map(len, self.parts), initial=0), self.parts, strict=False
        ):
            names = set(self.folder.names(f"{part.name}/"))
            lengths, key_of = part.shards or part.chunks, self._metadata[part.name].encode_chunk_key
            for number in range(len(part)):
                index = (
                    range(of.start // length, -(-of.stop // length))
                    for of, length in zip(part.place(number), lengths, strict=True)
                )
                if all(key_of(i) in names for i in product(*index)):
                    found.append(first + number)
        return found


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
        found = _mark("", parse(content))
    except Unfit:
        return None
    return Mark(found["run"], found["checksum"], found["objects"])


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
