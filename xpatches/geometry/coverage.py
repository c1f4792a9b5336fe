"""Which patches lie over which samples of an image: integers only, the way back.

Per dim, sample j of patch i lies at ``origin + i * stride + j * rate``. The samples of a block are
seen as tiles, ``stride`` long, that begin where patches do. The samples of a patch that lie in its
a-th tile are its a-th group: all patches are laid over a block in as many steps as there are
groups.

A block is gathered: it reads all patches that reach into it, so that every sample is written once.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from types import MappingProxyType
from typing import TypeAlias

from xpatches.errors import PatchError
from xpatches.extraction.plan import Engine, grow, shrink
from xpatches.geometry.grid import AxisGrid

Group: TypeAlias = tuple[int, slice, slice]
"""Number of a tile of a patch, the patch's samples that lie in it, and their places there."""


@dataclass(frozen=True, slots=True)
class AxisCover:
    """The patches over one dim of an image: those of a grid, or every n-th of them.

    Examples
    --------
    >>> cover = AxisCover.of(AxisGrid("x", length=10, size=3, stride=2, padding="same"))
    >>> cover.count, cover.origin, cover.over(4, 6)
    (5, 0, range(1, 3))
    """

    dim: Hashable
    length: int
    """Samples of the image."""
    size: int
    stride: int
    rate: int
    origin: int
    """Source index of the first patch's first sample; may be negative."""
    count: int
    """Number of patches."""

    @classmethod
    def of(cls, grid: AxisGrid) -> "AxisCover":
        """Take all patches of a grid."""
        size, stride, rate = grid.size, grid.stride, grid.rate
        return cls(grid.dim, grid.length, size, stride, rate, -grid.before, grid.count)

    @property
    def effective_size(self) -> int:
        """Footprint of a patch in samples of the image."""
        return (self.size - 1) * self.rate + 1

    @property
    def groups(self) -> tuple[Group, ...]:
        """List the groups of a patch that have samples."""
        found: list[Group] = []
        for tile in range((self.effective_size - 1) // self.stride + 1):
            first = -(-tile * self.stride // self.rate)
            stop = min(-(-(tile + 1) * self.stride // self.rate), self.size)
            if first < stop:
                start = first * self.rate - tile * self.stride
                end = start + (stop - first - 1) * self.rate + 1
                found.append((tile, slice(first, stop), slice(start, end, self.rate)))
        return tuple(found)

    def bare(self, held: Iterable[int] | None = None) -> int:
        """Count the samples of the image that no patch holds, by those of its samples that count.

        Examples
        --------
        >>> cover = AxisCover.of(AxisGrid("x", length=10, size=2, stride=4))
        >>> cover.bare(), cover.bare(held=[0])
        (4, 7)
        """
        held = range(self.size) if held is None else [*held]
        if self.count and self.rate == 1 and self.stride <= len(held) == self.size:  # no gaps
            stop = self.origin + (self.count - 1) * self.stride + self.size
            return self.length - max(0, min(stop, self.length) - max(0, self.origin))
        runs: dict[int, list[int]] = defaultdict(list)
        for sample in held:
            tile, phase = divmod(self.origin + sample * self.rate, self.stride)
            runs[phase].append(tile)
        covered = 0
        for phase, starts in runs.items():
            reached = 0  # along the samples phase, phase + stride, ...
            tiles = len(range(phase, self.length, self.stride))
            for start in sorted(starts):
                first, stop = max(start, reached), min(start + self.count, tiles)
                covered += max(0, stop - first)
                reached = max(reached, stop)
        return self.length - covered

    @property
    def overlaps(self) -> bool:
        """Whether any sample of the image is in two patches.

        Examples
        --------
        >>> [AxisCover.of(AxisGrid("x", 10, 3, stride)).overlaps for stride in (1, 2, 3)]
        [True, True, False]
        """
        # The least distance at which patches share samples, in patches and in samples of one.
        shared = gcd(self.stride, self.rate)
        patches, samples = self.rate // shared, self.stride // shared
        for sample in range(samples, self.size):
            start = self.origin + sample * self.rate
            first = max(0, -(start // self.stride))
            last = min(self.count - 1 - patches, (self.length - 1 - start) // self.stride)
            if first <= last:
                return True
        return False

    def over(self, start: int, stop: int) -> range:
        """Find the patches whose footprint reaches into the samples ``[start, stop)``."""
        first = -(-(start - self.effective_size + 1 - self.origin) // self.stride)
        last = -(-(stop - self.origin) // self.stride)
        first = min(max(first, 0), self.count)
        return range(first, max(first, min(last, self.count)))

    def most_over(self, length: int) -> int:
        """Count the patches that reach into so many samples, at most."""
        return min(self.count, (length + self.effective_size - 2) // self.stride + 1)

    def block(self, start: int, stop: int) -> "Cover":
        """Describe the block of samples ``[start, stop)``."""
        patches = self.over(start, stop)
        origin = self.origin + patches.start * self.stride - start
        return Cover(self, patches.start, len(patches), origin, stop - start)


@dataclass(frozen=True, slots=True)
class Cover:
    """The samples of a block along one axis, and the patches that reach into it."""

    axis: AxisCover
    first: int
    """Number of the first patch."""
    count: int
    origin: int
    """Index in the block of the first patch's first sample; may be negative."""
    length: int
    """Samples of the block."""


@dataclass(frozen=True, slots=True)
class StitchPlan:
    """How an image is stitched, block by block, from an array of patches.

    Examples
    --------
    >>> cover = AxisCover.of(AxisGrid("x", length=20, size=4, stride=2))
    >>> chunks = ((3, 3, 3), (4,))
    >>> plan = plan_stitch("map_overlap", [(0, 1)], [cover], [0], chunks, 8, 8, max_bytes=2**20)
    >>> plan.out_chunks, plan.regions
    (((6, 6, 6, 2),), (((0, 3), (2, 6), (5, 9), (8, 9)), ((0, 4),)))
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
    def counts(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(
            max(1, -(-n // length)) for n, length in zip(self._along, self.lengths, strict=True)
        )

    @property
    def _blocks(self) -> tuple[list[tuple[int, int]], ...]:
        """Where every block begins and ends, along each axis."""
        return tuple(
            list(pairwise([*range(0, n, length), n])) or [(0, 0)]
            for n, length in zip(self._along, self.lengths, strict=True)
        )

    @property
    def regions(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Patches ``[start, stop)`` that every block reads, along each axis."""
        regions = [tuple(blocks) for blocks in self._blocks]
        for (axis, _), cover in zip(self.axes, self.covers, strict=True):
            over = (cover.over(*block) for block in regions[axis])
            regions[axis] = tuple((of.start, of.stop) for of in over)
        return tuple(regions)

    @property
    def takes(self) -> tuple[list[list[tuple[int, "Cover | slice"]]], ...]:
        """Along each axis, for every block: its number, and what it takes of its region."""
        found: list[list[list[tuple[int, Cover | slice]]]] = [
            [[(number, slice(0, stop - start))] for number, (start, stop) in enumerate(blocks)]
            for blocks in self._blocks
        ]
        for (axis, _), cover in zip(self.axes, self.covers, strict=True):
            blocks = enumerate(self._blocks[axis])
            found[axis] = [[(number, cover.block(*block))] for number, block in blocks]
        return tuple(found)

    @property
    def out_chunks(self) -> tuple[tuple[int, ...], ...]:
        """Chunk lengths of the result."""
        return tuple(
            tuple(stop - start for start, stop in self._blocks[axis]) for axis in self.order
        )

    def out_index(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Index of a chunk of the result, from its number along every axis of the patches."""
        return tuple(numbers[axis] for axis in self.order)


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
