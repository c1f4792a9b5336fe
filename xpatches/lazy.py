"""Patches of dask arrays: the only module that knows dask.

`extract` is dask's ``map_overlap`` in its two halves, the halo exchange (``overlap``) and
``map_blocks``. Between them a haloed block may be handed to several chunks of the result: that is
how chunks shorter than the halo keep their size. dask would rechunk silently there, so the plan
has fixed every chunk beforehand and ``allow_rechunk=False`` holds dask to it. The edges of the
image are padded in the kernel, which costs no task.
"""

from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
from dask.base import optimize

from xpatches.arrays import Array
from xpatches.errors import PatchError
from xpatches.geometry import AxisGrid, Span
from xpatches.kernel import extract_block, flatten_patches, pad_block
from xpatches.plan import Plan


def check_chunks(what: str, array: Any) -> None:
    """Refuse a dask array of unknown shape, or one whose chunks are not NumPy arrays.

    Raises
    ------
    PatchError
        If a chunk's length is unknown, or the chunks are of another array library.
    """
    if any(np.isnan(length) for lengths in array.chunks for length in lengths):
        raise PatchError(f"{what} has chunks of unknown length; call compute_chunk_sizes() first")
    if type(array._meta) is not np.ndarray:
        kind = type(array._meta).__name__
        raise PatchError(
            f"{what} must hold NumPy chunks, got {kind}; convert it first with map_blocks"
        )


def extract(array: Any, plan: Plan, fill_value: Array) -> Any:
    """Build the graph that extracts all patches of a dask array; nothing is read or computed.

    Parameters
    ----------
    array : dask.array.Array
        The image.
    plan
        The plan made for the array's chunks.
    fill_value
        0-d array of the array's dtype.

    Returns
    -------
    dask.array.Array
        As `xpatches.kernel.extract_block`, in ``plan.out_chunks``.
    """
    array = array.rechunk(plan.blocks)
    if plan.depth:
        array = da.overlap.overlap(array, plan.depth, boundary="none", allow_rechunk=False)
    for axis, axis_plan in plan.axes:
        if axis_plan.parents != tuple(range(len(axis_plan.blocks))):
            array = array.blocks[(slice(None),) * axis + (list(axis_plan.parents),)]
    behind, joined = plan.patch_axis, range(plan.patch_axis, array.ndim)
    return array.map_blocks(
        _extract_chunk,
        axes=tuple((axis, axis_plan.grid, axis_plan.spans) for axis, axis_plan in plan.axes),
        fill_value=fill_value,
        flatten=plan.flatten,
        drop_axis=list(joined) if plan.flatten else [],
        new_axis=[behind] if plan.flatten else list(range(behind, behind + len(plan.axes))),
        **_result(plan.out_chunks, array.dtype),
    )


def pad(array: Any, pads: Mapping[int, tuple[int, int]], fill_value: Array) -> Any:
    """Build the graph of `xpatches.kernel.pad_block`, in one chunk along the axes of `pads`."""
    array = array.rechunk(dict.fromkeys(pads, -1))
    chunks = list(array.chunks)
    for axis, (before, after) in pads.items():
        chunks[axis] = (before + array.shape[axis] + after,)
    return array.map_blocks(
        pad_block, pads=dict(pads), fill_value=fill_value, **_result(tuple(chunks), array.dtype)
    )


def count_tasks(array: Any) -> int:
    """Tasks of a dask array's graph after optimisation, its source's included."""
    (optimized,) = optimize(array)
    return len(optimized.__dask_graph__())


def _extract_chunk(
    block: Array,
    axes: tuple[tuple[int, AxisGrid, tuple[tuple[int, int], ...]], ...],
    fill_value: Array,
    flatten: bool,
    block_id: tuple[int, ...],
) -> Array:
    spans = [Span(axis, grid, *starts[block_id[axis]]) for axis, grid, starts in axes]
    patches = extract_block(block, spans, fill_value)
    return flatten_patches(patches, spans[-1].axis + 1) if flatten else patches


def _result(chunks: tuple[tuple[int, ...], ...], dtype: Any) -> dict[str, Any]:
    """Tell `map_blocks` what it would otherwise guess."""
    return {"chunks": chunks, "dtype": dtype, "meta": np.empty((0,) * len(chunks), dtype)}
