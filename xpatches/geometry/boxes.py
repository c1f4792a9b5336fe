"""Runs of samples and boxes of them: where they lie, clipped, cut and halved."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TypeAlias

from xpatches.geometry.grid import AxisGrid


@dataclass(frozen=True, slots=True)
class Span:
    """The patches to take along one axis of a block."""

    axis: int
    """Axis of the block."""
    grid: AxisGrid
    """Size, stride and rate of the patches."""
    first: int
    """Index in the block of the first patch's first sample; negative where it is padding."""
    count: int
    """Number of patches."""

    @property
    def reach(self) -> range:
        """Indices in the block from the first patch's first sample to the last one's last."""
        length = (self.count - 1) * self.grid.stride + self.grid.effective_size
        return range(self.first, self.first + length)


def clip(positions: range, length: int) -> tuple[int, slice, int]:
    """Split positions into how many lie before the image, a slice of it, and how many after.

    Examples
    --------
    >>> clip(range(-2, 10, 3), 7)
    (1, slice(1, 5, 3), 1)
    """
    before = len(range(positions.start, min(0, positions.stop), positions.step))
    inside = positions[before:]
    inside = inside[: len(range(inside.start, min(length, inside.stop), inside.step))]
    after = len(positions) - before - len(inside)
    start, stop = (inside[0], inside[-1] + 1) if inside else (0, 0)
    return before, slice(start, stop, inside.step), after


def split_run(counts: Sequence[int], start: int, stop: int) -> Iterator[tuple[range, ...]]:
    """Split a run of patches, the last dim running fastest, into boxes that are runs themselves.

    Examples
    --------
    >>> [*split_run((3, 4), 2, 9)]
    [(range(0, 1), range(2, 4)), (range(1, 2), range(0, 4)), (range(2, 3), range(0, 1))]
    """
    if len(counts) == 1:
        yield (range(start, stop),)
        return
    inner = prod(counts[1:])
    while start < stop:
        row, rest = divmod(start, inner)
        whole = (stop - start) // inner
        if rest or not whole:
            end = min(stop, (row + 1) * inner)
            for box in split_run(counts[1:], rest, end - row * inner):
                yield (range(row, row + 1), *box)
        else:
            end = start + whole * inner
            yield (range(row, row + whole), *map(range, counts[1:]))
        start = end


def halve(
    box: tuple[range, ...],
    fits: Callable[[tuple[range, ...]], bool],
    first: tuple[int, ...] = (),
) -> Iterator[tuple[range, ...]]:
    """Halve a box along one axis after the other, those in `first` first, until it fits.

    Examples
    --------
    >>> [*halve((range(2), range(3)), lambda box: len(box[0]) * len(box[1]) <= 4)]
    [(range(0, 1), range(0, 3)), (range(1, 2), range(0, 3))]
    """
    several = [axis for axis in (*first, *range(len(box))) if len(box[axis]) > 1]
    if fits(box) or not several:
        yield box
        return
    axis, of = several[0], box[several[0]]
    middle = (of.start + of.stop) // 2
    for half in (range(of.start, middle), range(middle, of.stop)):
        yield from halve((*box[:axis], half, *box[axis + 1 :]), fits, first)


Take: TypeAlias = Span | slice
"""What a chunk of a result takes of a region along one axis: patches, or samples as they are."""


def divide(block: tuple[slice, ...], lengths: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Divide a block into parts of these lengths, the last ones smaller, the last dim fastest.

    Examples
    --------
    >>> [*divide((slice(2, 5), slice(0, 1)), (2, 2))]
    [(slice(2, 4, None), slice(0, 1, None)), (slice(4, 5, None), slice(0, 1, None))]
    """
    return product(
        *(
            [slice(at, min(at + length, of.stop)) for at in range(of.start, of.stop, length)]
            for of, length in zip(block, lengths, strict=True)
        )
    )


def count_parts(shape: Sequence[int], lengths: Sequence[int]) -> int:
    """Count the parts of these lengths that an array is divided into, the last ones smaller."""
    return prod(-(-n // length) for n, length in zip(shape, lengths, strict=True))


def part_at(number: int, shape: Sequence[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    """Find such a part by its number, the last dim running fastest.

    Examples
    --------
    >>> part_at(3, (4, 5), (2, 3))
    (slice(2, 4, None), slice(3, 5, None))
    """
    part = []
    for n, length in zip(reversed(shape), reversed(lengths), strict=True):
        number, index = divmod(number, -(-n // length))
        part.append(slice(index * length, min(n, (index + 1) * length)))
    return tuple(reversed(part))


def within(part: Iterable[slice | range], block: Iterable[slice]) -> tuple[slice, ...]:
    """Find a part of a block in what holds the block.

    Examples
    --------
    >>> within([range(4, 5)], [slice(3, 6)])
    (slice(1, 2, None),)
    """
    pairs = zip(part, block, strict=True)
    return tuple(slice(p.start - b.start, p.stop - b.start) for p, b in pairs)


def count_samples(box: Sequence[slice]) -> int:
    """Count what lies in a box."""
    samples: int = prod(along.stop - along.start for along in box)
    return samples


def around(counts: Sequence[int], start: int, stop: int) -> list[range]:
    """Find the box around a run of patches, the last dim running fastest."""
    box = []
    first, last = start, stop - 1
    for count in reversed(counts):
        (first, low), (last, high) = divmod(first, count), divmod(last, count)
        box.append(range(low, high + 1) if first == last else range(count))
    return box[::-1]
