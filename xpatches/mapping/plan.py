"""Which patches a model is run on for every block of the image that it makes: integers only.

A block of the result needs all patches that reach into it. Those that reach into several blocks are
run several times, so blocks are as large as the budget allows, or until few patches are. Within a
block every patch is run once: rows of patches are run one after the other, and the rows of samples
that they complete are stitched before the next.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import NamedTuple

from xpatches.geometry.blocks import AxisBlocks, BlockPlan
from xpatches.geometry.boxes import Span
from xpatches.geometry.coverage import AxisCover, Cover
from xpatches.geometry.grid import AxisGrid
from xpatches.geometry.lengths import check_tasks, grow

_FEW = 1.1
"""Runs per patch from which on blocks need not be larger: several can be made at once."""


class MappedSpan(NamedTuple):
    """Along one dim: the patches that a model is run on, and the samples that they make."""

    span: Span
    """The patches in the region of the image that is read."""
    cover: Cover
    """The samples of the block, and the same patches over them."""


@dataclass(frozen=True, slots=True)
class MapPlan:
    """How an image is made by a model, block by block.

    Examples
    --------
    >>> from fractions import Fraction
    >>> from xpatches.geometry.coverage import cover_of
    >>> grid = AxisGrid("x", length=64, size=8, stride=4)
    >>> cover = cover_of(grid, Fraction(1), None)
    >>> plan = MapPlan(((32, 32),), (0,), (grid,), (cover,), ("x",), {}, (40,))
    >>> plan.blocks.out_chunks, plan.blocks.axes[0].regions
    (((40, 24),), ((0, 44), (36, 64)))
    >>> plan.runs, round(plan.runs_per_patch, 3)
    (16, 1.067)
    """

    chunks: tuple[tuple[int, ...], ...]
    """Chunk lengths of the source, along each of its axes."""
    axes: tuple[int, ...]
    """Axis of the source of every spatial dim."""
    grids: tuple[AxisGrid, ...]
    """The patches that the model is given, for each of them."""
    covers: tuple[AxisCover, ...]
    """What it makes of them."""
    dims: tuple[Hashable, ...]
    """Dims of the result."""
    others: Mapping[Hashable, int]
    """Lengths of those that are not spatial."""
    lengths: tuple[int, ...]
    """Samples of a block, along every spatial dim of the result."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of blocks along each axis of the source."""
        along = dict.fromkeys(range(len(self.chunks)), 1)
        for axis, cover, length in zip(self.axes, self.covers, self.lengths, strict=True):
            along[axis] = -(-cover.length // length)
        return tuple(along.values())

    @property
    def blocks(self) -> BlockPlan:
        """What every block reads, and what it takes of that."""
        axes = [
            AxisBlocks(((0, sum(lengths)),), (slice(0, sum(lengths)),)) for lengths in self.chunks
        ]
        lengths: dict[Hashable, tuple[int, ...]] = {
            dim: (length,) for dim, length in self.others.items()
        }
        for axis, grid, cover, edges in self._spatial():
            spans = tuple(mapped_span(axis, grid, cover, *edge) for edge in edges)
            over = (cover.over(*edge) for edge in edges)
            regions = (grid.region(patches.start, len(patches)) for patches in over)
            axes[axis] = AxisBlocks(tuple((start, stop) for start, stop, _ in regions), spans)
            lengths[cover.dim] = tuple(stop - start for start, stop in edges)
        by_dim: dict[Hashable, int] = dict(zip((g.dim for g in self.grids), self.axes, strict=True))
        out_axes = tuple(by_dim.get(dim) for dim in self.dims)
        return BlockPlan(tuple(axes), tuple(lengths[dim] for dim in self.dims), out_axes)

    @property
    def runs(self) -> int:
        """How many patches the model is run on, those that several blocks need several times."""
        return prod(
            sum(len(cover.over(*edge)) for edge in edges) for _, _, cover, edges in self._spatial()
        )

    @property
    def runs_per_patch(self) -> float:
        """How often the model is run on a patch, on average over the patches that are needed."""
        needed = prod(len(cover.over(0, cover.length)) for cover in self.covers)
        return self.runs / needed if needed else 1.0

    def _spatial(self) -> Iterator[tuple[int, AxisGrid, AxisCover, list[tuple[int, int]]]]:
        """Go through the spatial dims: axis, grid, cover, and where every block begins and ends."""
        for count in self.counts:
            check_tasks(count, "one dim")
        for axis, grid, cover, length in zip(
            self.axes, self.grids, self.covers, self.lengths, strict=True
        ):
            yield axis, grid, cover, list(pairwise([*range(0, cover.length, length), cover.length]))


def mapped_span(axis: int, grid: AxisGrid, cover: AxisCover, start: int, stop: int) -> MappedSpan:
    """Find the patches that the samples ``[start, stop)`` of the result are made of."""
    over = cover.over(start, stop)
    _, _, origin = grid.region(over.start, len(over))
    return MappedSpan(Span(axis, grid, origin, len(over)), cover.block(start, stop))


@dataclass(frozen=True, slots=True)
class MapCosts:
    """Bytes of a task, from the samples of its block along the spatial dims."""

    grids: Sequence[AxisGrid]
    covers: Sequence[AxisCover]
    image: int
    """Bytes read per sample of the image."""
    output: int
    """Bytes that the model returns per sample of the result."""
    result: int
    """Bytes of the result per sample."""
    patch: int
    """Bytes of a patch of the image."""

    def nbytes(self, lengths: Sequence[int]) -> int:
        """Count what is read, the rows of patches that must be held, and the block, at most.

        Batches are not counted: what is stored is to be the same for all.
        """
        return self._nbytes(lengths, self.covers[0].stride)

    def nbytes_with(self, lengths: Sequence[int], batch_size: int) -> int:
        """Count the same with all rows that are held for full batches, and one of those."""
        band = band_of(self.covers[0], self._counts(lengths)[1:], batch_size)
        return self._nbytes(lengths, band) + batch_size * (self.patch + self._returned)

    def nbytes_of_stored(self, lengths: Sequence[int]) -> int:
        """Count what a task holds that makes such a block from stored outputs of all patches."""
        # Patches twice: encoded, and put together.
        return 2 * self._returned * prod(self._counts(lengths)) + self.result * prod(lengths)

    def _nbytes(self, lengths: Sequence[int], band: int) -> int:
        counts = self._counts(lengths)
        region = self.image * prod(
            min(grid.length, max(0, count - 1) * grid.stride + grid.effective_size)
            for grid, count in zip(self.grids, counts, strict=True)
        )
        rows = min(counts[0], self.covers[0].most_over(band))
        return region + self._returned * rows * prod(counts[1:]) + self.result * prod(lengths)

    def _counts(self, lengths: Sequence[int]) -> list[int]:
        """Count the patches over so many samples along every dim, at most."""
        return [cover.most_over(n) for cover, n in zip(self.covers, lengths, strict=True)]

    @property
    def _returned(self) -> int:
        """Bytes that the model returns for a patch."""
        return self.output * prod(cover.size for cover in self.covers)


def band_of(cover: AxisCover, counts: Sequence[int], batch_size: int) -> int:
    """Choose the samples along the first dim that are stitched at once.

    The rows of patches that begin in them fill one batch, or up to four where less is left over.

    Parameters
    ----------
    cover
        The patches along the first dim.
    counts
        Number of patches along the other dims.
    batch_size
        Patches of a batch.

    Examples
    --------
    >>> cover = AxisCover("y", 999, size=8, stride=4, rate=1, origin=0, count=99)
    >>> band_of(cover, [20], 32), band_of(cover, [40], 32), band_of(cover, [3], 32)
    (12, 12, 56)
    """
    row = max(1, prod(counts))
    least = -(-batch_size // row)
    most = max(least, 4 * batch_size // row)

    def batches_per_patch(rows: int) -> float:
        return -(-rows * row // batch_size) / (rows * row)

    return cover.stride * min(range(least, most + 1)[:4], key=batches_per_patch)


def block_lengths(costs: MapCosts, units: Sequence[int], max_bytes: int) -> tuple[int, ...]:
    """Choose the samples of a block: multiples of `units`, a stride or more, along every dim.

    They are the least of those if no more fit the budget, or not even those.
    """
    covers = costs.covers
    shortest = [
        -(-min(cover.stride, cover.length) // unit) * unit
        for cover, unit in zip(covers, units, strict=True)
    ]

    def order(lengths: Sequence[int]) -> list[int]:
        """Begin with the dim along which patches are run again most; with none if few are."""
        again = [
            max(1.0, cover.most_over(length) * cover.stride / min(length, cover.length))
            for cover, length in zip(covers, lengths, strict=True)
        ]
        axes = sorted(range(len(lengths)), key=lambda axis: -again[axis])
        return [] if prod(again) <= _FEW else axes

    def longer(axis: int, length: int) -> int:
        unit = units[axis]
        whole = -(-covers[axis].length // unit) * unit
        return min(whole, length + unit * max(1, length // unit // 4))

    return tuple(grow(shortest, order, longer, lambda lengths: costs.nbytes(lengths) <= max_bytes))
