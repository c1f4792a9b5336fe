"""Which patches lie over which block of the image that they are stitched into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

from xpatches.errors import PatchError
from xpatches.geometry.blocks import AxisBlocks, BlockPlan, Engine
from xpatches.geometry.coverage import AxisCover
from xpatches.geometry.search import grow, shrink


@dataclass(frozen=True, slots=True)
class StitchPlan:
    """How an image is stitched, block by block, from an array of patches.

    Examples
    --------
    >>> from xpatches.geometry.grid import AxisGrid
    >>> cover = AxisCover.of(AxisGrid("x", length=20, size=4, stride=2))
    >>> chunks = ((3, 3, 3), (4,))
    >>> plan = plan_stitch("map_overlap", [(0, 1)], [cover], [0], chunks, 8, 8, max_bytes=2**20)
    >>> plan.blocks.out_chunks, [axis.regions for axis in plan.blocks.axes]
    (((6, 6, 6, 2),), [((0, 3), (2, 6), (5, 9), (8, 9)), ((0, 4),)])
    """

    chunks: tuple[tuple[int, ...], ...]
    """Chunk lengths of the patches, along each of their axes."""
    axes: tuple[tuple[int, int], ...]
    """For every spatial dim, the axis along the grid and the one along the samples of a patch."""
    covers: tuple[AxisCover, ...]
    """One for each of those."""
    lengths: tuple[int, ...]
    """Of a block: samples of the image for an axis along the grid, else of the patches."""
    order: tuple[int, ...]
    """For every axis of the result, the axis of the patches that it is made of."""

    @property
    def _along(self) -> list[int]:
        """Samples of the image along every axis of the grid, else of the patches."""
        along = [sum(lengths) for lengths in self.chunks]
        for (axis, _), cover in zip(self.axes, self.covers, strict=True):
            along[axis] = cover.length
        return along

    @property
    def blocks(self) -> BlockPlan:
        """What every block reads, and what it takes of that."""
        edges = [
            list(pairwise([*range(0, n, length), n])) or [(0, 0)]
            for n, length in zip(self._along, self.lengths, strict=True)
        ]
        axes = [
            AxisBlocks(tuple(pairs), tuple(slice(0, stop - start) for start, stop in pairs))
            for pairs in edges
        ]
        for (axis, _), cover in zip(self.axes, self.covers, strict=True):
            over = (cover.over(*pair) for pair in edges[axis])
            regions = tuple((patches.start, patches.stop) for patches in over)
            axes[axis] = AxisBlocks(regions, tuple(cover.block(*pair) for pair in edges[axis]))
        lengths = [tuple(stop - start for start, stop in edges[axis]) for axis in self.order]
        return BlockPlan(tuple(axes), tuple(lengths), self.order)


def plan_stitch(
    engine: Engine,
    axes: Sequence[tuple[int, int]],
    covers: Sequence[AxisCover],
    order: Sequence[int],
    chunks: tuple[tuple[int, ...], ...],
    itemsize: int,
    out_itemsize: int,
    max_bytes: int,
    units: Mapping[int, int] = MappingProxyType({}),
) -> StitchPlan:
    """Plan a stitching.

    Parameters
    ----------
    engine
        ``"map_overlap"`` for patches of a dask array, ``"region"`` for those that can be sliced.
    axes, covers, order
        As in `StitchPlan`.
    chunks
        Chunk lengths of the patches: of a dask array, or the stored ones.
    itemsize, out_itemsize
        Bytes of a sample of the patches and of the result.
    max_bytes
        Budget of a task: the bytes of its input and its output.
    units
        What the lengths of a block are to be multiples of, by axis along the grid. Where they are
        given, blocks hold all of the other dims.

    Raises
    ------
    PatchError
        If the patches over one tile do not fit the budget.
    """
    by_axis: Mapping[int, AxisCover] = {
        axis: cover for (axis, _), cover in zip(axes, covers, strict=True)
    }
    patch = {axis: cover.size for (_, axis), cover in zip(axes, covers, strict=True)}
    movable = [axis for axis in range(len(chunks)) if axis not in patch]
    spatial = list(by_axis)
    others = [axis for axis in movable if axis not in by_axis]

    unit = {axis: units.get(axis, cover.stride) for axis, cover in by_axis.items()}

    def along(axis: int) -> int:
        return -(-by_axis[axis].length // unit[axis]) if axis in unit else sum(chunks[axis])

    def nbytes(most: Sequence[int]) -> int:
        """Count the bytes of a task; patches twice: in parts or encoded, and put together."""
        patches, samples = itemsize, out_itemsize
        for axis, count in enumerate(most):
            if axis in by_axis:
                patches *= by_axis[axis].most_over(count * unit[axis])
                samples *= min(by_axis[axis].length, count * unit[axis])
            else:
                patches *= count
                samples *= 1 if axis in patch else count
        return 2 * patches + samples

    def fits(most: Sequence[int]) -> bool:
        return nbytes(most) <= max_bytes

    most = [patch.get(axis, max(1, *lengths)) for axis, lengths in enumerate(chunks)]
    for axis, cover in by_axis.items():
        most[axis] = max(1, most[axis] * cover.stride // unit[axis])
    if units:
        most = [along(axis) if axis in others else count for axis, count in enumerate(most)]
        others = []
    most = shrink(most, [*others, *spatial], fits)
    if not fits(most):
        block = {by_axis[axis].dim: unit[axis] for axis in spatial}
        raise PatchError(
            f"max_bytes must be >= {nbytes(most)}, for a block of {block} and the patches over it, "
            f"got {max_bytes}; raise it"
        )
    if engine == "region":
        # What is read more than once is least where blocks are many strides long.
        most = grow(
            most,
            lambda most: [*others, *sorted(spatial, key=lambda axis: most[axis])],
            lambda axis, count: min(2 * count, along(axis)),
            fits,
        )
    lengths = [unit.get(axis, 1) * count for axis, count in enumerate(most)]
    return StitchPlan(chunks, tuple(axes), tuple(covers), tuple(lengths), tuple(order))
