"""Where the patches of an array lie: its geometry, from its spec and the coords it still has."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.dtypes import Array
from xpatches.errors import PatchError
from xpatches.geometry.coverage import AxisCover
from xpatches.images.labels import FLAT_DIM, SAMPLE_DIM
from xpatches.images.relabel import label_positions
from xpatches.images.samples import checked_lazy
from xpatches.images.spec import Spec, read_spec


@dataclass(frozen=True)
class Located:
    """Patches, and where they lie in the image."""

    array: xr.DataArray
    """Without the dim ``patch``: what it joins are dims again."""
    spec: Spec
    covers: tuple[AxisCover, ...]
    """For every spatial dim, in the image's order."""
    origins: tuple[range, ...]
    """Of the patches as they were extracted, along every spatial dim."""
    samples: Array | None
    """Numbers of the patches that lie along the dim ``sample``, in the grid of `covers`; None
    where there is no such dim."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of patches along every spatial dim."""
        return tuple(cover.count for cover in self.covers)

    @cached_property
    def in_order(self) -> bool:
        """Whether the patches along ``sample`` are all of the grid, in its order."""
        return self.samples is None or np.array_equal(self.samples, np.arange(prod(self.counts)))

    @property
    def lacking(self) -> int:
        """How many patches of the grid there are not."""
        return 0 if self.samples is None else prod(self.counts) - len(self.samples)

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Dims of the patches, those of the grid instead of ``sample``."""
        dims = self.array.dims
        if self.samples is None:
            return dims
        at = dims.index(SAMPLE_DIM)
        return (*dims[:at], *self.spec.grid.dims, *dims[at + 1 :])

    @property
    def result_dims(self) -> tuple[Hashable, ...]:
        """Dims of the image that is stitched: the source's in their order, new ones last."""
        left = [dim for dim in self.dims if dim not in _patch_dims(self.spec)]
        if self.samples is None:
            return tuple(left)
        known = [dim for dim in self.spec.dims if dim in left]
        return (*known, *(dim for dim in left if dim not in known))

    def read_labels(self) -> dict[Hashable, tuple[range, Array]]:
        """Read the labels along the spatial dims that have them, and where they lie.

        That is in half samples. Where a patch is missing that nothing else tells the label of,
        there are none.
        """
        labels = {}
        for number, (axis, origins) in enumerate(zip(self.spec.grid, self.origins, strict=True)):
            along = axis.dim if self.samples is None else SAMPLE_DIM
            if axis.dim not in self.array.coords or self.array[axis.dim].dims != (along,):
                continue
            values = self.array[axis.dim].to_numpy()
            if self.samples is not None:
                index = np.unravel_index(self.samples, self.counts)[number]
                kept, first = np.unique(index, return_index=True)
                if len(kept) < len(origins):
                    continue
                values = values[first]
            places = label_positions(axis, origins, self.spec.label, values.dtype.kind)
            labels[axis.dim] = places, values
        return labels


def locate(array: xr.DataArray) -> Located:
    """Find where the patches of an array lie.

    Parameters
    ----------
    array
        What `Patches.extract` or `open_patches` gave, or what was made of it: other dims may have
        come, gone or changed; patches may be missing or in another order, and edges of patches may
        be cut off, where the coords ``{dim}_origin`` and ``{dim}_patch`` say which are left.

    Raises
    ------
    PatchError
        If the array has no spec, or no longer the dims and coords that it takes.
    """
    spec = read_spec(array.attrs)
    if spec.flattened and FLAT_DIM in array.dims:
        array = _unflatten(array, spec.flattened)
    flat = SAMPLE_DIM in array.dims and any(dim not in array.dims for dim in spec.grid.dims)
    needed = [*([SAMPLE_DIM] if flat else spec.grid.dims), *_patch_dims(spec)]
    for dim in needed:
        if dim not in array.dims:
            raise PatchError(
                f"patches must have the dims {tuple(needed)}, got {array.dims}; keep the dims of "
                "the grid and of the patches"
            )
    for dim in spec.grid.dims:
        array = _in_order(array, f"{dim}_patch", f"{dim}_patch")
        array = array if flat else _in_order(array, f"{dim}_origin", dim)
    offsets = [
        _left(array, name, name, axis.offsets, f"have {axis.size} samples")
        for axis, name in zip(spec.grid, _patch_dims(spec), strict=True)
    ]
    if flat:
        origins, samples = _samples(array, spec)
    else:
        samples = None
        origins = [
            _left(array, f"{axis.dim}_origin", axis.dim, axis.origins, f"be {axis.count}")
            for axis in spec.grid
        ]
    covers = tuple(
        AxisCover(
            axis.dim, axis.length, len(inside), starts.step, inside.step,
            starts.start + inside.start, len(starts),
        )
        for axis, starts, inside in zip(spec.grid, origins, offsets, strict=True)
    )  # fmt: skip
    return Located(array, spec, covers, tuple(origins), samples)


def _in_order(array: xr.DataArray, name: str, dim: Hashable) -> xr.DataArray:
    """Bring patches, or samples of patches, back in order along a dim, as a coord tells it."""
    if name not in array.coords or array.coords[name].dims != (dim,):
        return array
    order = np.argsort(array.coords[name].values, kind="stable")
    ascending = np.arange(len(order))
    if np.array_equal(order, ascending):
        return array
    if array.chunks is not None:
        array = array.copy(data=checked_lazy(array.variable).data)
    turned = np.array_equal(order, ascending[::-1])
    return array.isel({dim: slice(None, None, -1) if turned else order})


def _patch_dims(spec: Spec) -> list[str]:
    return [f"{dim}_patch" for dim in spec.grid.dims]


def _unflatten(array: xr.DataArray, joined: Mapping[Hashable, int]) -> xr.DataArray:
    """Split the dim that flattening made."""
    length = array.sizes[FLAT_DIM]
    if length != prod(joined.values()):
        raise PatchError(
            f"patches must have {prod(joined.values())} samples along {FLAT_DIM!r}, which joins "
            f"{dict(joined)}, got {length}; extract without flatten to change them"
        )
    variable = checked_lazy(array.variable).transpose(..., FLAT_DIM)
    if variable.chunks is not None:
        variable = variable.chunk({FLAT_DIM: -1})
    data = variable.data.reshape(*variable.shape[:-1], *joined.values())
    dims = (*variable.dims[:-1], *joined)
    coords: dict[Hashable, Any] = {
        name: coord for name, coord in array.coords.items() if FLAT_DIM not in coord.dims
    }
    for axis, dim in enumerate(joined):
        if dim in array.coords and array[dim].dims == (FLAT_DIM,):
            values = array[dim].values.reshape(tuple(joined.values()))
            coords[dim] = (dim, np.moveaxis(values, axis, 0).reshape(joined[dim], -1)[:, 0])
    return xr.DataArray(data, coords, dims, array.name, array.attrs)


def _left(array: xr.DataArray, name: str, dim: Hashable, places: range, must: str) -> range:
    """Find which places of patches, or of their samples, are left along a dim, by their coord.

    Raises
    ------
    PatchError
        If it is lost and some are missing, or they are not at equal distances.
    """
    if name not in array.coords:
        if array.sizes[dim] != len(places):
            raise PatchError(
                f"patches must {must} along {dim!r}, got {array.sizes[dim]}, and no coord {name!r} "
                "that says which; keep it, or assign it"
            )
        return places
    numbers = np.asarray(array.coords[name].values)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1 or not numbers.size:
        raise PatchError(f"{name!r} must hold integers along its dim, got {numbers!r}")
    steps = np.diff(numbers)
    if (steps == 0).any():
        raise PatchError(f"{name!r} must hold every place once, got {numbers}; drop duplicates")
    if steps.size and (steps != steps[0]).any():
        raise PatchError(
            f"{name!r} must be at equal distances, got {numbers}; stack the patches along "
            f"{SAMPLE_DIM!r} to stitch any of them"
        )
    first, step = int(numbers[0]), int(steps[0]) if steps.size else places.step
    return range(first, first + step * len(numbers), step)


def _samples(array: xr.DataArray, spec: Spec) -> tuple[list[range], Array]:
    """Find the origins of the part of the grid that holds all samples, and their numbers in it."""
    count = array.sizes[SAMPLE_DIM]
    names = [f"{dim}_origin" for dim in spec.grid.dims]
    if not all(name in array.coords for name in names):
        if count != spec.grid.total:
            raise PatchError(
                f"patches must be {spec.grid.total} along {SAMPLE_DIM!r}, got {count}, and no "
                f"coords {names} that say which; keep them"
            )
        return [axis.origins for axis in spec.grid], np.arange(count)
    indices = []
    for axis, name in zip(spec.grid, names, strict=True):
        starts = np.asarray(array.coords[name].values)
        index, rest = np.divmod(starts + axis.before, axis.stride)
        if rest.any() or (index < 0).any() or (index >= axis.count).any():
            raise PatchError(
                f"{name!r} must hold origins of the grid, {axis.origins}, got others; keep the "
                "coords as they were extracted"
            )
        indices.append(index)
    if not count:
        raise PatchError(f"patches must be at least 1 along {SAMPLE_DIM!r}, got 0")
    firsts = [int(index.min()) for index in indices]
    origins = [
        axis.origins[first : int(index.max()) + 1]
        for axis, first, index in zip(spec.grid, firsts, indices, strict=True)
    ]
    inside = [index - first for index, first in zip(indices, firsts, strict=True)]
    samples = np.ravel_multi_index(inside, [*map(len, origins)])
    if np.unique(samples).size < count:
        raise PatchError(
            f"patches must be there once each, got several with the same origin along "
            f"{SAMPLE_DIM!r}; drop duplicates"
        )
    return origins, samples
