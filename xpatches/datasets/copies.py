"""Variables that are not cut, copied by the blocks of a job as they are."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.arguments import as_integer, as_tuple
from xpatches.datasets.encoding import coding_of, encoding_of
from xpatches.datasets.layout import CHUNK, SHARD
from xpatches.geometry.search import grow
from xpatches.images.samples import region_reader, stored_chunks
from xpatches.jobs.blocks import Put, Reader, Samples


@dataclass(frozen=True)
class CopyPart:
    """A variable as it is, stored object by stored object."""

    name: str
    read: Reader
    dims: tuple[Hashable, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    encoding: Mapping[str, Any]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of a block."""
        return self.shards or self.chunks

    @property
    def itemsize(self) -> int:
        """Bytes of a sample."""
        return self.dtype.itemsize

    def __len__(self) -> int:
        return prod(self._counts)

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """Find the region that is read for a block: the block itself."""
        return [self.place(number)]

    def place(self, number: int) -> tuple[slice, ...]:
        """Find a block."""
        index = map(int, np.unravel_index(number, self._counts))
        starts = [i * length for i, length in zip(index, self.lengths, strict=True)]
        ends = zip(starts, self.lengths, self.shape, strict=True)
        return tuple(slice(start, min(start + length, n)) for start, length, n in ends)

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Copy a block."""
        place = self.place(number)
        put(place, samples.of(place))

    def describe(self, number: int) -> str:
        """Say which samples a block holds."""
        place = self.place(number)
        along = zip(self.dims, place, strict=True)
        return f"{self.name!r}, " + ", ".join(f"{dim}={of.start}:{of.stop}" for dim, of in along)

    @property
    def _counts(self) -> tuple[int, ...]:
        """Number of blocks along every dim."""
        return tuple(-(-n // length) for n, length in zip(self.shape, self.lengths, strict=True))


def copy_of(name: str, variable: xr.Variable, given: Mapping[str, Any], max_bytes: int) -> CopyPart:
    """Plan to copy a variable that is not in memory.

    Its blocks are whole chunks of the storage, so that each of these is read once.

    Parameters
    ----------
    name
        Of the stored array.
    variable
        The samples.
    given
        How they are encoded, as the user says.
    max_bytes
        Budget of a task, of which a block takes a quarter at most, unless a chunk takes more.
    """
    shape, itemsize = variable.shape, variable.dtype.itemsize

    def grown(units: Sequence[int], most: int) -> tuple[int, ...]:
        """Double lengths, the shortest first, as long as they fit; multiples of these units."""
        whole = [-(-n // unit) * unit for n, unit in zip(shape, units, strict=True)]
        return tuple(
            grow(
                units,
                lambda lengths: sorted(range(len(shape)), key=lengths.__getitem__),
                lambda number, length: min(2 * length, whole[number]),
                lambda lengths: itemsize * prod(lengths) <= most,
            )
        )

    given = dict(given)
    chunks, shards = given.pop("chunks", None), given.pop("shards", None)
    if chunks is None and shards is None:
        chunks = grown(stored_chunks(variable), min(CHUNK, max_bytes // 4))
        shards = grown(chunks, min(SHARD, max_bytes // 4))
    else:
        chunks = _lengths(f"chunks in the encoding of {name!r}", chunks, len(shape))
        if shards is not None:
            shards = _lengths(f"shards in the encoding of {name!r}", shards, len(shape))
    encoding = {**coding_of(variable), **encoding_of(repr(name), variable.dtype, given)}
    return CopyPart(
        name, region_reader(variable), variable.dims, shape, variable.dtype, chunks,
        None if shards == chunks else shards, encoding,
    )  # fmt: skip


def _lengths(argument: str, lengths: Any, ndim: int) -> tuple[int, ...]:
    given = as_tuple(argument, lengths, f"{ndim} lengths, one for each dim", ndim)
    return tuple(as_integer(argument, length, 1) for length in given)
