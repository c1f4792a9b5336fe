"""Which block computes which patches: integers only, O(blocks), nothing read or computed.

Strategy, per dim. A block is a run of patches and the region of the source under them. The source's
chunk edges are kept where they all are multiples of the stride: every block then begins with a
patch of its own, and with stride 1 the result's chunks line up with the source's. Otherwise the
blocks are equal, as many patches as fit a chunk, so that the result's chunks are equal too, as zarr
requires. What a block needs from beyond its chunk is its halo: ``before`` samples on the left and
``eff - stride - before`` on the right, less where the image ends.

No task is to hold more than a budget of bytes. Where the patches of a block would not fit, several
chunks of the result are computed from one block; where its region would not, blocks are made
smaller. Both are cut along the first axis that suffices, into equal parts.

A source that can be sliced is read region by region. What lies in two regions is read twice, so
blocks grow, chunk by chunk of the storage, until little is, or the budget is reached.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

from xpatches.errors import PatchError
from xpatches.geometry.blocks import SCRATCH, AxisBlocks, BlockPlan, Engine, Form
from xpatches.geometry.boxes import Span
from xpatches.geometry.grid import AxisGrid
from xpatches.geometry.lengths import check_tasks, equal_counts, even_divisor, grow, shrink

_AMPLIFICATION = 1.15
"""Blocks that read storage grow until every stored sample is read this often at most."""


@dataclass(frozen=True, slots=True)
class AxisPlan:
    """Blocks and chunks of the result along one axis of the source.

    Examples
    --------
    >>> plan = AxisPlan(AxisGrid("x", 12, 5, 2), blocks=(2, 2), limit=1)
    >>> plan.regions, plan.chunks
    (((0, 7), (4, 11)), (1, 1, 1, 1))
    >>> plan.spans
    ((0, 0, 1), (0, 2, 1), (1, 0, 1), (1, 2, 1))
    """

    grid: AxisGrid
    blocks: tuple[int, ...]
    """Patches of every block."""
    limit: int
    """Patches of a chunk of the result, at most."""

    @property
    def regions(self) -> tuple[tuple[int, int], ...]:
        """Samples ``[start, stop)`` of the source under every block; empty where all is padding."""
        return tuple((start, stop) for start, stop, _ in self.grid.regions(self.blocks))

    @property
    def longest(self) -> int:
        """Samples of the longest region."""
        return max(stop - start for start, stop, _ in self.grid.regions(self.blocks))

    @property
    def count(self) -> int:
        """Number of chunks of the result."""
        return sum(max(1, -(-count // self.limit)) for count in self.blocks)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Patches of every chunk of the result."""
        limit = self.limit
        return tuple(
            min(limit, count - first)
            for count in self.blocks
            for first in range(0, max(1, count), limit)
        )

    @property
    def spans(self) -> tuple[tuple[int, int, int], ...]:
        """For every chunk: its block, the origin of its first patch in the region, its patches."""
        spans = []
        regions = self.grid.regions(self.blocks)
        for block, (count, (_, _, origin)) in enumerate(zip(self.blocks, regions, strict=True)):
            for first in range(0, max(1, count), self.limit):
                patches = min(self.limit, count - first)
                spans.append((block, origin + first * self.grid.stride, patches))
        return tuple(spans)

    @property
    def halo(self) -> tuple[int, int]:
        """Samples that a block reads before its first anchor and after its last stride, at most."""
        grid = self.grid
        if len(self.blocks) < 2:
            return 0, 0
        return grid.before, max(0, grid.effective_size - grid.stride - grid.before)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the patches of one array are computed, block by block.

    Examples
    --------
    >>> grids = {0: AxisGrid("y", 64, 3, 1), 1: AxisGrid("x", 64, 3, 1)}
    >>> plan = plan_blocks("map_overlap", grids, ((32, 32), (32, 32)), itemsize=2, max_bytes=2**20)
    >>> plan.out_chunks
    ((32, 30), (32, 30), (3,), (3,))
    >>> plan.engine, plan.region_bytes == 34 * 34 * 2
    ('map_overlap', True)
    """

    engine: Engine
    """``"map_overlap"`` exchanges halos between chunks, ``"region"`` reads regions of storage."""
    chunks: tuple[tuple[int, ...], ...]
    """Chunk lengths of the source along each of its axes."""
    axes: tuple[AxisPlan, ...]
    """One for each axis of the source; an axis without patches has patches of one sample."""
    spatial: tuple[int, ...]
    """Numbers of the axes that are cut into patches."""
    itemsize: int
    """Bytes of one sample."""
    patch_bytes: int
    """Bytes that a task makes per patch and sample of the depth."""
    form: Form
    """``"grid"``, ``"flat"`` (the patch axes and the source's axes behind them are one), or
    ``"reduced"`` (every patch is one sample)."""

    @property
    def patch_axis(self) -> int:
        """Axis of the result at which the patch axes begin: right after the last spatial one."""
        return self.spatial[-1] + 1

    @property
    def out_chunks(self) -> tuple[tuple[int, ...], ...]:
        """Chunk lengths of the result."""
        kept = [axis.chunks for axis in self.axes]
        if self.form == "reduced":
            return tuple(kept)
        sizes = [(self.axes[axis].grid.size,) for axis in self.spatial]
        last = [*sizes, *kept[self.patch_axis :]]
        if self.form == "flat":
            last = [(prod(sum(lengths) for lengths in last),)]
        return (*kept[: self.patch_axis], *last)

    @property
    def blocks(self) -> BlockPlan:
        """What every chunk of the result is made from.

        Raises
        ------
        PatchError
            If there are too many for a graph.
        """
        check_tasks(prod(axis.count for axis in self.axes))
        axes = []
        for number, axis in enumerate(self.axes):
            regions = [*axis.grid.regions(axis.chunks)]
            takes = tuple(
                Span(number, axis.grid, origin, count)
                if number in self.spatial
                else slice(origin, origin + count)
                for count, (_, _, origin) in zip(axis.chunks, regions, strict=True)
            )
            axes.append(AxisBlocks(tuple((start, stop) for start, stop, _ in regions), takes))
        every = range(len(axes))
        kept, behind = every[: self.patch_axis], every[self.patch_axis :]
        out_axes = {
            "grid": (*kept, *(None for _ in self.spatial), *behind),
            "flat": (*kept, None),
            "reduced": (*every,),
        }
        return BlockPlan(tuple(axes), self.out_chunks, out_axes[self.form])

    @property
    def region_bytes(self) -> int:
        """Bytes of the largest region that a block reads."""
        return self.itemsize * prod(axis.longest for axis in self.axes)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the patches of the largest chunk of the result."""
        return self.patch_bytes * prod(min(max(axis.blocks), axis.limit) for axis in self.axes)

    @property
    def bytes_per_task(self) -> int:
        """Projected peak of the largest task: what it is given, makes and returns.

        That is the parts of a region, the region put together, a padded copy of it, and patches;
        or a chunk of the source and what is cut from it for a neighbour.
        """
        longest = [axis.longest for axis in self.axes]
        region, chunk = self.itemsize * prod(longest), self.itemsize * prod(map(max, self.chunks))
        pads = (sum(axis.grid.pads) for axis in self.axes)
        padded = self.itemsize * prod(map(sum, zip(longest, pads, strict=True)))
        exchanged = self.engine == "map_overlap" and any(len(axis) > 1 for axis in self.chunks)
        peak = region + exchanged * region + padded + self.chunk_bytes
        return max(peak, exchanged * (chunk + min(chunk, region))) + SCRATCH

    @property
    def read_amplification(self) -> float:
        """How often a stored sample is read, on average over the samples that are."""
        if self.engine == "map_overlap":
            return 1.0
        return prod(map(_amplification, self.axes, self.chunks))


def plan_blocks(
    engine: Engine,
    grids: Mapping[int, AxisGrid],
    chunks: tuple[tuple[int, ...], ...],
    itemsize: int,
    max_bytes: int,
    form: Form = "grid",
    patch_bytes: int | None = None,
) -> Plan:
    """Plan an extraction.

    Parameters
    ----------
    engine
        As in `Plan`.
    grids
        The patches along every spatial axis, by its number, in order.
    chunks
        Chunk lengths of the source: of a dask array's chunks, each computed once, or of the stored
        ones, of which any part read means the whole. Those of zero length are passed over.
    itemsize
        Bytes of one sample.
    max_bytes
        Budget of a task: the bytes of its input and its output.
    form
        Of the result, as in `Plan`.
    patch_bytes
        Bytes that a task makes per patch and sample of the depth; None for those of the patch.

    Raises
    ------
    PatchError
        If one patch and the samples under it do not fit the budget.
    """
    every = [
        grids.get(axis) or AxisGrid(axis, sum(lengths), size=1, stride=1)
        for axis, lengths in enumerate(chunks)
    ]
    each = itemsize * prod(grid.size for grid in every) if patch_bytes is None else patch_bytes
    costs = _Costs(every, itemsize, each, max_bytes)
    movable = range(max(grids) + 1 if form == "flat" else len(chunks))
    cut = _from_chunks if engine == "map_overlap" else _from_regions
    axes = tuple(cut(costs, chunks, movable))
    for axis in axes:
        check_tasks(axis.count, "one dim")
    return Plan(engine, chunks, axes, tuple(grids), itemsize, each, form)


def plan_whole(
    grids: Mapping[int, AxisGrid], shape: Sequence[int], itemsize: int, form: Form = "grid"
) -> Plan:
    """Plan an extraction from an image in memory, in one block.

    Parameters
    ----------
    grids, itemsize, form
        As for `plan_blocks`.
    shape
        Of the image.
    """
    every = [grids.get(axis) or AxisGrid(axis, n, size=1, stride=1) for axis, n in enumerate(shape)]
    axes = tuple(AxisPlan(grid, (grid.count,), max(1, grid.count)) for grid in every)
    each = itemsize * prod(grid.size for grid in every)
    chunks = tuple((n,) for n in shape)
    return Plan("map_overlap", chunks, axes, tuple(grids), itemsize, each, form)


@dataclass(frozen=True, slots=True)
class _Costs:
    """Bytes of a task, from its patches along every axis."""

    grids: Sequence[AxisGrid]
    itemsize: int
    patch_bytes: int
    max_bytes: int

    def region(self, counts: Sequence[int]) -> int:
        """Count the bytes under the patches, at most."""
        return self.itemsize * prod(map(_reach, self.grids, counts))

    def patches(self, counts: Sequence[int]) -> int:
        """Count the bytes of the patches."""
        return self.patch_bytes * prod(counts)

    def fit(
        self, counts: Sequence[int], movable: Sequence[int], held: int | None = None
    ) -> list[int]:
        """Lessen the patches until they fit beside their region, or beside `held` bytes.

        Raises
        ------
        PatchError
            If not even one does.
        """

        def needed(counts: Sequence[int]) -> int:
            return (self.region(counts) if held is None else held) + self.patches(counts)

        counts = shrink(counts, movable, lambda counts: needed(counts) <= self.max_bytes)
        if needed(counts) > self.max_bytes:
            raise PatchError(
                f"max_bytes must be >= {needed(counts)}, one patch and the samples under it, got "
                f"{self.max_bytes}; raise it, or use a smaller size or rate"
            )
        return counts


def _from_chunks(
    costs: _Costs, chunks: Sequence[Sequence[int]], movable: Sequence[int]
) -> Iterator[AxisPlan]:
    """Give every chunk a block, smaller ones where its region or its patches would not fit."""
    blocks = [
        _blocks(grid, lengths) if axis in movable else (grid.count,)
        for axis, (grid, lengths) in enumerate(zip(costs.grids, chunks, strict=True))
    ]
    # Half of the budget, for putting a region together takes its parts and the whole; and room
    # for one patch.
    room = min(costs.max_bytes // 2, costs.max_bytes - costs.patches([1]))
    most = shrink(list(map(max, blocks)), movable, lambda most: costs.region(most) <= room)
    blocks = list(map(_recut, blocks, most))
    most = list(map(max, blocks))
    limits = costs.fit(most, movable, costs.region(most))
    for grid, counts, limit in zip(costs.grids, blocks, limits, strict=True):
        even = even_divisor(max(counts), limit)
        if max(counts) % even:  # blocks of whole chunks of the result, which are to be equal
            counts = equal_counts(grid.count, max(counts) // even * even)
        yield AxisPlan(grid, counts, even)


def _from_regions(
    costs: _Costs, chunks: Sequence[Sequence[int]], movable: Sequence[int]
) -> Iterator[AxisPlan]:
    """Let blocks grow by stored chunks until little is read twice, or the budget is reached."""
    steps = [
        max(1, max(lengths, default=1) // grid.stride)
        for grid, lengths in zip(costs.grids, chunks, strict=True)
    ]
    counts = [max(1, grid.count) for grid in costs.grids]
    most = [min(steps[axis], n) if axis in movable else n for axis, n in enumerate(counts)]
    most = costs.fit(most, movable)

    def size(most: Sequence[int]) -> int:
        return costs.region(most) + costs.patches(most)

    def amplification(most: Sequence[int], axis: int) -> float:
        few = min(costs.grids[axis].count, 32 * most[axis])  # more are read as these are
        plan = AxisPlan(costs.grids[axis], equal_counts(few, most[axis]), most[axis])
        return _amplification(plan, chunks[axis])

    def order(most: Sequence[int]) -> list[int]:
        read = [amplification(most, axis) for axis in range(len(most))]
        if prod(read) <= _AMPLIFICATION and size(most) >= costs.max_bytes // 8:
            return []
        return sorted(movable, key=lambda axis: (-read[axis], most[axis] / steps[axis]))

    def longer(axis: int, count: int) -> int:
        return min(count + steps[axis] * max(1, count // steps[axis] // 4), counts[axis])

    most = grow(most, order, longer, lambda most: size(most) <= costs.max_bytes)
    for grid, count in zip(costs.grids, most, strict=True):
        yield AxisPlan(grid, equal_counts(grid.count, count), count)


def _blocks(grid: AxisGrid, chunks: Sequence[int]) -> tuple[int, ...]:
    """Patches of every block: a chunk's where all edges are aligned, else as many as fit one."""
    edges = [0, *accumulate(length for length in chunks if length)]
    longest = max(chunks, default=1)
    if any(edge % grid.stride for edge in edges[:-1]):
        return equal_counts(grid.count, max(1, longest // grid.stride))
    owned = [len(grid.owned(*edge)) for edge in pairwise(edges)]
    counts = [count for count in owned if count] or [grid.count]
    # Padding behind the image can hold many patches; they get blocks no larger than the others.
    return (*counts[:-1], *equal_counts(counts[-1], max(1, -(-longest // grid.stride))))


def _reach(grid: AxisGrid, count: int) -> int:
    """Count the samples under this many patches, at most."""
    return min(grid.length, max(0, count - 1) * grid.stride + grid.effective_size)


def _recut(blocks: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """Cut blocks that are larger than the limit into smaller ones, equal but for the last."""
    most = max(blocks)
    if most <= limit:
        return blocks
    size = even_divisor(most, limit)
    if all(count % size == 0 for count in blocks[:-1]):
        return tuple(piece for count in blocks for piece in equal_counts(count, size))
    return equal_counts(sum(blocks), size)


def _amplification(axis: AxisPlan, chunks: Sequence[int]) -> float:
    """Divide the samples of the chunks under every block by those of the chunks under any."""
    length = max(1, *chunks)
    touched, end = 0, 0
    total = 0
    for start, stop in axis.regions:
        if stop > start:
            first, last = (
                start // length * length,
                min(-(-stop // length) * length, axis.grid.length),
            )
            total += last - first
            touched += max(0, last - max(first, end))
            end = max(end, last)
    return total / touched if touched else 1.0
