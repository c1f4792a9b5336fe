"""Reductions that jobs write: every patch of an image becomes one sample.

A block is one stored object. The samples under it are read and reduced at once where they fit half
of the budget, else under one part of it after the other.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.datasets.copies import CopyPart
from xpatches.datasets.encoding import encoding_of
from xpatches.datasets.layout import (
    BLOCKS,
    CHUNK,
    SHARD,
    check_not_empty,
    given_lengths,
    given_shards,
)
from xpatches.datasets.outputs import name_of
from xpatches.datasets.patches import read_amplification
from xpatches.datasets.write import check_dims
from xpatches.dtypes import Array
from xpatches.errors import PatchError
from xpatches.geometry.blocks import Kernel
from xpatches.geometry.boxes import Span, halve
from xpatches.geometry.grid import AxisGrid
from xpatches.geometry.search import grow
from xpatches.images.image import Image
from xpatches.images.samples import every_axis, region_reader
from xpatches.images.spec import write_spec
from xpatches.jobs.blocks import Put, Samples
from xpatches.lazy.sources import as_budget
from xpatches.redaction import redacted
from xpatches.reduction.labelled import Reducer

_MOST = 4
"""Budgets that the samples under a block take, at most, where chunks are not given: a failure costs
that much work."""
_COPIES = 3
"""Of a stored object: its samples, and what zarr encodes them to."""


@dataclass(frozen=True)
class ReducedPart(CopyPart):
    """The reductions of the patches of one variable."""

    kernel: Kernel
    grids: tuple[AxisGrid, ...]
    """One for each axis of the image; an axis without patches has patches of one sample."""
    spatial: tuple[int, ...]
    """Numbers of the axes that are cut into patches."""
    source_itemsize: int
    """Bytes of a sample of the image."""
    patch_bytes: int
    """Bytes that the kernel makes per patch."""
    max_bytes: int
    """Budget of a task."""

    @property
    def itemsize(self) -> int:
        """Bytes of a sample of the image."""
        return self.source_itemsize

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """List the regions that are read for a block."""
        return [self._region(box) for box in self._boxes(number)]

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Reduce the patches of a block."""
        place = self.place(number)
        reduced = np.empty([along.stop - along.start for along in place], self.dtype)
        for box in self._boxes(number):
            spans = [
                Span(axis, grid, grid.region(patches.start, len(patches))[2], len(patches))
                for axis, (grid, patches) in enumerate(zip(self.grids, box, strict=True))
                if axis in self.spatial
            ]
            pairs = zip(box, place, strict=True)
            part = tuple(slice(of.start - at.start, of.stop - at.start) for of, at in pairs)
            reduced[part] = self.kernel(samples.of(self._region(box)), spans)
        put(place, reduced)

    def nbytes(self, counts: Sequence[int]) -> int:
        """Count the bytes under so many patches along every axis, and of what is made of them."""
        samples = prod(map(_reach, self.grids, counts))
        return self.source_itemsize * samples + self.patch_bytes * prod(counts)

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
class Reduced:
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

    def parts(self, encoding: Mapping[Any, Mapping[str, Any]]) -> list[ReducedPart]:
        """Choose chunks and shards of every variable."""
        parts, budget = [], as_budget(self.max_bytes)
        check_dims(
            [variable.dims for _, variable, _ in self.source.variables()],
            chunks=self.chunks,
            shards=self.shards,
        )
        for name, variable, _ in self.source.variables():
            stored, reducer = self.source.stored(name), self.reducers[name]
            grids = every_axis(variable, self.source.grid)
            spatial = tuple(map(variable.dims.index, self.source.grid.arrange(variable.dims).dims))
            shape = tuple(grid.count for grid in grids)
            check_not_empty(repr(stored), variable.dims, shape)
            part = ReducedPart(
                stored, region_reader(variable), variable.dims, shape, reducer.dtype, (), None,
                encoding_of(repr(stored), reducer.dtype, encoding.get(stored, {})),
                reducer.kernel, grids, spatial, variable.dtype.itemsize, reducer.patch_bytes,
                budget,
            )  # fmt: skip
            needed = part.nbytes([1] * len(shape))
            if needed > budget:
                raise PatchError(
                    f"max_bytes must be >= {needed}, one patch and the samples under it, got "
                    f"{budget}; raise it, or use a smaller size or rate"
                )
            parts.append(_laid_out(part, self.chunks, self.shards))
        return parts

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


def plan_reduced(reduced: Reduced) -> dict[Hashable, dict[str, Any]]:
    """Say how reductions will be written, as `Patches.plan` documents, by variable."""
    return {
        name: {
            "patches": prod(part.grids[axis].count for axis in part.spatial),
            "bytes": part.dtype.itemsize * prod(part.shape),
            "dims": dict(zip(part.dims, part.shape, strict=True)),
            "chunks": part.chunks,
            "shards": part.shards,
            "tasks": len(part),
            "bytes_per_task": _COPIES * part.dtype.itemsize * prod(part.lengths)
            + max(part.nbytes([*map(len, box)]) for box in part._boxes(0)),
            "read_amplification": read_amplification(part, part.grids, variable),
        }
        for part, (name, variable, _) in zip(
            reduced.parts({}), reduced.source.variables(), strict=True
        )
    }


def _laid_out(
    part: ReducedPart,
    chunks: Mapping[Any, int] | None,
    shards: Mapping[Any, int] | bool | None,
) -> ReducedPart:
    """Choose chunks and shards: all that lies along dims that are not cut, squares of the rest."""
    shape, itemsize = part.shape, part.dtype.itemsize

    def grown(
        units: Sequence[int], fixed: Mapping[int, int], fits: Callable[[Sequence[int]], bool]
    ) -> tuple[int, ...]:
        """Double lengths, the shortest of a group first, as long as they fit."""

        def order(lengths: Sequence[int]) -> list[int]:
            free = (axis for axis in range(len(shape)) if axis not in fixed)
            return sorted(free, key=lambda axis: (axis in part.spatial, lengths[axis]))

        def longer(axis: int, length: int) -> int:
            return min(2 * length, -(-shape[axis] // units[axis]) * units[axis])

        lengths = [fixed.get(axis, unit) for axis, unit in enumerate(units)]
        return tuple(grow(lengths, order, longer, fits))

    def within(most: int) -> Callable[[Sequence[int]], bool]:
        read = _MOST * part.max_bytes
        return lambda counts: itemsize * prod(counts) <= most and part.nbytes(counts) <= read

    def several(counts: Sequence[int]) -> bool:
        blocks = prod(-(-n // length) for n, length in zip(shape, counts, strict=True))
        return blocks >= BLOCKS and within(shard)(counts)

    shard = min(SHARD, part.max_bytes // 8)
    chunk = grown(
        [1] * len(shape), given_lengths(chunks, part.dims, shape), within(min(CHUNK, shard))
    )
    if shards is False:
        return replace(part, chunks=chunk)
    objects = grown(chunk, given_shards(shards, part.dims, shape, chunk), several)
    return replace(part, chunks=chunk, shards=None if objects == chunk else objects)


def _reach(grid: AxisGrid, count: int) -> int:
    """Count the samples under this many patches, at most."""
    return min(grid.length, (count - 1) * grid.stride + grid.effective_size)
