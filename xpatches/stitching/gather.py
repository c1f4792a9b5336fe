"""Gather the patches over every block of an image: at once in memory, lazily through dask.

Where patches were opened, a block reads those over it; where they are computed, chunks exchange
them. Patches along one dim, ``sample``, are laid along the dims of the grid first.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from xpatches.dtypes import Array
from xpatches.geometry.blocks import BlockPlan, Kernel
from xpatches.images.labels import SAMPLE_DIM
from xpatches.images.samples import Reader, Source, in_memory, source_of
from xpatches.stitching.kernel import Stitching, stitch_block
from xpatches.stitching.locate import Located
from xpatches.stitching.plan import plan_stitch
from xpatches.threads import available_threads

_LARGE = 1 << 25
"""Bytes of patches in memory from which on several threads are faster than one."""


def gather(located: Located, stitching: Stitching, max_bytes: int | str | None) -> Any:
    """Stitch at once what is in memory, lazily what is not."""
    variable = located.array.variable
    if in_memory(variable):
        axes, _, kernel = _kernel(located, stitching, located.result_dims)
        along = [axis for axis, _ in axes]
        return _in_memory(_as_grid(located, variable.to_numpy()), located, along, kernel)
    source, blocks, kernel = plan_gathering(located, stitching, max_bytes)
    return source.run(blocks, kernel, stitching.dtype)


def plan_gathering(
    located: Located,
    stitching: Stitching,
    max_bytes: int | str | None,
    dims: Sequence[Hashable] | None = None,
    units: Mapping[Hashable, int] = MappingProxyType({}),
) -> tuple[Source, BlockPlan, Kernel]:
    """Plan to stitch patches that are not in memory: from which source, by blocks, by a kernel.

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
    from xpatches.lazy.sources import as_budget  # dask is loaded for lazy patches only

    axes, order, kernel = _kernel(located, stitching, dims or located.result_dims)
    source = _on_grid(located)
    plan = plan_stitch(
        "map_overlap" if source.read is None else "region",
        axes,
        located.covers,
        order,
        source.chunks,
        located.array.dtype.itemsize,
        stitching.dtype.itemsize,
        as_budget(max_bytes),
        units,
    )
    return source, plan, kernel


def _on_grid(located: Located) -> Source:
    """Lay patches that are not in memory along the dims of the grid."""
    from xpatches.lazy import graphs as lazy  # dask is loaded for lazy patches only

    variable, counts = located.array.variable, located.counts
    source = source_of(variable)
    if located.samples is None:
        return source
    axis = variable.get_axis_num(SAMPLE_DIM)
    if source.read is None or not located.in_order:
        grid = lazy.as_grid(source.data, axis, counts, located.samples)
        return Source(grid, grid.chunks)
    grid_chunks = lazy.grid_chunks(source.chunks[axis], counts)
    return Source(
        source.data,
        (*source.chunks[:axis], *grid_chunks, *source.chunks[axis + 1 :]),
        partial(_read_grid, source.read, axis, counts),
        f"{source.token}-{axis}-{'-'.join(map(str, counts))}",
    )


def _kernel(
    located: Located, stitching: Stitching, result: Sequence[Hashable]
) -> tuple[list[tuple[int, int]], list[int], Kernel]:
    """Give axes and order as in `plan_stitch`, and what makes a block."""
    dims = located.dims
    axes = [(dims.index(c.dim), dims.index(f"{c.dim}_patch")) for c in located.covers]
    order = [dims.index(dim) for dim in result]
    kernel = partial(stitch_block, axes=axes, order=order, stitching=stitching)
    if located.samples is not None and not located.in_order:
        present = np.zeros(prod(located.counts), bool)
        present[located.samples] = True
        kernel = partial(kernel, present=present.reshape(located.counts))
    return axes, order, kernel


def _in_memory(
    patches: Array, located: Located, axes: Sequence[int], kernel: Callable[..., Array]
) -> Array:
    """Stitch patches in memory; many with several threads, each a part of the first spatial dim."""
    threads = available_threads() if patches.nbytes >= _LARGE else 1
    first, *others = located.covers
    each = -(-first.length // (4 * threads)) if threads > 1 else first.length
    edges = [*range(0, first.length, each), first.length]

    def part(start: int, stop: int) -> Array:
        blocks = (first.block(start, stop), *(cover.block(0, cover.length) for cover in others))
        by_axis = dict(sorted(zip(axes, blocks, strict=True)))
        taken = [slice(None)] * patches.ndim
        for axis, block in by_axis.items():
            taken[axis] = block.numbers
        return kernel(patches[tuple(taken)], [*by_axis.values()])

    if len(edges) == 2:
        return part(*edges)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(part, edges, edges[1:]))
    return np.concatenate(parts, located.result_dims.index(first.dim))


def _as_grid(located: Located, patches: Array) -> Array:
    """Lay patches along the dims of the grid; those that are missing are zeros."""
    if located.samples is None:
        return patches
    axis, counts = located.array.get_axis_num(SAMPLE_DIM), located.counts
    shape = (*patches.shape[:axis], *counts, *patches.shape[axis + 1 :])
    if located.in_order:
        return patches.reshape(shape)
    grid = np.zeros(shape, patches.dtype)
    places = np.unravel_index(located.samples, counts)
    grid[(slice(None),) * axis + places] = patches
    return grid


def _read_grid(read: Reader, axis: int, counts: Sequence[int], region: tuple[slice, ...]) -> Array:
    """Read a box of the grid from patches that lie along one axis, run by run."""
    box = region[axis : axis + len(counts)]
    lengths = [along.stop - along.start for along in box]
    # Dims behind the last one that is cut are whole: one run goes over all of them.
    cut = max((at for at, count in enumerate(counts) if lengths[at] < count), default=0)
    starts = [range(along.start, along.stop) for along in box[:cut]]
    corners = product(*starts, *([along.start] for along in box[cut:])) if all(lengths) else ()
    firsts = [int(np.ravel_multi_index(corner, counts)) for corner in corners]
    runs = [slice(first, first + prod(lengths[cut:])) for first in firsts] or [slice(0, 0)]
    parts = [read((*region[:axis], run, *region[axis + len(counts) :])) for run in runs]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
    return joined.reshape(*joined.shape[:axis], *lengths, *joined.shape[axis + 1 :])
