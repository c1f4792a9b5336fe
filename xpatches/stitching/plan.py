"""Which patches lie over which block of the image that they are stitched into."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from xpatches.errors import PatchError
from xpatches.geometry.blocks import AxisBlocks, BlockPlan, Engine
from xpatches.geometry.coverage import AxisCover
from xpatches.geometry.lengths import grow, shrink


def plan_stitch(
    engine: Engine,
    axes: Sequence[tuple[int, int]],
    covers: Sequence[AxisCover],
    order: Sequence[int],
    chunks: tuple[tuple[int, ...], ...],
    itemsize: int,
    out_itemsize: int,
    max_bytes: int,
    units: Mapping[Hashable, int] = MappingProxyType({}),
) -> BlockPlan:
    """Plan how an image is stitched, block by block, from an array of patches.

    Parameters
    ----------
    engine
        ``"map_overlap"`` for patches of a dask array, ``"region"`` for those that can be sliced.
    axes
        For every spatial dim, the axis of the patches along the grid and the one along the samples
        of a patch.
    covers
        One for each of those.
    order
        For every axis of the result, the axis of the patches that it is made of.
    chunks
        Chunk lengths of the patches, along each of their axes: of a dask array, or the stored ones.
    itemsize, out_itemsize
        Bytes of a sample of the patches and of the result.
    max_bytes
        Budget of a task: the bytes of its input and its output.
    units
        What blocks are written in, by dim: they are as many of those as fit along the spatial
        dims, and hold all of the others. Without, they are multiples of strides, and as long as
        chunks along the others, or shorter.

    Raises
    ------
    PatchError
        If the patches over one tile do not fit the budget.

    Examples
    --------
    >>> from xpatches.geometry.grid import AxisGrid
    >>> cover = AxisCover.of(AxisGrid("x", length=20, size=4, stride=2))
    >>> chunks = ((3, 3, 3), (4,))
    >>> plan = plan_stitch("map_overlap", [(0, 1)], [cover], [0], chunks, 8, 8, max_bytes=2**20)
    >>> plan.out_chunks, [axis.regions for axis in plan.axes]
    (((6, 6, 6, 2),), [((0, 3), (2, 6), (5, 9), (8, 9)), ((0, 4),)])
    """
    grid = {axis: cover for (axis, _), cover in zip(axes, covers, strict=True)}
    inside = {axis: cover.size for (_, axis), cover in zip(axes, covers, strict=True)}
    others = [axis for axis in range(len(chunks)) if axis not in {**grid, **inside}]
    unit = {axis: units.get(cover.dim, cover.stride) for axis, cover in grid.items()}

    def whole(axis: int) -> int:
        return -(-grid[axis].length // unit[axis]) if axis in grid else sum(chunks[axis])

    def nbytes(counts: Sequence[int]) -> int:
        """Count the bytes of a task; patches twice: in parts or encoded, and put together."""
        patches, samples = itemsize, out_itemsize
        for axis, count in enumerate(counts):
            if axis in grid:
                patches *= grid[axis].most_over(count * unit[axis])
                samples *= min(grid[axis].length, count * unit[axis])
            else:
                patches *= count
                samples *= 1 if axis in inside else count
        return 2 * patches + samples

    def fits(counts: Sequence[int]) -> bool:
        return nbytes(counts) <= max_bytes

    # Of units, or of samples along other dims.
    counts = [inside.get(axis, max(1, *lengths)) for axis, lengths in enumerate(chunks)]
    for axis, cover in grid.items():
        counts[axis] = max(1, counts[axis] * cover.stride // unit[axis])
    if units:
        counts = [whole(axis) if axis in others else count for axis, count in enumerate(counts)]
    divisible = [] if units else others
    counts = shrink(counts, [*divisible, *grid], fits)
    if not fits(counts):
        block = {cover.dim: unit[axis] for axis, cover in grid.items()}
        raise PatchError(
            f"max_bytes must be >= {nbytes(counts)}, for a block of {block} and the patches over "
            f"it, got {max_bytes}; raise it"
        )
    if engine == "region":
        # What is read more than once is least where blocks are many strides long.
        counts = grow(
            counts,
            lambda counts: [*divisible, *sorted(grid, key=counts.__getitem__)],
            lambda axis, count: min(2 * count, whole(axis)),
            fits,
        )
    edges, blocks = [], []
    for axis, count in enumerate(counts):
        length = grid[axis].length if axis in grid else sum(chunks[axis])
        starts = range(0, length, unit.get(axis, 1) * count)
        edges.append([*pairwise([*starts, length])] or [(0, 0)])
        takes: list[Any] = [slice(0, stop - start) for start, stop in edges[axis]]
        regions = edges[axis]
        if axis in grid:
            takes = [grid[axis].block(*pair) for pair in edges[axis]]
            regions = [(block.first, block.first + block.count) for block in takes]
        blocks.append(AxisBlocks(tuple(regions), tuple(takes)))
    lengths = [tuple(stop - start for start, stop in edges[axis]) for axis in order]
    return BlockPlan(tuple(blocks), tuple(lengths), tuple(order))
