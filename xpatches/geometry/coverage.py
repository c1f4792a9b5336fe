"""Which patches lie over which samples of an image: integers only, the way back.

Per dim, sample j of patch i lies at ``origin + i * stride + j * rate``. The samples of a block are
seen as tiles, ``stride`` long, that begin where patches do. The samples of a patch that lie in its
a-th tile are its a-th group: all patches are laid over a block in as many steps as there are
groups.

A block is gathered: it reads all patches that reach into it, so that every sample is written once.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import TypeAlias

from xpatches.errors import PatchError
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
        groups: list[Group] = []
        for tile in range((self.effective_size - 1) // self.stride + 1):
            first = -(-tile * self.stride // self.rate)
            stop = min(-(-(tile + 1) * self.stride // self.rate), self.size)
            if first < stop:
                start = first * self.rate - tile * self.stride
                end = start + (stop - first - 1) * self.rate + 1
                groups.append((tile, slice(first, stop), slice(start, end, self.rate)))
        return tuple(groups)

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

    @property
    def numbers(self) -> slice:
        """Numbers of the patches."""
        return slice(self.first, self.first + self.count)

    @property
    def margin(self) -> int:
        """Samples by which the first tile begins before the block."""
        return -self.origin % self.axis.stride

    @property
    def tiles(self) -> int:
        """Number of tiles over the block; the last one may end behind it."""
        return -(-(self.margin + self.length) // self.axis.stride)

    def part(self, start: int, stop: int) -> "Cover":
        """Describe the samples ``[start, stop)`` of the block."""
        begin = self.axis.origin + self.first * self.axis.stride - self.origin
        return self.axis.block(begin + start, begin + stop)


def cover_of(grid: AxisGrid, scale: Fraction, size: int | None) -> AxisCover:
    """Lay what a model makes of the patches along a dim over the image that it makes.

    Parameters
    ----------
    grid
        The patches that the model is given.
    scale
        Samples made per sample of the image: an integer, or 1 divided by one.
    size
        Samples of a patch that the model returns; None for all, which is `scale` times the size.
        The samples that are left out were cut off on both sides, as many on each.

    Raises
    ------
    PatchError
        If the samples of all patches do not lie on one line.

    Examples
    --------
    >>> grid = AxisGrid("x", length=100, size=32, stride=16, padding=(16, 16))
    >>> cover = cover_of(grid, Fraction(1, 4), size=6)
    >>> cover.length, cover.size, cover.stride, cover.origin
    (25, 6, 4, -3)
    """
    up, down, dim = scale.numerator, scale.denominator, grid.dim
    if up != 1 and grid.rate != 1:
        raise PatchError(
            f"scale on {dim!r} must be at most 1 for patches with a rate, got {scale} and the rate "
            f"{grid.rate}; use rate 1"
        )
    for what, value in (("size", grid.size), ("stride", grid.stride), ("padding", grid.before)):
        if value % down:
            raise PatchError(
                f"{what} on {dim!r} must be a multiple of {down}, as the output has the scale "
                f"1/{down}, got {value}; choose another {what}"
                + ", (before, after) in samples"
                * (what == "padding")
            )
    whole = grid.size * up // down
    size = whole if size is None else size
    margin, odd = divmod(whole - size, 2)
    if margin < 0 or odd:
        raise PatchError(
            f"output size on {dim!r} must be {whole}, the size times the scale, or less by an even "
            f"number, as many cut off on each side, got {size}; give the scale, if there is one"
        )
    origin = -grid.before * up // down + margin * grid.rate
    length = -(-grid.length * up // down)
    stride = grid.stride * up // down
    return AxisCover(dim, length, size, stride, grid.rate, origin, grid.count)
