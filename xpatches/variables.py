"""Patches of one variable: NumPy in memory or lazily through dask, whichever holds it."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xpatches import labels
from xpatches.arrays import Array, check_dtype, is_dask
from xpatches.errors import PatchError
from xpatches.geometry import AxisGrid, PatchGrid, Span, clip
from xpatches.kernel import extract_block, flatten_patches, pad_block
from xpatches.plan import plan_array
from xpatches.spec import SPEC_ATTR, write_spec


def check_variable(what: str, variable: xr.Variable) -> None:
    """Refuse a variable whose samples the kernel cannot copy.

    Raises
    ------
    PatchError
        If the dtype is not of fixed width, the chunks' lengths are unknown, or the samples are
        held by another library than NumPy and dask.
    """
    check_dtype(what, variable.dtype)
    if len(set(variable.dims)) < variable.ndim:
        raise PatchError(f"{what} must have every dim once, got {variable.dims}; rename one")
    if is_dask(variable._data):
        from xpatches import lazy  # dask is loaded for dask arrays only

        lazy.check_chunks(what, variable.data)
    elif not variable._in_memory and hasattr(variable._data, "__array_function__"):
        kind = type(variable._data).__name__
        raise PatchError(f"{what} must hold NumPy or dask data, got {kind}; convert it first")


def extract_variable(
    variable: xr.Variable,
    grid: PatchGrid,
    fill_value: Array,
    label: str,
    joined: Mapping[Hashable, int],
) -> xr.Variable:
    """Extract all patches of a variable along those dims of the grid that it has.

    Parameters
    ----------
    variable
        The samples; chunked as its storage is first if it was opened without dask.
    grid
        The patches of the whole image.
    fill_value
        0-d array of the variable's dtype.
    label
        As in `Patches.extract`, for the spec.
    joined
        Dims that are flattened into one, with their lengths; empty for none.
    """
    grid = grid.restrict(variable.dims)
    data = labels.chunk_lazy(variable).data
    if is_dask(data):
        from xpatches import lazy  # dask is loaded for dask arrays only

        grids = _by_axis(variable, grid)
        plan = plan_array(grids, data.chunks, data.dtype.itemsize, flatten=bool(joined))
        patches = lazy.extract(data, plan, fill_value)
    else:
        spans = [
            Span(number, axis, -axis.before, axis.count)
            for number, axis in _by_axis(variable, grid).items()
        ]
        patches = extract_block(data, spans, fill_value)
        if joined:
            patches = flatten_patches(patches, spans[-1].axis + 1)
    dims = labels.patch_dims(variable.dims, grid, flat=bool(joined))
    spec = write_spec(variable.dims, grid, fill_value, label, joined)
    return xr.Variable(dims, patches, {**variable.attrs, SPEC_ATTR: spec}, _kept_encoding(variable))


def take_patch(
    variable: xr.Variable, samples: Mapping[Hashable, range], fill_value: Array
) -> xr.Variable:
    """Take one patch of a variable, from no more than the samples under it.

    Parameters
    ----------
    variable
        The samples.
    samples
        Source indices of the patch's samples along every dim of the grid.
    fill_value
        0-d array of the variable's dtype, for samples outside the image.
    """
    clipped = {
        dim: clip(at, variable.sizes[dim]) for dim, at in samples.items() if dim in variable.dims
    }
    inside = variable[{dim: part for dim, (_, part, _) in clipped.items()}]
    pads = {
        variable.get_axis_num(dim): (before, after) for dim, (before, _, after) in clipped.items()
    }
    if variable.chunks is not None:
        from xpatches import lazy  # dask is loaded for dask arrays only

        data = lazy.pad(inside.data, pads, fill_value)
    elif inside.size:
        data = pad_block(inside.to_numpy(), pads, fill_value)
    else:
        data = pad_block(np.empty(inside.shape, variable.dtype), pads, fill_value)
    return xr.Variable(variable.dims, data, variable.attrs, _kept_encoding(variable))


def plan_variable(variable: xr.Variable, grid: PatchGrid, fill_value: Array) -> dict[str, Any]:
    """Say how `extract_variable` will work, as `Patches.plan` documents."""
    grid = grid.restrict(variable.dims)
    data = labels.chunk_lazy(variable).data
    chunks = data.chunks if is_dask(data) else tuple((length,) for length in data.shape)
    plan = plan_array(_by_axis(variable, grid), chunks, data.dtype.itemsize)
    tasks = 1
    if is_dask(data):
        from xpatches import lazy  # dask is loaded for dask arrays only

        tasks = lazy.count_tasks(lazy.extract(data, plan, fill_value))
    axes = {axis_plan.grid.dim: axis_plan for _, axis_plan in plan.axes}
    return {
        "patches": grid.total,
        "blocks": plan.chunk_count,
        "tasks": tasks,
        "halo": {dim: list(axis.halo) for dim, axis in axes.items()},
        "source_blocks": dict(zip(variable.dims, map(list, plan.blocks), strict=True)),
        "chunks": {dim: list(axis.chunks) for dim, axis in axes.items()},
        "bytes_per_task": plan.bytes_per_task,
    }


def _kept_encoding(variable: xr.Variable) -> dict[str, Any]:
    """Keep the link to the CRS; how the image was packed and chunked does not fit its patches."""
    return {key: value for key, value in variable.encoding.items() if key == "grid_mapping"}


def _by_axis(variable: xr.Variable, grid: PatchGrid) -> dict[int, AxisGrid]:
    return {variable.dims.index(axis.dim): axis for axis in grid.axes}
