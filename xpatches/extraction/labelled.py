"""Patches of one variable: NumPy in memory or lazily through dask, whichever holds it."""

import sys
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from math import prod
from typing import Any

import xarray as xr

from xpatches.dtypes import Array, is_dask
from xpatches.errors import PatchError
from xpatches.extraction.kernel import extract_block, extract_flat
from xpatches.extraction.plan import Plan, plan_blocks
from xpatches.geometry.blocks import Form, Kernel
from xpatches.geometry.boxes import Span
from xpatches.geometry.grid import PatchGrid
from xpatches.images import labels
from xpatches.images.lines import Line
from xpatches.images.packing import kept_encoding
from xpatches.images.samples import _by_axis, chunk_lazy, in_memory, sliceable
from xpatches.images.spec import SPEC_ATTR, write_spec
from xpatches.threads import available_threads


def extract_variable(
    variable: xr.Variable,
    grid: PatchGrid,
    fill_value: Array,
    label: str,
    joined: Mapping[Hashable, int],
    even: Mapping[Hashable, Line],
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
    even
        The coords whose labels are evenly spaced, for the spec.
    how
        The arguments `engine` and `max_bytes` of `Patches.extract`.
    """
    numbered, grid = grid.restrict(variable.dims), grid.arrange(variable.dims)
    copy = extract_flat if joined else extract_block
    threads = available_threads() if in_memory(variable) else 1  # dask has its own
    kernel = partial(copy, fill_value=fill_value, threads=threads)
    form: Form = "flat" if joined else "grid"
    patches = run(variable, grid, kernel, variable.dtype, form, **how)
    dims = labels.patch_dims(variable.dims, grid, flat=bool(joined))
    attrs = variable.attrs
    spec = write_spec(variable.dims, numbered, fill_value, label, joined, even=even, attrs=attrs)
    return xr.Variable(dims, patches, {**attrs, SPEC_ATTR: spec}, kept_encoding(variable))


def run(
    variable: xr.Variable,
    grid: PatchGrid,
    kernel: Kernel,
    dtype: Any,
    form: Form,
    engine: str,
    max_bytes: int | str | None,
    patch_bytes: int | None = None,
) -> Any:
    """Run a kernel on a variable: at once where it is in memory, lazily where it is not.

    Parameters
    ----------
    variable
        The samples.
    grid
        The patches along the variable's own dims.
    kernel, dtype
        Makes the result from a block and the patches along its axes, and the result's dtype.
    form, patch_bytes
        What the kernel makes, for the plan.
    engine, max_bytes
        As in `Patches.extract`.

    Returns
    -------
    numpy.ndarray or dask.array.Array
    """
    if in_memory(variable):
        grids = _by_axis(variable, grid)
        spans = [Span(axis, of, -of.before, of.count) for axis, of in grids.items()]
        return kernel(variable.to_numpy(), spans)
    from xpatches.lazy import graphs as lazy  # dask is loaded for lazy images only

    data, plan, read = _planned(variable, grid, form, engine, max_bytes, patch_bytes)
    if read is not None:
        return lazy.read(read, data.name, plan.blocks, kernel, dtype)
    return lazy.exchange(data, plan.blocks, kernel, dtype)


def _planned(
    variable: xr.Variable,
    grid: PatchGrid,
    form: Form,
    engine: str,
    max_bytes: int | str | None,
    patch_bytes: int | None = None,
) -> tuple[Any, Plan, Callable[[tuple[slice, ...]], Array] | None]:
    """Plan for a variable that is not in memory, as `run` runs it.

    Returns
    -------
    data : dask.array.Array
        The samples, in the chunks of the storage.
    plan : Plan
    read : callable or None
        What reads regions of them, for the engine "region".
    """
    from xpatches.lazy.sources import as_budget  # dask is loaded for lazy images only

    data = chunk_lazy(variable).data
    budget = as_budget(max_bytes)
    grids = _by_axis(variable, grid)
    given = (grids, data.chunks, data.dtype.itemsize, budget, form, patch_bytes)
    if engine != "map_overlap":
        dask, read = is_dask(variable._data), sliceable(variable, data)
        if engine == "region" and read is None:
            raise PatchError(
                "engine='region' needs an image that can be sliced without computing, got a dask "
                "array that is computed; open it with chunks=None, or use engine='map_overlap'"
            )
        if read is not None and (engine == "region" or not dask):
            plan = plan_blocks("region", *given)
            if engine == "region" or plan.read_amplification < _MOST_READ:
                return data, plan, read
    return data, plan_blocks("map_overlap", *given), None


def plan_variable(
    variable: xr.Variable,
    grid: PatchGrid,
    form: Form,
    how: Mapping[str, Any],
    patch_bytes: int | None = None,
) -> dict[str, Any]:
    """Say how `run` will work, as `Patches.plan` documents."""
    grid = grid.arrange(variable.dims)
    tasks, image_tasks, budget = 1, 0, None
    if in_memory(variable):
        grids, whole = _by_axis(variable, grid), tuple((length,) for length in variable.shape)
        given = (grids, whole, variable.dtype.itemsize, sys.maxsize, form, patch_bytes)
        plan = plan_blocks("map_overlap", *given)
    else:
        from xpatches.lazy import graphs as lazy  # dask is loaded for lazy images only
        from xpatches.lazy.sources import as_budget  # dask is loaded for lazy images only

        data, plan, read = _planned(variable, grid, form, **how, patch_bytes=patch_bytes)
        if read is None:
            tasks, image_tasks = lazy.exchanged_tasks(data, plan.blocks), len(data.__dask_graph__())
        else:
            tasks = lazy.read_tasks(plan.blocks)
        budget = as_budget(how["max_bytes"])
    dims = variable.dims
    if form != "reduced":
        dims = labels.patch_dims(dims, grid, flat=form == "flat")
    return {
        "engine": "numpy" if in_memory(variable) else plan.engine,
        "patches": grid.total,
        "blocks": prod(len(axis.blocks) for axis in plan.axes),
        "tasks": tasks,
        "image_tasks": image_tasks,
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


_MOST_READ = 1.3
"""Read amplification from which on a source is read chunk by chunk, though regions could be."""
