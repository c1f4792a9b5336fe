"""Which block computes which patches: integers only, O(blocks), nothing read or computed.

Strategy, per dim. The source's chunk edges are kept when they all are multiples of the stride:
every block then begins with a patch of its own, and with stride 1 the result's chunks line up with
the source's. Otherwise the image is cut anew into equal blocks, the largest multiple of the stride
that fits a chunk, so that the result's chunks are equal too, as zarr requires. Blocks behind the
last anchor own nothing and join the block before them.

A block needs ``before`` samples from the block on its left and ``eff - s - before`` from the one on
its right, less where the image ends. Where a block is shorter than that halo it is merged with its
neighbours for the exchange; the result keeps its finer chunks, several of them computed from one
haloed block.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

from xpatches.geometry import AxisGrid


@dataclass(frozen=True, slots=True)
class AxisPlan:
    """Blocks, halo and output chunks along one dim.

    Examples
    --------
    Chunks shorter than the halo are merged for the exchange, not in the result:

    >>> from xpatches.geometry import AxisGrid
    >>> plan = plan_axis(AxisGrid("x", 12, size=9, stride=1, padding="same"), (3, 3, 3, 3))
    >>> plan.blocks, plan.halo, plan.chunks, plan.parents
    ((6, 6), (4, 4), (3, 3, 3, 3), (0, 0, 1, 1))
    """

    grid: AxisGrid
    blocks: tuple[int, ...]
    """Length of every block of the source, before the halo is added."""
    halo: tuple[int, int]
    """Samples that every inner edge of a block exchanges: from the left, from the right."""
    chunks: tuple[int, ...]
    """Patches in every chunk of the result."""
    parents: tuple[int, ...]
    """For every chunk of the result, the block that it is computed from."""

    @property
    def haloed(self) -> tuple[int, ...]:
        """Length of every block with its halo; the image's ends have none."""
        last = len(self.blocks) - 1
        return tuple(
            (self.halo[0] if i > 0 else 0) + length + (self.halo[1] if i < last else 0)
            for i, length in enumerate(self.blocks)
        )

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """For every chunk, the origin of its first patch in the haloed block, and its patches."""
        edges = [0, *accumulate(self.blocks)]
        firsts = [0, *accumulate(self.chunks)]
        return tuple(
            (
                first * self.grid.stride
                - self.grid.before
                - max(0, edges[parent] - (self.halo[0] if parent else 0)),
                count,
            )
            for first, count, parent in zip(firsts, self.chunks, self.parents, strict=False)
        )


def plan_axis(grid: AxisGrid, chunks: Sequence[int]) -> AxisPlan:
    """Choose the blocks, the halo and the result's chunks along one dim.

    Parameters
    ----------
    grid
        The patches along the dim.
    chunks
        Lengths of the source's chunks; zero-length ones are passed over.
    """
    starts = _starts(grid, chunks)
    counts, sources = _chunks(grid, starts)
    blocks, halo = _exchange(grid, starts)
    edges = list(accumulate(blocks))
    parents = tuple(min(bisect_right(edges, start), len(blocks) - 1) for start in sources)
    return AxisPlan(grid, blocks, halo, counts, parents)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the patches of one array are computed, block by block.

    Parameters
    ----------
    chunks
        Chunk lengths of the source along each of its axes.
    axes
        The plan of every spatial axis, by its number in the source.
    itemsize
        Bytes of one sample.
    flatten
        Join the patch axes and the source's axes behind them into one.

    Examples
    --------
    >>> from xpatches.geometry import AxisGrid
    >>> grids = {0: AxisGrid("y", 64, 3, 1), 1: AxisGrid("x", 64, 3, 1)}
    >>> plan = plan_array(grids, ((32, 32), (32, 32)), itemsize=2)
    >>> plan.depth, plan.out_chunks
    ({0: (0, 2), 1: (0, 2)}, ((32, 30), (32, 30), (3,), (3,)))
    >>> plan.bytes_per_task == (2 * 34 * 34 + 32 * 32 * 9) * 2
    True
    """

    chunks: tuple[tuple[int, ...], ...]
    axes: tuple[tuple[int, AxisPlan], ...]
    itemsize: int
    flatten: bool = False

    @property
    def patch_axis(self) -> int:
        """Axis of the result at which the patch dims begin: right after the last spatial one."""
        return max(axis for axis, _ in self.axes) + 1

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Chunk lengths that the source must have before the halo exchange."""
        planned = dict(self.axes)
        blocks = [
            planned[axis].blocks if axis in planned else lengths
            for axis, lengths in enumerate(self.chunks)
        ]
        if self.flatten:
            blocks[self.patch_axis :] = [(sum(lengths),) for lengths in blocks[self.patch_axis :]]
        return tuple(blocks)

    @property
    def depth(self) -> dict[int, tuple[int, int]]:
        """Halo per axis of the source, without the axes that need none."""
        return {axis: plan.halo for axis, plan in self.axes if any(plan.halo)}

    @property
    def out_chunks(self) -> tuple[tuple[int, ...], ...]:
        """Chunk lengths of the result."""
        planned = dict(self.axes)
        kept = [
            planned[axis].chunks if axis in planned else lengths
            for axis, lengths in enumerate(self.blocks)
        ]
        last = [*((plan.grid.size,) for _, plan in self.axes), *kept[self.patch_axis :]]
        if self.flatten:
            last = [(prod(sum(lengths) for lengths in last),)]
        return (*kept[: self.patch_axis], *last)

    @property
    def chunk_count(self) -> int:
        """Chunks of the result, each computed by one call of the kernel."""
        return prod(len(lengths) for lengths in self.out_chunks)

    @property
    def bytes_per_task(self) -> int:
        """Projected bytes of one task: a haloed block, its patches, and as much as it when padded.

        The kernel's scratch memory is never more than that.
        """
        planned = dict(self.axes)
        haloed = [
            max(planned[axis].haloed if axis in planned else lengths)
            for axis, lengths in enumerate(self.blocks)
        ]
        padded = [
            length + (sum(planned[axis].grid.pads) if axis in planned else 0)
            for axis, length in enumerate(haloed)
        ]
        patches = prod(max(lengths) for lengths in self.out_chunks)
        return (prod(haloed) + prod(padded) + patches) * self.itemsize


def plan_array(
    grids: Mapping[int, AxisGrid],
    chunks: tuple[tuple[int, ...], ...],
    itemsize: int,
    flatten: bool = False,
) -> Plan:
    """Plan the extraction from an array with these chunks; `grids` are keyed by axis, in order."""
    axes = tuple((axis, plan_axis(grid, chunks[axis])) for axis, grid in grids.items())
    return Plan(chunks, axes, itemsize, flatten)


def _starts(grid: AxisGrid, chunks: Sequence[int]) -> list[int]:
    """Where the blocks begin: at multiples of the stride, each with a patch of its own."""
    edges = [0, *accumulate(length for length in chunks if length)]
    starts = edges[:-1]
    if any(start % grid.stride for start in starts):
        length = max(1, max(chunks) // grid.stride) * grid.stride
        starts = list(range(0, grid.length, length))
    return [start for start in starts if start // grid.stride < grid.count] or [0]


def _chunks(grid: AxisGrid, starts: list[int]) -> tuple[tuple[int, ...], list[int]]:
    """Patches per chunk of the result, and where in the source each chunk begins.

    Patches behind the image's end, which explicit padding can ask for, belong to the last block;
    they get chunks no larger than the others'.
    """
    blocks = list(zip(starts, [*starts[1:], grid.length], strict=True))
    limit = max(1, *(-(-(stop - start) // grid.stride) for start, stop in blocks))
    counts, sources = [], []
    for start, stop in blocks:
        owned = len(grid.owned(start, stop))
        pieces = [min(limit, owned - done) for done in range(0, owned, limit)] or [0]
        counts += pieces
        sources += [start] * len(pieces)
    return tuple(counts), sources


def _exchange(grid: AxisGrid, starts: list[int]) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Blocks for the halo exchange, none shorter than the halo, and that halo."""
    halo = grid.before, max(0, grid.effective_size - grid.stride - grid.before)
    edges = [0]
    for edge in starts[1:]:
        if edge - edges[-1] >= max(halo) and grid.length - edge >= max(halo):
            edges.append(edge)
    blocks = tuple(b - a for a, b in pairwise([*edges, grid.length]))
    return blocks, halo if len(blocks) > 1 else (0, 0)
