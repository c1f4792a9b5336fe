"""Patch datasets: the patches of every variable of an image, in one of two layouts."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import xarray as xr

from xpatches.datasets.encoding import encoding_of
from xpatches.datasets.layout import SAMPLE_DIM, Layout, lay_out
from xpatches.datasets.write import Source, check_dims
from xpatches.errors import PatchError
from xpatches.extraction.labelled import every_axis, region_reader
from xpatches.images import labels
from xpatches.images.spec import SPEC_ATTR, write_spec
from xpatches.jobs.blocks import PatchPart
from xpatches.lazy import graphs as lazy

_LOOKED_AT = 100
"""Blocks whose regions are looked at for a plan."""


@dataclass(frozen=True)
class Cut:
    """Patches that are written of an image."""

    source: Source
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
            lazy.as_budget(None),
            self.chunks,
            self.shards,
        )


def plan_patches(cut: Cut) -> dict[Hashable, dict[str, Any]]:
    """Say how patches will be written, as `Patches.plan_zarr` documents, by variable."""
    return {
        name: _plan(part.layout, cut.source.dataset.variables[name])
        for name, part in zip(cut.source.fill_values, cut.parts({}), strict=True)
    }


def _plan(layout: Layout, image: xr.Variable) -> dict[str, Any]:
    stored = labels.chunk_lazy(image).chunks or [(1,)] * image.ndim  # any sample alone in memory

    def read(region: Iterable[slice]) -> int:
        """Count the samples of the stored chunks that a region touches."""
        count = 1
        for along, lengths, n in zip(region, stored, image.shape, strict=True):
            chunk = max(lengths)
            count *= min(-(-along.stop // chunk) * chunk, n) - along.start // chunk * chunk
        return count

    looked_at = range(0, len(layout), -(-len(layout) // _LOOKED_AT))
    blocks = [layout.reads(layout.block(number)) for number in looked_at]
    regions = [region for of in blocks for region in of]
    whole = read(slice(*grid.region(0, grid.count)[:2]) for grid in layout.grids)
    step = prod(map(min, layout.writes, layout.shape))
    largest = max(prod(along.stop - along.start for along in region) for region in regions)
    return {
        "patches": prod(layout.grids[axis].count for axis in layout.spatial),
        "bytes": layout.itemsize * prod(layout.shape),
        "dims": dict(zip(layout.dims, layout.shape, strict=True)),
        "chunks": layout.chunks,
        "shards": layout.shards,
        "tasks": len(layout),
        "bytes_per_task": layout.itemsize * (3 * step + 2 * largest),
        "read_amplification": sum(map(read, regions)) * len(layout) / len(blocks) / max(1, whole),
    }
