"""The NumPy kernel: one block with its halo in, C-contiguous patches out.

Extraction moves bits. Every dtype but ``object`` comes through unchanged, nothing is promoted.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpatches.dtypes import Array, as_items
from xpatches.edges import region_of
from xpatches.extraction.small_patches import copy_by_tiles
from xpatches.geometry.boxes import Span, clip
from xpatches.geometry.grid import AxisGrid


def extract_block(
    block: Array, spans: Sequence[Span], fill_value: Array, threads: int = 1
) -> Array:
    """Copy the patches of one block.

    Parameters
    ----------
    block
        The samples, of any shape, dtype and memory order; it may be read-only.
    spans
        The patches along every spatial axis, in the order of the axes. A patch may reach outside
        the block: its samples there are `fill_value`.
    fill_value
        0-d array of the block's dtype.
    threads
        Threads to copy 64 MiB of patches or more with; less is not faster with several.

    Returns
    -------
    numpy.ndarray
        C-contiguous, of the block's dtype, and never a view of it. Each spatial axis has `count`
        patches; axes of length `size`, one per span, follow the last spatial axis.

    Examples
    --------
    >>> span = Span(0, AxisGrid("x", length=5, size=3, stride=2), first=-1, count=3)
    >>> extract_block(np.arange(1, 6), [span], np.array(0))
    array([[0, 1, 2],
           [2, 3, 4],
           [4, 5, 0]])
    """
    behind = spans[-1].axis + 1
    given = {span.axis: span for span in spans}
    # The other axes before the depth are cut into patches of one sample.
    every = [
        given.get(axis) or Span(axis, AxisGrid(axis, length, size=1, stride=1), 0, length)
        for axis, length in enumerate(block.shape[:behind])
    ]
    counts = [span.count for span in every]
    sizes = [span.grid.size for span in spans]
    patches = np.empty((*counts, *sizes, *block.shape[behind:]), block.dtype)
    if patches.size and patches.itemsize:
        pixel = math.prod(block.shape[behind:]) * block.itemsize
        run = pixel * _run(spans[-1].grid)
        runs = run >= _RUN or run == 8 or math.prod(sizes) == 1 or _apart(spans, pixel)
        threads = threads if patches.nbytes >= _LARGE else 1
        copy = _copy_runs if runs else partial(copy_by_tiles, scratch=block.nbytes // threads)
        if threads > 1:
            parts = _split(block, every, patches, 4 * patches.nbytes // _LARGE)
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda part: copy(part[0], part[1], fill_value, part[2]), parts))
        else:
            copy(block, every, fill_value, patches)
    return patches


def extract_flat(block: Array, spans: Sequence[Span], fill_value: Array, threads: int = 1) -> Array:
    """Copy the patches of one block and join the patch axes and the axes behind them."""
    patches = extract_block(block, spans, fill_value, threads)
    axis = spans[-1].axis + 1
    return patches.reshape(*patches.shape[:axis], math.prod(patches.shape[axis:]))


_LARGE = 1 << 26
"""Bytes of patches from which on several threads are faster than one."""


def _split(
    block: Array, spans: Sequence[Span], patches: Array, parts: int
) -> Iterator[tuple[Array, list[Span], Array]]:
    """Divide patches along the first axis that has several, each part with the samples it needs.

    There are more parts than threads: one may be held up, and the others take from its share.
    """
    whole = next((span for span in spans if span.count > 1), spans[0])
    before = (slice(None),) * whole.axis
    each = -(-whole.count // parts)
    for patch in range(0, whole.count, each):
        first = whole.first + patch * whole.grid.stride
        span = replace(whole, first=first, count=min(each, whole.count - patch))
        _, inside, _ = clip(span.reach, block.shape[whole.axis])
        span = replace(span, first=first - inside.start)
        yield (
            block[(*before, inside)],
            [span if other is whole else other for other in spans],
            patches[(*before, slice(patch, patch + span.count))],
        )


_RUN = 16
"""Bytes from which on a run of samples is copied as it is; 8 are as fast, others are slower."""


def _run(grid: AxisGrid) -> int:
    """Count the samples of a patch that are neighbours along the last spatial axis."""
    return grid.size if grid.rate == 1 else 1


_WIDTHS = (2, 4, 8)
"""Bytes of an item that NumPy moves at once, where it is aligned."""
_TILE = 1 << 18
"""Bytes of patches that stay in cache while their runs are copied one place after the other."""


def _apart(spans: Sequence[Span], pixel: int) -> bool:
    """Whether no patches overlap, but for rates, and their runs are items that NumPy moves fast."""
    run, grid = pixel * _run(spans[-1].grid), spans[-1].grid
    apart = all(span.grid.stride >= span.grid.size for span in spans)
    return apart and run in _WIDTHS and grid.stride * pixel % run == 0


def _copy_runs(block: Array, spans: Sequence[Span], fill_value: Array, patches: Array) -> None:
    """Copy every run of neighbouring samples as one item.

    They go in the order of the result, or, where that would be short loops over short items, place
    by place: the first runs of all patches of a tile, then the second ones.
    """
    region, _ = region_of(block, spans, fill_value)
    last = len(spans) - 1
    if not region[(0,) * last].flags.c_contiguous:
        region = np.ascontiguousarray(region)
    pixel = math.prod(region.shape[last + 1 :])
    rows = region.reshape(*region.shape[:last], -1)
    steps = (*rows.strides[:last], pixel * region.itemsize)
    run = _run(spans[-1].grid)
    sizes = [span.grid.size for span in spans]
    sizes[-1] //= run
    view = as_strided(
        rows,
        (*(span.count for span in spans), *sizes, run * pixel),
        (
            *(span.grid.stride * step for span, step in zip(spans, steps, strict=True)),
            *(span.grid.rate * step for span, step in zip(spans, steps, strict=True)),
            region.itemsize,
        ),
        writeable=False,
    )
    items = as_items(run * pixel * region.itemsize)
    source, target = view.view(items)[..., 0], patches.reshape(view.shape).view(items)[..., 0]
    if not _apart(spans, pixel * region.itemsize):
        np.copyto(target, source)
        return
    whole = next((axis for axis, span in enumerate(spans) if span.count > 1), 0)
    count = spans[whole].count
    each = max(1, _TILE * count // target.nbytes)
    for row in range(0, count, each):
        part = (slice(None),) * whole + (slice(row, row + each),)
        for place in np.ndindex(*sizes):
            np.copyto(target[part][(..., *place)], source[part][(..., *place)])
