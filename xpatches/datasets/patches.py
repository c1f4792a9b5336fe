"""Patch datasets: the patches of every variable of an image, in one of two layouts."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.datasets.chunks import check_dims, lay_out
from xpatches.datasets.encoding import encoding_of
from xpatches.datasets.layout import Arrangement
from xpatches.datasets.write import Product
from xpatches.dtypes import Array
from xpatches.errors import PatchError
from xpatches.extraction.kernel import extract_block
from xpatches.geometry.boxes import count_samples, divide
from xpatches.geometry.grid import AxisGrid
from xpatches.images import labels
from xpatches.images.image import Image
from xpatches.images.labels import SAMPLE_DIM
from xpatches.images.samples import chunk_lazy, every_axis, region_reader
from xpatches.images.spec import SPEC_ATTR, write_spec
from xpatches.jobs.blocks import BlockArray, Put, Samples, StoredArray
from xpatches.lazy.sources import as_budget

_LOOKED_AT = 100
"""Blocks whose regions are looked at for a plan."""


@dataclass(frozen=True)
class PatchArray(BlockArray):
    """The patches of one variable."""

    patches: Arrangement
    steps: tuple[int, ...]
    """Lengths of what is cut and written at once."""
    fill_value: Array

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """List the regions that are read for a block."""
        block = self.place(number)
        region = self.patches.region(block)
        if region is not None:
            return [region]
        steps = divide(block, self.steps)
        return [piece.region for step in steps for piece in self.patches.pieces(step)]

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Extract the patches of a block."""
        block = self.place(number)
        region = self.patches.region(block)
        if region is not None:
            samples.hold(region)
        for step in divide(block, self.steps):
            put(step, self.cut(step, samples))

    def cut(self, step: tuple[slice, ...], samples: Samples) -> Array:
        """Extract the patches of a step of a block."""
        lengths = tuple(along.stop - along.start for along in step)
        patches: Array | None = None
        for piece in self.patches.pieces(step):
            spans = sorted(piece.spans, key=lambda span: span.axis)
            cut = extract_block(samples.of(piece.region), spans, self.fill_value)
            if self.patches.flat:
                numbered, spatial = self.patches.spatial, sorted(self.patches.spatial)
                behind = spatial[-1] + 1
                sizes = [behind + spatial.index(axis) for axis in numbered]
                others = [axis for axis in range(cut.ndim) if axis not in (*spatial, *sizes)]
                cut = cut.transpose(*numbered, *sizes, *others)
                cut = cut.reshape(-1, *cut.shape[len(spatial) :])
            if cut.shape == lengths:
                return cut
            patches = np.empty(lengths, cut.dtype) if patches is None else patches
            patches[piece.place] = cut
        assert patches is not None
        return patches

    def describe(self, number: int) -> str:
        """Say which patches a block holds, and which samples they are cut from."""
        patches, block = self.patches, self.place(number)
        numbers = ", ".join(
            f"{dim}={along.start}:{along.stop}"
            for dim, axis, along in zip(patches.dims, patches.axes, block, strict=True)
            if axis is not None or (patches.flat and dim == patches.dims[0])
        )
        regions = self.reads(number)
        samples = ", ".join(
            f"{patches.grids[axis].dim}={min(r[axis].start for r in regions)}:"
            f"{max(r[axis].stop for r in regions)}"
            for axis in patches.spatial
        )
        return f"{self.stored.name!r}, patches {numbers} from samples {samples}"


@dataclass(frozen=True)
class PatchDataset(Product):
    """Patches that are written of an image."""

    source: Image[Any]
    layout: str
    """``"grid"`` or ``"samples"``."""
    chunks: Mapping[Any, int] | None
    shards: Mapping[Any, int] | bool | None
    label: str = "center"
    """As in `Patches.to_zarr`."""

    max_bytes = None

    def arrays(self, encoding: Mapping[Any, Mapping[str, Any]]) -> list[PatchArray]:
        """Lay out the patches of every variable."""
        arrays = []
        for name, fill_value in self.source.fill_values.items():
            variable, called = self.source.dataset.variables[name], self.source.stored(name)
            encoded = encoding_of(repr(called), variable.dtype, encoding.get(called, {}))
            patches = self._arrange(variable)
            lengths = lay_out(repr(called), patches, self.chunks, self.shards)
            shape = (patches.dims, patches.shape, fill_value.dtype)
            stored = StoredArray(called, *shape, lengths.chunks, lengths.shards, encoded)
            source = (region_reader(variable), patches.itemsize)
            arrays.append(
                PatchArray(stored, lengths.blocks, *source, patches, lengths.steps, fill_value)
            )
        check_dims([array.stored.dims for array in arrays], chunks=self.chunks, shards=self.shards)
        return arrays

    def coords(self) -> xr.Coordinates:
        """Label the patches, along the dims of the grid or along one."""
        dataset, grid = self.source.dataset, self.source.grid
        coords = labels.patch_coords(dataset.coords, grid, self.label)
        if self.layout == "grid":
            return coords
        labels.check_names(dataset, [SAMPLE_DIM])
        for name in self.source.fill_values:
            missing = [dim for dim in grid.dims if dim not in dataset[name].dims]
            if missing:
                raise PatchError(
                    f"layout='samples' needs variables with all of the dims {grid.dims}, "
                    f"{name!r} lacks {missing[0]!r}; drop it, or use layout='grid'"
                )
        flat = labels.flatten_coords(coords, grid.counts, SAMPLE_DIM)
        return labels.without_transforms(flat)  # samples are no raster

    def attrs(self, name: Hashable) -> dict[Any, Any]:
        """Give the attrs of a variable's patches, with their geometry."""
        variable = self.source.dataset.variables[name]
        grid, fill_value = self.source.grid.restrict(variable.dims), self.source.fill_values[name]
        even = labels.lines_of(self.source.dataset.coords, grid.dims)
        attrs = variable.attrs
        spec = write_spec(variable.dims, grid, fill_value, self.label, {}, self.layout, even, attrs)
        return {**attrs, SPEC_ATTR: spec}

    def _arrange(self, variable: xr.Variable) -> Arrangement:
        """Arrange the patches of a variable along those dims of the grid that it has."""
        flat, grid = self.layout == "samples", self.source.grid
        # Samples are numbered in the order of the grid, the same for all variables.
        grid = grid.restrict(variable.dims) if flat else grid.arrange(variable.dims)
        axes = tuple(variable.dims.index(dim) for dim in grid.dims)
        grids, itemsize = every_axis(variable, grid), variable.dtype.itemsize
        return Arrangement(flat, grids, axes, itemsize, as_budget(None) // 2)


def plan_patches(patches: PatchDataset) -> dict[Hashable, dict[str, Any]]:
    """Say how patches will be written, as `Patches.plan` documents, by variable."""
    return {
        name: _plan(array, patches.source.dataset.variables[name])
        for name, array in zip(patches.source.fill_values, patches.arrays({}), strict=True)
    }


def _plan(array: PatchArray, image: xr.Variable) -> dict[str, Any]:
    stored, patches = array.stored, array.patches
    step = prod(map(min, array.steps, stored.shape))
    largest = max(map(count_samples, _looked_at(array)))
    return {
        "patches": prod(patches.grids[axis].count for axis in patches.spatial),
        "bytes": stored.nbytes,
        "dims": dict(zip(stored.dims, stored.shape, strict=True)),
        "chunks": stored.chunks,
        "shards": stored.shards,
        "tasks": len(array),
        "bytes_per_task": array.itemsize * (3 * step + 2 * largest),
        "read_amplification": read_amplification(array, patches.grids, image),
    }


def _some_blocks(array: BlockArray) -> range:
    """Choose some blocks, from which all are estimated."""
    return range(0, len(array), -(-len(array) // _LOOKED_AT))


def _looked_at(array: BlockArray) -> list[tuple[slice, ...]]:
    """List the regions that are read for those."""
    return [region for number in _some_blocks(array) for region in array.reads(number)]


def read_amplification(array: BlockArray, grids: Sequence[AxisGrid], image: xr.Variable) -> float:
    """Estimate how often a stored sample of an image is read, on average, from some blocks."""
    lengths = chunk_lazy(image).chunks or [(1,)] * image.ndim  # any sample alone in memory

    def read(region: Iterable[slice]) -> int:
        """Count the samples of the stored chunks that a region touches."""
        count = 1
        for along, chunks, n in zip(region, lengths, image.shape, strict=True):
            chunk = max(chunks)
            count *= min(-(-along.stop // chunk) * chunk, n) - along.start // chunk * chunk
        return count

    whole = read(slice(*grid.region(0, grid.count)[:2]) for grid in grids)
    count = len(_some_blocks(array))
    return sum(map(read, _looked_at(array))) * len(array) / count / max(1, whole)
