"""Patches of one variable: NumPy in memory or lazily through dask, whichever holds it."""

import sys
from collections.abc import Hashable, Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches import labels
from xpatches.arrays import Array, check_dtype, is_dask
from xpatches.errors import PatchError
from xpatches.geometry import AxisGrid, PatchGrid, Span, clip
from xpatches.kernel import extract_block, flatten_patches, pad_block
from xpatches.plan import Plan, plan_chunks, plan_regions
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
    how: Mapping[str, Any],
) -> xr.Variable:
    """Extract all patches of a variable along those dims of the grid that it has.

    Parameters
    ----------
    variable
        The samples.
    grid
        The patches of the whole image.
    fill_value
        0-d array of the variable's dtype.
    label
        As in `Patches.extract`, for the spec.
    joined
        Dims that are flattened into one, with their lengths; empty for none.
    how
        The arguments `engine` and `max_bytes` of `Patches.extract`.
    """
    grid = grid.restrict(variable.dims)
    if _in_memory(variable):
        spans = [
            Span(number, axis, -axis.before, axis.count)
            for number, axis in _by_axis(variable, grid).items()
        ]
        patches = extract_block(variable.to_numpy(), spans, fill_value)
        if joined:
            patches = flatten_patches(patches, spans[-1].axis + 1)
    else:
        _, patches = _extract_lazily(variable, grid, fill_value, bool(joined), **how)
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


def plan_variable(
    variable: xr.Variable,
    grid: PatchGrid,
    fill_value: Array,
    joined: Mapping[Hashable, int],
    how: Mapping[str, Any],
) -> dict[str, Any]:
    """Say how `extract_variable` will work, as `Patches.plan` documents."""
    grid = grid.restrict(variable.dims)
    if _in_memory(variable):
        whole = tuple((length,) for length in variable.shape)
        grids, itemsize = _by_axis(variable, grid), variable.dtype.itemsize
        plan = plan_chunks(grids, whole, itemsize, sys.maxsize, bool(joined))
        engine, tasks, budget = "numpy", 1, None
    else:
        from xpatches import lazy  # dask is loaded for lazy images only

        plan, patches = _extract_lazily(variable, grid, fill_value, bool(joined), **how)
        engine, tasks = plan.engine, lazy.count_tasks(patches)
        budget = lazy.as_budget(how["max_bytes"])
    dims = labels.patch_dims(variable.dims, grid, flat=bool(joined))
    return {
        "engine": engine,
        "patches": grid.total,
        "blocks": prod(len(axis.blocks) for axis in plan.axes),
        "tasks": tasks,
        "halo": {axis.grid.dim: list(axis.halo) for axis in plan.axes if axis.grid in grid.axes},
        "regions": {
            dim: [list(region) for region in axis.regions]
            for dim, axis in zip(variable.dims, plan.axes, strict=True)
        },
        "chunks": dict(zip(dims, map(list, plan.out_chunks), strict=True)),
        "max_bytes": budget,
        "bytes_per_task": plan.bytes_per_task,
        "read_amplification": plan.read_amplification,
    }


def _in_memory(variable: xr.Variable) -> bool:
    return variable._in_memory and not is_dask(variable._data)


def _extract_lazily(
    variable: xr.Variable,
    grid: PatchGrid,
    fill_value: Array,
    flatten: bool,
    engine: str,
    max_bytes: int | str | None,
) -> tuple[Plan, Any]:
    """Choose the engine for a variable that is not in memory, plan, and build the graph."""
    from xpatches import lazy  # dask is loaded for lazy images only

    data = labels.chunk_lazy(variable).data
    grids, budget = _by_axis(variable, grid), lazy.as_budget(max_bytes)
    given = (grids, data.chunks, data.dtype.itemsize, budget, flatten)
    if is_dask(variable._data):
        if engine == "region":
            raise PatchError(
                "engine='region' needs a source that can be sliced without computing, got a dask "
                "array; open the image with chunks=None, or use engine='map_overlap'"
            )
    elif engine != "map_overlap":
        plan = plan_regions(*given)
        if engine == "region" or plan.read_amplification < _AMPLIFICATION:
            read = partial(_read_region, variable)
            return plan, lazy.read(read, data.name, plan, fill_value)
    plan = plan_chunks(*given)
    return plan, lazy.exchange(data, plan, fill_value)


def _read_region(variable: xr.Variable, region: tuple[slice, ...]) -> Array:
    return np.asarray(variable[region].to_numpy(), variable.dtype)


_AMPLIFICATION = 1.3
"""Above it the chunks of a source that could be read by region are computed once instead."""


def _kept_encoding(variable: xr.Variable) -> dict[str, Any]:
    """Keep the link to the CRS; how the image was packed and chunked does not fit its patches."""
    return {key: value for key, value in variable.encoding.items() if key == "grid_mapping"}


def _by_axis(variable: xr.Variable, grid: PatchGrid) -> dict[int, AxisGrid]:
    return {variable.dims.index(axis.dim): axis for axis in grid.axes}
