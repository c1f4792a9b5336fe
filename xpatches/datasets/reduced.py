"""Reductions that jobs write: every patch of an image becomes one sample.

A block is one stored object. The samples under it are read and reduced at once where they fit half
of the budget, else under one part of it after the other.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.credentials import redacted
from xpatches.datasets.chunks import (
    BLOCKS,
    CHUNK,
    SHARD,
    check_dims,
    check_not_empty,
    double_lengths,
    given_lengths,
    given_shards,
    whole_units,
)
from xpatches.datasets.encoding import encoding_of
from xpatches.datasets.outputs import name_of
from xpatches.datasets.patches import read_amplification
from xpatches.datasets.write import Product
from xpatches.dtypes import Array
from xpatches.errors import PatchError
from xpatches.geometry.blocks import Kernel
from xpatches.geometry.boxes import Span, halve, within
from xpatches.geometry.grid import AxisGrid
from xpatches.images.image import Image
from xpatches.images.samples import every_axis, region_reader
from xpatches.images.spec import write_spec
from xpatches.jobs.blocks import BlockArray, Put, Samples, StoredArray
from xpatches.lazy.sources import as_budget
from xpatches.reduction.labelled import Reducer

_MOST = 4
"""Budgets that the samples under a block take, at most, where chunks are not given: a failure costs
that much work."""
_COPIES = 3
"""Of a stored object: its samples, and what zarr encodes them to."""


@dataclass(frozen=True)
class ReducedArray(BlockArray):
    """The reductions of the patches of one variable."""

    kernel: Kernel
    grids: tuple[AxisGrid, ...]
    """One for each axis of the image; an axis without patches has patches of one sample."""
    spatial: tuple[int, ...]
    """Numbers of the axes that are cut into patches."""
    patch_bytes: int
    """Bytes that the kernel makes per patch."""
    max_bytes: int
    """Budget of a task."""

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """List the regions that are read for a block."""
        return [self._region(box) for box in self._boxes(number)]

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Reduce the patches of a block."""
        place = self.place(number)
        reduced = np.empty([along.stop - along.start for along in place], self.stored.dtype)
        for box in self._boxes(number):
            spans = [
                Span(axis, grid, grid.region(patches.start, len(patches))[2], len(patches))
                for axis, (grid, patches) in enumerate(zip(self.grids, box, strict=True))
                if axis in self.spatial
            ]
            part = tuple(slice(along.start, along.stop) for along in box)
            reduced[within(part, place)] = self.kernel(samples.of(self._region(box)), spans)
        put(place, reduced)

    def nbytes(self, counts: Sequence[int]) -> int:
        """Count the bytes under so many patches along every axis, and of what is made of them."""
        samples = prod(map(_reach, self.grids, counts))
        return self.itemsize * samples + self.patch_bytes * prod(counts)

    def _boxes(self, number: int) -> list[tuple[range, ...]]:
        """Divide the patches of a block into what is read and reduced at once."""
        block = tuple(range(along.start, along.stop) for along in self.place(number))
        most = self.max_bytes // 2
        return [*halve(block, lambda box: self.nbytes([*map(len, box)]) <= most, self.spatial)]

    def _region(self, box: Sequence[range]) -> tuple[slice, ...]:
        """Find the samples under a box of patches."""
        pairs = zip(self.grids, box, strict=True)
        regions = (grid.region(patches.start, len(patches)) for grid, patches in pairs)
        return tuple(slice(start, stop) for start, stop, _ in regions)


@dataclass(frozen=True)
class ReducedDataset(Product):
    """Reductions that are written of an image."""

    source: Image[Any]
    reducers: Mapping[Hashable, Reducer]
    """For every variable that is cut, by name."""
    label: str
    """As in `Patches.reduce`."""
    max_bytes: int | str | None
    chunks: Mapping[Any, int] | None
    shards: Mapping[Any, int] | bool | None

    layout = "reduced"

    def arrays(self, encoding: Mapping[Any, Mapping[str, Any]]) -> list[ReducedArray]:
        """Choose chunks and shards of every variable."""
        arrays, budget, variables = [], as_budget(self.max_bytes), [*self.source.variables()]
        dims = [variable.dims for _, variable, _ in variables]
        check_dims(dims, chunks=self.chunks, shards=self.shards)
        for name, variable, _ in variables:
            stored, reducer = self.source.stored(name), self.reducers[name]
            grids = every_axis(variable, self.source.grid)
            spatial = tuple(map(variable.dims.index, self.source.grid.arrange(variable.dims).dims))
            shape = tuple(grid.count for grid in grids)
            check_not_empty(repr(stored), variable.dims, shape)
            encoded = encoding_of(repr(stored), reducer.dtype, encoding.get(stored, {}))
            array = ReducedArray(
                StoredArray(stored, variable.dims, shape, reducer.dtype, shape, None, encoded),
                shape,
                region_reader(variable),
                variable.dtype.itemsize,
                reducer.kernel,
                grids,
                spatial,
                reducer.patch_bytes,
                budget,
            )
            needed = array.nbytes([1] * len(shape))
            if needed > budget:
                raise PatchError(
                    f"max_bytes must be >= {needed}, one patch and the samples under it, got "
                    f"{budget}; raise it, or use a smaller size or rate"
                )
            arrays.append(_laid_out(array, self.chunks, self.shards))
        return arrays

    def coords(self) -> xr.Coordinates:
        """Label the reductions by what labels the patches."""
        return self.source.coords_of_reduced(self.label)

    def attrs(self, name: Hashable) -> dict[Any, Any]:
        """Give the attrs of a variable."""
        return dict(self.reducers[name].attrs)

    def described(self) -> dict[str, Any]:
        """Describe how every variable is made."""
        return {
            "reduce": {
                self.source.stored(name): self._described(name, variable, fill_value)
                for name, variable, fill_value in self.source.variables()
            }
        }

    def _described(self, name: Hashable, variable: xr.Variable, fill: Array) -> dict[str, Any]:
        reducer, grid = self.reducers[name], self.source.grid.restrict(variable.dims)
        how = reducer.reduction
        return {
            "how": redacted(name_of(how)) if callable(how) else how,
            **reducer.options,
            "patches": write_spec(variable.dims, grid, fill, self.label, {}),
        }


def plan_reduced(reduced: ReducedDataset) -> dict[Hashable, dict[str, Any]]:
    """Say how reductions will be written, as `Patches.plan` documents, by variable."""
    variables = reduced.source.variables()
    plans = {}
    for array, (name, variable, _) in zip(reduced.arrays({}), variables, strict=True):
        stored = array.stored
        plans[name] = {
            "patches": prod(array.grids[axis].count for axis in array.spatial),
            "bytes": stored.nbytes,
            "dims": dict(zip(stored.dims, stored.shape, strict=True)),
            "chunks": stored.chunks,
            "shards": stored.shards,
            "tasks": len(array),
            "bytes_per_task": _COPIES * stored.dtype.itemsize * prod(array.lengths)
            + max(array.nbytes([*map(len, box)]) for box in array._boxes(0)),
            "read_amplification": read_amplification(array, array.grids, variable),
        }
    return plans


def _laid_out(
    array: ReducedArray,
    chunks: Mapping[Any, int] | None,
    shards: Mapping[Any, int] | bool | None,
) -> ReducedArray:
    """Choose chunks and shards: all that lies along dims that are not cut, squares of the rest."""
    stored, most = array.stored, min(SHARD, array.max_bytes // 8)
    dims, shape, itemsize = stored.dims, stored.shape, stored.dtype.itemsize
    others = [axis for axis in range(len(shape)) if axis not in array.spatial]

    def grown(lengths: Sequence[int], fixed: Mapping[int, int], nbytes: int, least: int) -> Any:
        """Double lengths as long as an object takes so many bytes, and so many blocks are left."""

        def fits(counts: Sequence[int]) -> bool:
            blocks = prod(-(-n // length) for n, length in zip(shape, counts, strict=True))
            read = array.nbytes(counts) <= _MOST * array.max_bytes
            return itemsize * prod(counts) <= nbytes and read and blocks >= least

        ends = whole_units(shape, lengths)
        lengths = [fixed.get(axis, length) for axis, length in enumerate(lengths)]
        free = ([axis for axis in axes if axis not in fixed] for axes in (others, array.spatial))
        return double_lengths(lengths, ends, fits, *free)

    fixed = given_lengths(chunks, dims, shape)
    chunk = objects = grown([1] * len(shape), fixed, min(CHUNK, most), 0)
    if shards is not False:
        objects = grown(chunk, given_shards(shards, dims, shape, chunk), most, BLOCKS)
    stored = replace(stored, chunks=chunk, shards=None if objects == chunk else objects)
    return replace(array, stored=stored, lengths=objects)


def _reach(grid: AxisGrid, count: int) -> int:
    """Count the samples under this many patches, at most."""
    return min(grid.length, (count - 1) * grid.stride + grid.effective_size)
