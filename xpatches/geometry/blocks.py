"""The plan of a result, block by block, as data: what each block reads, and what it takes of that.

Every verb plans in its own terms, and ends in a `BlockPlan`. Whoever runs it, lazily or as a job,
needs nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

from xpatches.dtypes import Array

Engine: TypeAlias = Literal["map_overlap", "region"]
"""``"map_overlap"`` exchanges halos between chunks, ``"region"`` reads regions of storage."""
Form: TypeAlias = Literal["grid", "flat", "reduced"]
"""``"grid"``, ``"flat"`` (the patch axes and the source's axes behind them are one), or
``"reduced"`` (every patch is one sample)."""
SCRATCH = 1 << 18
"""Bytes that a task may take for itself, beyond what the plan counts."""
Kernel: TypeAlias = Callable[[Array, Sequence[Any]], Array]
"""Makes a chunk of a result from a block and what to take of it along its spatial axes."""


@dataclass(frozen=True, slots=True)
class AxisBlocks:
    """The blocks along one axis of a source: one for each chunk of the result along it."""

    regions: tuple[tuple[int, int], ...]
    """Samples ``[start, stop)`` that every block reads; empty where all it holds is padding."""
    takes: tuple[Any, ...]
    """What every block takes of its region: a slice, or what the kernel is told instead."""


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The blocks of a result, each made by a kernel from a region of the source.

    Examples
    --------
    >>> along_y = AxisBlocks(((0, 3), (2, 5)), (slice(0, 3), slice(0, 3)))
    >>> plan = BlockPlan((along_y, AxisBlocks(((0, 9),), (slice(0, 9),))), ((9,), (3, 3)), (1, 0))
    >>> plan.counts, plan.index((0, 1))
    ((2, 1), (1, 0))
    >>> plan.read((1, 0))
    ((slice(2, 5, None), slice(0, 9, None)), [slice(0, 3, None), slice(0, 9, None)])
    """

    axes: tuple[AxisBlocks, ...]
    """One for every axis of the source."""
    out_chunks: tuple[tuple[int, ...], ...]
    """Chunk lengths of the result."""
    out_axes: tuple[int | None, ...]
    """For every axis of the result, that of the source whose blocks lie along it; None for none."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of blocks along every axis of the source."""
        return tuple(len(axis.regions) for axis in self.axes)

    def index(self, out_index: Sequence[int]) -> tuple[int, ...]:
        """Find the block that is a chunk of the result, by its number along the source's axes."""
        numbers = [0] * len(self.axes)
        for axis, number in zip(self.out_axes, out_index, strict=True):
            if axis is not None:
                numbers[axis] = number
        return tuple(numbers)

    def out_index(self, index: Sequence[int]) -> tuple[int, ...]:
        """Find the chunk of the result that is a block."""
        return tuple(0 if axis is None else index[axis] for axis in self.out_axes)

    def read(self, index: Sequence[int]) -> tuple[tuple[slice, ...], list[Any]]:
        """Give what a block reads of the source, and what it takes of that, axis by axis."""
        pairs = [*zip(self.axes, index, strict=True)]
        region = tuple(slice(*axis.regions[number]) for axis, number in pairs)
        return region, [axis.takes[number] for axis, number in pairs]


def run_kernel(kernel: Kernel, takes: Sequence[Any], region: Array) -> Array:
    """Run a kernel on a region, of which slices among the takes are taken first."""
    kept = tuple(take if isinstance(take, slice) else slice(None) for take in takes)
    return kernel(region[kept], [take for take in takes if not isinstance(take, slice)])


class AxisOverlap(NamedTuple):
    """Along one axis, chunks of the source that, each with a halo, hold what the blocks read."""

    lengths: tuple[int, ...]
    before: int
    after: int

    @property
    def starts(self) -> tuple[int, ...]:
        """Where every chunk with its halo begins."""
        edges = accumulate(self.lengths[:-1], initial=0)
        return tuple(max(0, edge - self.before) for edge in edges)


def overlap_of(chunks: Sequence[int], regions: Sequence[tuple[int, int]]) -> AxisOverlap | None:
    """Find chunks, one for every region, that hold it with a halo which is the same for all.

    Parameters
    ----------
    chunks
        Lengths of those that there are, which are kept where they will do.
    regions
        ``[start, stop)`` of every block, in order.

    Returns
    -------
    AxisOverlap or None
        None where a halo would reach beyond the next chunk, or several blocks share a region.

    Examples
    --------
    >>> overlap_of((4, 4), [(0, 5), (3, 8)])
    AxisOverlap(lengths=(4, 4), before=1, after=1)
    >>> overlap_of((5, 5), [(0, 5), (3, 8), (6, 10)])
    AxisOverlap(lengths=(3, 3, 4), before=0, after=2)
    >>> overlap_of((4, 4), [(0, 4), (0, 4), (4, 8)]) is None
    True
    """
    length, starts = sum(chunks), [start for start, _ in regions]
    candidates = [[0, *starts[1:], length]]
    steps = (stop - start for start, stop in pairwise(candidates[0]))
    longest = max(*chunks, *steps, *(stop - start for start, stop in regions))
    if len(chunks) == len(regions):
        candidates.insert(0, [0, *accumulate(chunks)])
    for edges in candidates:
        before = max([0, *(edge - start for edge, start in zip(edges, starts, strict=False))])
        after = max(
            [0, *(stop - edge for (_, stop), edge in zip(regions[:-1], edges[1:], strict=False))]
        )
        if len(regions) > 1:  # the first and the last chunk are to be as long as a halo
            edges[1] = max(edges[1], before)
            edges[-2] = min(edges[-2], length - after)
        lengths = tuple(stop - start for start, stop in pairwise(edges))
        haloed = (
            min(length, stop + after) - max(0, start - before) for start, stop in pairwise(edges)
        )
        fits = max(haloed) <= longest and min(lengths) >= max(before, after, 1)
        if fits or len(regions) == 1:
            return AxisOverlap(lengths, before, after)
    return None
