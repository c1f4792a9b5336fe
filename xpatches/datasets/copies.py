"""Variables that are not cut, copied by the blocks of a job as they are."""

from collections.abc import Mapping
from math import prod
from typing import Any

import xarray as xr

from xpatches.arguments import as_integer, as_tuple
from xpatches.datasets.chunks import CHUNK, SHARD, double_lengths, whole_units
from xpatches.datasets.encoding import coding_of, encoding_of
from xpatches.images.samples import region_reader, stored_chunks
from xpatches.jobs.blocks import BlockArray, Put, Samples, StoredArray


class ArrayCopy(BlockArray):
    """A variable as it is, stored object by stored object."""

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """Find the region that is read for a block: the block itself."""
        return [self.place(number)]

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Copy a block."""
        place = self.place(number)
        put(place, samples.of(place))


def copy_of(
    name: str, variable: xr.Variable, encoding: Mapping[str, Any], max_bytes: int
) -> ArrayCopy:
    """Plan to copy a variable that is not in memory.

    Its blocks are whole chunks of the storage, so that each of these is read once.

    Parameters
    ----------
    name
        Of the stored array.
    variable
        The samples.
    encoding
        As the user gives it.
    max_bytes
        Budget of a task, of which a block takes a quarter at most, unless a chunk takes more.
    """
    shape, dtype, dims = variable.shape, variable.dtype, range(variable.ndim)

    def grown(units: tuple[int, ...], most: int) -> tuple[int, ...]:
        """Lengthen units as long as they fit."""
        most = min(most, max_bytes // 4)
        ends = whole_units(shape, units)
        return double_lengths(units, ends, lambda n: dtype.itemsize * prod(n) <= most, dims)

    own = dict(encoding)
    chunks, shards = own.pop("chunks", None), own.pop("shards", None)
    if chunks is None and shards is None:
        chunks = grown(stored_chunks(variable), CHUNK)
        shards = grown(chunks, SHARD)
    else:
        chunks = _lengths(f"chunks in the encoding of {name!r}", chunks, len(shape))
        if shards is not None:
            shards = _lengths(f"shards in the encoding of {name!r}", shards, len(shape))
    encoding = {**coding_of(variable), **encoding_of(repr(name), dtype, own)}
    shards = None if shards == chunks else shards
    stored = StoredArray(name, variable.dims, shape, dtype, chunks, shards, encoding)
    return ArrayCopy(stored, stored.objects, region_reader(variable), dtype.itemsize)


def _lengths(argument: str, lengths: Any, ndim: int) -> tuple[int, ...]:
    several = as_tuple(argument, lengths, f"{ndim} lengths, one for each dim", ndim)
    return tuple(as_integer(argument, length, 1) for length in several)
