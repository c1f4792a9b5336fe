"""Gather the patches over every block of an image: at once in memory, lazily through dask.

Where patches were opened, a block reads those over it; where they are computed, chunks exchange
them. Patches along one dim, ``sample``, are laid along the dims of the grid first.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from xpatches.dtypes import Array
from xpatches.geometry.blocks import Kernel
from xpatches.images.labels import SAMPLE_DIM
from xpatches.images.samples import chunk_lazy, in_memory, sliceable
from xpatches.stitching.kernel import Stitching, stitch_block
from xpatches.stitching.locate import Located
from xpatches.stitching.plan import StitchPlan, plan_stitch
from xpatches.threads import available_threads

_LARGE = 1 << 25
"""Bytes of patches in memory from which on several threads are faster than one."""


@dataclass(frozen=True)
class Gathering:
    """How an image is stitched from patches that are not in memory."""

    data: Any
    """The patches, a dask array."""
    read: Callable[[tuple[slice, ...]], Array] | None
    """What reads regions of them, along the dims of the grid, where they were opened."""
    token: str
    plan: StitchPlan
    kernel: Kernel


def gather(located: Located, stitching: Stitching, max_bytes: int | str | None) -> Any:
    """Stitch at once what is in memory, lazily what is not."""
    variable = located.array.variable
    if in_memory(variable):
        axes, _, kernel = _kernel(located, stitching, located.result_dims)
        along = [axis for axis, _ in axes]
        return _in_memory(_as_grid(located, variable.to_numpy()), located, along, kernel)
    return stitched(plan_gathering(located, stitching, max_bytes), stitching.dtype)


def stitched(of: Gathering, dtype: np.dtype[Any]) -> Any:
    """Stitch lazily."""
    from xpatches.lazy import graphs as lazy  # dask is loaded for lazy patches only

    if of.read is None:
        return lazy.exchange(of.data, of.plan.blocks, of.kernel, dtype)
    return lazy.read(of.read, of.token, of.plan.blocks, of.kernel, dtype)


def plan_gathering(
    located: Located,
    stitching: Stitching,
    max_bytes: int | str | None,
    dims: Sequence[Hashable] | None = None,
    units: Mapping[Hashable, int] = MappingProxyType({}),
) -> Gathering:
    """Plan to stitch patches that are not in memory.

    Parameters
    ----------
    located, stitching
        The patches, and what to make of them.
    max_bytes
        Budget of a task.
    dims
        Of the result, in order; `Located.result_dims` if None.
    units
        What the lengths of a block are to be multiples of, by dim.
    """
    from xpatches.lazy import graphs as lazy  # dask is loaded for lazy patches only
    from xpatches.lazy.sources import as_budget  # dask is loaded for lazy patches only

    variable = located.array.variable
    axes, order, kernel = _kernel(located, stitching, dims or located.result_dims)
    counts = tuple(located.counts.values())
    data = chunk_lazy(variable).data
    read = sliceable(variable, data)
    token, chunks = data.name, data.chunks
    if located.samples is not None:
        axis = variable.get_axis_num(SAMPLE_DIM)
        if read is not None and located.in_order:
            read = partial(_read_grid, read, axis, counts)
            token = f"{token}-{axis}-{'-'.join(map(str, counts))}"
            chunks = (*chunks[:axis], *lazy.grid_chunks(chunks[axis], counts), *chunks[axis + 1 :])
        else:
            read = None
            data = lazy.as_grid(data, axis, counts, located.samples)
            chunks = data.chunks
    by_axis = {
        axis: units[cover.dim]
        for (axis, _), cover in zip(axes, located.covers, strict=True)
        if cover.dim in units
    }
    plan = plan_stitch(
        "map_overlap" if read is None else "region",
        axes,
        located.covers,
        order,
        chunks,
        data.dtype.itemsize,
        stitching.dtype.itemsize,
        as_budget(max_bytes),
        by_axis,
    )
    return Gathering(data, read, token, plan, kernel)


def _kernel(
    located: Located, stitching: Stitching, result: Sequence[Hashable]
) -> tuple[list[tuple[int, int]], list[int], Kernel]:
    """Give axes and order as in `StitchPlan`, and what makes a block."""
    dims = located.dims
    axes = [(dims.index(c.dim), dims.index(f"{c.dim}_patch")) for c in located.covers]
    order = [dims.index(dim) for dim in result]
    kernel = partial(stitch_block, axes=axes, order=order, stitching=stitching)
    if located.samples is not None and not located.in_order:
        present = np.zeros(prod(located.counts.values()), bool)
        present[located.samples] = True
        kernel = partial(kernel, present=present.reshape([*located.counts.values()]))
    return axes, order, kernel


def _in_memory(
    patches: Array, located: Located, axes: Sequence[int], kernel: Callable[..., Array]
) -> Array:
    """Stitch patches in memory; many with several threads, each a part of the first spatial dim."""
    threads = available_threads() if patches.nbytes >= _LARGE else 1
    first = located.covers[0]
    each = -(-first.length // (4 * threads)) if threads > 1 else first.length
    edges = [*range(0, first.length, each), first.length]
    ranks = np.argsort(axes)  # the kernel takes covers in the order of the axes

    def part(start: int, stop: int) -> Array:
        blocks = [(start, stop), *((0, cover.length) for cover in located.covers[1:])]
        taken = [slice(None)] * patches.ndim
        for axis, cover, block in zip(axes, located.covers, blocks, strict=True):
            over = cover.over(*block)
            taken[axis] = slice(over.start, over.stop)
        covers = [c.block(*block) for c, block in zip(located.covers, blocks, strict=True)]
        return kernel(patches[tuple(taken)], [covers[rank] for rank in ranks])

    if len(edges) == 2:
        return part(*edges)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(part, edges, edges[1:]))
    return np.concatenate(parts, located.result_dims.index(first.dim))


def _as_grid(located: Located, patches: Array) -> Array:
    """Lay patches along the dims of the grid; those that are missing are zeros."""
    if located.samples is None:
        return patches
    axis, counts = located.array.get_axis_num(SAMPLE_DIM), tuple(located.counts.values())
    shape = (*patches.shape[:axis], *counts, *patches.shape[axis + 1 :])
    if located.in_order:
        return patches.reshape(shape)
    full = np.zeros(shape, patches.dtype)
    places = np.unravel_index(located.samples, counts)
    full[(slice(None),) * axis + places] = patches
    return full


def _read_grid(
    read: Callable[[tuple[slice, ...]], Array],
    axis: int,
    counts: Sequence[int],
    region: tuple[slice, ...],
) -> Array:
    """Read a box of the grid from patches that lie along one axis, run by run."""
    box = region[axis : axis + len(counts)]
    lengths = [of.stop - of.start for of in box]
    before, behind = region[:axis], region[axis + len(counts) :]
    parts = []
    whole = [n == count for n, count in zip(lengths, counts, strict=True)]
    # Dims behind the last one that is cut are whole: one run goes over all of them.
    cut = max((number for number, of in enumerate(whole) if not of), default=0)
    length = lengths[cut] * prod(counts[cut + 1 :])
    for index in np.ndindex(*lengths[:cut]):
        first = 0
        for number, count in enumerate(counts):
            start = box[number].start + (index[number] if number < cut else 0)
            first = first * count + start
        parts.append(read((*before, slice(first, first + length), *behind)))
    if not parts:
        parts = [read((*before, slice(0, 0), *behind))]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
    return joined.reshape(*joined.shape[:axis], *lengths, *joined.shape[axis + 1 :])
