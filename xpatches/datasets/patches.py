"""Patch datasets: the patches of every variable of an image, in one of two layouts."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.datasets.encoding import encoding_of
from xpatches.datasets.layout import Layout, lay_out
from xpatches.datasets.write import check_dims
from xpatches.dtypes import Array
from xpatches.errors import PatchError
from xpatches.extraction.kernel import extract_block
from xpatches.geometry.grid import AxisGrid
from xpatches.images import labels
from xpatches.images.image import Image
from xpatches.images.labels import SAMPLE_DIM
from xpatches.images.samples import chunk_lazy, every_axis, region_reader
from xpatches.images.spec import SPEC_ATTR, write_spec
from xpatches.jobs.blocks import Part, Put, Reader, Samples
from xpatches.lazy.sources import as_budget

_LOOKED_AT = 100
"""Blocks whose regions are looked at for a plan."""


@dataclass(frozen=True)
class PatchPart:
    """The patches of one variable."""

    name: str
    read: Reader
    layout: Layout
    fill_value: Array
    encoding: Mapping[str, Any]

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Dims of the patches."""
        return self.layout.dims

    @property
    def shape(self) -> tuple[int, ...]:
        """Their lengths."""
        return self.layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the image."""
        return self.fill_value.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """Lengths of the chunks."""
        return self.layout.chunks

    @property
    def shards(self) -> tuple[int, ...] | None:
        """Lengths of the shards."""
        return self.layout.shards

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of a block."""
        return self.layout.blocks

    @property
    def itemsize(self) -> int:
        """Bytes of a sample of the image."""
        return self.layout.itemsize

    def __len__(self) -> int:
        return len(self.layout)

    def place(self, number: int) -> tuple[slice, ...]:
        """Find a block among the patches."""
        return self.layout.block(number)

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """List the regions that are read for a block."""
        return self.layout.reads(self.layout.block(number))

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Extract the patches of a block."""
        block = self.layout.block(number)
        region = self.layout.region(block)
        if region is not None:
            samples.hold(region)
        for step in self.layout.steps(block):
            put(step, self.cut(step, samples))

    def cut(self, step: tuple[slice, ...], samples: Samples) -> Array:
        """Extract the patches of a step of a block."""
        layout = self.layout
        lengths = tuple(along.stop - along.start for along in step)
        patches: Array | None = None
        for piece in layout.pieces(step):
            spans = sorted(piece.spans, key=lambda span: span.axis)
            made = extract_block(samples.of(piece.region), spans, self.fill_value)
            if layout.flat:
                numbered, spatial = layout.spatial, sorted(layout.spatial)
                behind = spatial[-1] + 1
                sizes = [behind + spatial.index(axis) for axis in numbered]
                others = [axis for axis in range(made.ndim) if axis not in (*spatial, *sizes)]
                made = made.transpose(*numbered, *sizes, *others)
                made = made.reshape(-1, *made.shape[len(spatial) :])
            if made.shape == lengths:
                patches = made
            else:
                patches = np.empty(lengths, made.dtype) if patches is None else patches
                patches[piece.place] = made
        assert patches is not None
        return patches

    def describe(self, number: int) -> str:
        """Say which patches a block holds, and which samples they are cut from."""
        layout = self.layout
        patches = ", ".join(
            f"{dim}={along.start}:{along.stop}"
            for dim, axis, along in zip(layout.dims, layout.axes, layout.block(number), strict=True)
            if axis is not None or (layout.flat and dim == layout.dims[0])
        )
        regions = self.reads(number)
        samples = ", ".join(
            f"{layout.grids[axis].dim}={min(r[axis].start for r in regions)}:"
            f"{max(r[axis].stop for r in regions)}"
            for axis in layout.spatial
        )
        return f"{self.name!r}, patches {patches} from samples {samples}"


@dataclass(frozen=True)
class Cut:
    """Patches that are written of an image."""

    source: Image[Any]
    layout: str
    """``"grid"`` or ``"samples"``."""
    chunks: Mapping[Any, int] | None
    shards: Mapping[Any, int] | bool | None
    label: str = "center"
    """As in `Patches.to_zarr`."""

    max_bytes = None

    def parts(self, encoding: Mapping[Any, Mapping[str, Any]]) -> list[PatchPart]:
        """Lay out the patches of every variable."""
        parts = []
        for name, fill_value in self.source.fill_values.items():
            variable, stored = self.source.dataset.variables[name], self.source.stored(name)
            given = encoding_of(repr(stored), variable.dtype, encoding.get(stored, {}))
            layout = self._lay_out(stored, variable)
            parts.append(PatchPart(stored, region_reader(variable), layout, fill_value, given))
        check_dims([part.dims for part in parts], chunks=self.chunks, shards=self.shards)
        return parts

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

    def described(self) -> dict[str, Any]:
        """Describe nothing but what the attrs of the variables hold."""
        return {}

    def _lay_out(self, stored: str, variable: xr.Variable) -> Layout:
        """Lay out the patches of a variable along those dims of the grid that it has."""
        flat = self.layout == "samples"
        grid = self.source.grid.arrange(variable.dims)
        dims = labels.patch_dims(variable.dims, grid, flat=False)
        if flat:  # in the order of the numbers, the same for all variables
            grid = self.source.grid.restrict(variable.dims)
            others = [dim for dim in variable.dims if dim not in grid.dims]
            dims = (SAMPLE_DIM, *(f"{dim}_patch" for dim in grid.dims), *others)
        return lay_out(
            repr(stored),
            flat,
            dims,
            every_axis(variable, grid),
            tuple(variable.dims.index(dim) for dim in grid.dims),
            variable.dtype.itemsize,
            as_budget(None),
            self.chunks,
            self.shards,
        )


def plan_patches(cut: Cut) -> dict[Hashable, dict[str, Any]]:
    """Say how patches will be written, as `Patches.plan` documents, by variable."""
    return {
        name: _plan(part, cut.source.dataset.variables[name])
        for name, part in zip(cut.source.fill_values, cut.parts({}), strict=True)
    }


def _plan(part: PatchPart, image: xr.Variable) -> dict[str, Any]:
    layout = part.layout
    step = prod(map(min, layout.writes, layout.shape))
    regions = chain.from_iterable(_looked_at(part))
    largest = max(prod(along.stop - along.start for along in region) for region in regions)
    return {
        "patches": prod(layout.grids[axis].count for axis in layout.spatial),
        "bytes": layout.itemsize * prod(layout.shape),
        "dims": dict(zip(layout.dims, layout.shape, strict=True)),
        "chunks": layout.chunks,
        "shards": layout.shards,
        "tasks": len(layout),
        "bytes_per_task": layout.itemsize * (3 * step + 2 * largest),
        "read_amplification": read_amplification(part, layout.grids, image),
    }


def _looked_at(part: Part) -> list[list[tuple[slice, ...]]]:
    """List the regions that are read for some blocks."""
    return [part.reads(number) for number in range(0, len(part), -(-len(part) // _LOOKED_AT))]


def read_amplification(part: Part, grids: Sequence[AxisGrid], image: xr.Variable) -> float:
    """Estimate how often a stored sample of an image is read, on average, from some blocks."""
    stored = chunk_lazy(image).chunks or [(1,)] * image.ndim  # any sample alone in memory

    def read(region: Iterable[slice]) -> int:
        """Count the samples of the stored chunks that a region touches."""
        count = 1
        for along, lengths, n in zip(region, stored, image.shape, strict=True):
            chunk = max(lengths)
            count *= min(-(-along.stop // chunk) * chunk, n) - along.start // chunk * chunk
        return count

    blocks = _looked_at(part)
    whole = read(slice(*grid.region(0, grid.count)[:2]) for grid in grids)
    return sum(map(read, chain.from_iterable(blocks))) * len(part) / len(blocks) / max(1, whole)
