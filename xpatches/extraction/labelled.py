"""Patches of one variable: NumPy in memory or lazily through dask, whichever holds it."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import xarray as xr

from xpatches.dtypes import Array, is_dask
from xpatches.errors import PatchError
from xpatches.extraction.kernel import extract_block, extract_flat
from xpatches.extraction.plan import Plan, plan_blocks, plan_whole
from xpatches.geometry.blocks import Form, Kernel
from xpatches.geometry.grid import PatchGrid
from xpatches.images import labels
from xpatches.images.even_labels import Line
from xpatches.images.packing import kept_encoding
from xpatches.images.samples import Source, by_axis, in_memory, source_of
from xpatches.images.spec import SPEC_ATTR, write_spec
from xpatches.private_names import held
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
    source, plan = _planned(variable, grid, form, engine, max_bytes, patch_bytes)
    return source.run(plan.blocks, kernel, dtype)


def _planned(
    variable: xr.Variable,
    grid: PatchGrid,
    form: Form,
    engine: str,
    max_bytes: int | str | None,
    patch_bytes: int | None = None,
) -> tuple[Source, Plan]:
    """Plan for a variable as `run` runs it."""
    source, grids, itemsize = source_of(variable), by_axis(variable, grid), variable.dtype.itemsize
    if source.in_memory:
        return source, plan_whole(grids, variable.shape, itemsize, form)
    from xpatches.lazy.sources import as_budget  # dask is loaded for lazy images only

    parts = (grids, source.chunks, itemsize, as_budget(max_bytes), form, patch_bytes)
    if engine == "region" and source.read is None:
        raise PatchError(
            "engine='region' needs an image that can be sliced without computing, got a dask "
            "array that is computed; open it with chunks=None, or use engine='map_overlap'"
        )
    opened = source.read is not None and not is_dask(held(variable))
    if engine == "region" or (engine == "auto" and opened):
        plan = plan_blocks("region", *parts)
        if engine == "region" or plan.read_amplification < _MOST_READ:
            return source, plan
    return replace(source, read=None), plan_blocks("map_overlap", *parts)


def plan_variable(
    variable: xr.Variable,
    grid: PatchGrid,
    form: Form,
    how: Mapping[str, Any],
    patch_bytes: int | None = None,
) -> dict[str, Any]:
    """Say how `run` will work, as `Patches.plan` documents."""
    grid = grid.arrange(variable.dims)
    source, plan = _planned(variable, grid, form, **how, patch_bytes=patch_bytes)
    (tasks, image_tasks), budget = source.tasks(plan.blocks), None
    if not source.in_memory:
        from xpatches.lazy.sources import as_budget  # dask is loaded for lazy images only

        budget = as_budget(how["max_bytes"])
    dims = variable.dims
    if form != "reduced":
        dims = labels.patch_dims(dims, grid, flat=form == "flat")
    return {
        "engine": "numpy" if source.in_memory else plan.engine,
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
