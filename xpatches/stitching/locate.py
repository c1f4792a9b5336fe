"""Where the patches of an array lie: its geometry, from its spec and the coords it still has."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.dtypes import Array, is_dask
from xpatches.errors import PatchError
from xpatches.geometry.coverage import AxisCover
from xpatches.geometry.grid import AxisGrid
from xpatches.images.labels import FLAT_DIM, SAMPLE_DIM
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
    def counts(self) -> dict[Hashable, int]:
        """Number of patches per spatial dim."""
        return {cover.dim: cover.count for cover in self.covers}

    @property
    def labels(self) -> dict[Hashable, tuple[range, Array]]:
        """Where labels lie along the spatial dims that have them, in half samples, and the labels.

        Where a patch is missing that nothing else tells the label of, there are none.
        """
        found = {}
        for number, (axis, origins) in enumerate(zip(self.spec.grid, self.origins, strict=True)):
            along = axis.dim if self.samples is None else SAMPLE_DIM
            if axis.dim not in self.array.coords or self.array[axis.dim].dims != (along,):
                continue
            values = self.array[axis.dim].to_numpy()
            if self.samples is not None:
                index = np.unravel_index(self.samples, tuple(self.counts.values()))[number]
                kept, first = np.unique(index, return_index=True)
                if len(kept) < len(origins):
                    continue
                values = values[first]
            at = label_positions(axis, origins, self.spec.label, values.dtype.kind)
            found[axis.dim] = at, values
        return found

    @cached_property
    def in_order(self) -> bool:
        """Whether the patches along ``sample`` are all of the grid, in its order."""
        total = prod(self.counts.values())
        return self.samples is None or np.array_equal(self.samples, np.arange(total))

    @property
    def lacking(self) -> int:
        """How many patches of the grid there are not."""
        there = prod(self.counts.values()) if self.samples is None else len(self.samples)
        return prod(self.counts.values()) - there

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Dims of the patches, those of the grid instead of ``sample``."""
        grid = self.spec.grid.dims if self.samples is not None else ()
        return tuple(
            dim for of in self.array.dims for dim in (grid if of == SAMPLE_DIM and grid else (of,))
        )

    @property
    def result_dims(self) -> tuple[Hashable, ...]:
        """Dims of the image that is stitched: the source's in their order, new ones last."""
        left = [dim for dim in self.dims if dim not in _patch_dims(self.spec)]
        if self.samples is None:
            return tuple(left)
        known = [dim for dim in self.spec.dims if dim in left]
        return (*known, *(dim for dim in left if dim not in known))


def label_positions(axis: AxisGrid, origins: range, label: str, kind: str) -> range:
    """Find where labels of patches lie, in half samples of the image.

    The middle of a patch of an even effective size is between two samples, and so are labels that
    are numbers or times; others are those of the sample before.

    Examples
    --------
    >>> axis = AxisGrid("x", length=9, size=4, stride=2)
    >>> [label_positions(axis, axis.origins, "center", kind) for kind in "fU"]
    [range(3, 15, 4), range(2, 14, 4)]
    """
    shift = axis.effective_size - 1 if label == "center" else 0
    if kind not in "iufcmM":
        shift -= shift % 2
    return range(2 * origins.start + shift, 2 * origins.stop + shift, 2 * origins.step)


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
    taps = [_taps(array, axis) for axis in spec.grid]
    if flat:
        found, samples = _samples(array, spec)
    else:
        found, samples = [_along(array, axis) for axis in spec.grid], None
    covers = tuple(
        AxisCover(
            axis.dim, axis.length, array.sizes[f"{axis.dim}_patch"], step, rate, origin + shift, n
        )
        for axis, (origin, step, n), (shift, rate) in zip(spec.grid, found, taps, strict=True)
    )
    origins = tuple(range(origin, origin + step * n, step) for origin, step, n in found)
    return Located(array, spec, covers, origins, samples)


def _in_order(array: xr.DataArray, name: str, dim: Hashable) -> xr.DataArray:
    """Bring patches, or samples of patches, back in order along a dim, as a coord tells it."""
    if name not in array.coords or array.coords[name].dims != (dim,):
        return array
    order = np.argsort(array.coords[name].values, kind="stable")
    ascending = np.arange(len(order))
    if np.array_equal(order, ascending):
        return array
    if is_dask(array.variable._data):
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
        name: of for name, of in array.coords.items() if FLAT_DIM not in of.dims
    }
    for axis, dim in enumerate(joined):
        if dim in array.coords and array[dim].dims == (FLAT_DIM,):
            values = array[dim].values.reshape(tuple(joined.values()))
            coords[dim] = (dim, np.moveaxis(values, axis, 0).reshape(joined[dim], -1)[:, 0])
    return xr.DataArray(data, coords, dims, array.name, array.attrs)


def _taps(array: xr.DataArray, axis: AxisGrid) -> tuple[int, int]:
    """Find the first offset and the rate of the samples that are left of a patch."""
    name = f"{axis.dim}_patch"
    if name not in array.coords:
        if array.sizes[name] != axis.size:
            raise PatchError(
                f"patches must have {axis.size} samples along {name!r}, got {array.sizes[name]}, "
                f"and no coord {name!r} that says which; keep it, or assign it"
            )
        return 0, axis.rate
    first, step = _progression(name, array.coords[name].values, axis.rate)
    return first, step


def _along(array: xr.DataArray, axis: AxisGrid) -> tuple[int, int, int]:
    """Find the first origin, the stride and the number of the patches that are left along a dim."""
    count, name = array.sizes[axis.dim], f"{axis.dim}_origin"
    if name not in array.coords:
        if count != axis.count:
            raise PatchError(
                f"patches must be {axis.count} along {axis.dim!r}, got {count}, and no coord "
                f"{name!r} that says which; keep it"
            )
        return -axis.before, axis.stride, count
    first, step = _progression(name, array.coords[name].values, axis.stride)
    return first, step, count


def _progression(name: str, values: Any, step: int) -> tuple[int, int]:
    """Give the first and the step of integers at equal distances; the step given if there is one.

    Raises
    ------
    PatchError
        If they are not.
    """
    numbers = np.asarray(values)
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
    return int(numbers[0]), int(steps[0]) if steps.size else step


def _samples(array: xr.DataArray, spec: Spec) -> tuple[list[tuple[int, int, int]], Array]:
    """Find the part of the grid that holds all samples, and their numbers in it."""
    indices = []
    count = array.sizes[SAMPLE_DIM]
    names = [f"{dim}_origin" for dim in spec.grid.dims]
    if not all(name in array.coords for name in names):
        if count != spec.grid.total:
            raise PatchError(
                f"patches must be {spec.grid.total} along {SAMPLE_DIM!r}, got {count}, and no "
                f"coords {names} that say which; keep them"
            )
        found = [(-axis.before, axis.stride, axis.count) for axis in spec.grid]
        return found, np.arange(count)
    for axis, name in zip(spec.grid, names, strict=True):
        origins = np.asarray(array.coords[name].values)
        index, rest = np.divmod(origins + axis.before, axis.stride)
        if rest.any() or (index < 0).any() or (index >= axis.count).any():
            raise PatchError(
                f"{name!r} must hold origins of the grid, {axis.origins}, got others; keep the "
                "coords as they were extracted"
            )
        indices.append(index)
    if not count:
        raise PatchError(f"patches must be at least 1 along {SAMPLE_DIM!r}, got 0")
    found, shape = [], []
    for number, axis in enumerate(spec.grid):
        first, last = int(indices[number].min()), int(indices[number].max())
        indices[number] = indices[number] - first
        shape.append(last - first + 1)
        found.append((first * axis.stride - axis.before, axis.stride, shape[-1]))
    samples = np.ravel_multi_index(indices, shape)
    if np.unique(samples).size < count:
        raise PatchError(
            f"patches must be there once each, got several with the same origin along "
            f"{SAMPLE_DIM!r}; drop duplicates"
        )
    return found, samples
