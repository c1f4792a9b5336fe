"""Copy small patches by way of tiles that fit the cache.

A patch of few bytes per row costs NumPy as much as one of many: about 3 ns for every item of a
strided copy, whatever its size up to 32 bytes. So the items are made longer before they are
written. On a tile of the grid, from the last axis to the first:

1. The samples under the tile are copied, with the padding where it lies outside the block.
2. Along an axis with a rate they are sorted into lines on which the samples of a patch are
   neighbours (`_Lines`): a dilated patch is a contiguous one there.
3. Samples that are neighbours along the last axis are copied as one item, a row of a patch, into
   an intermediate in which rows that follow each other along the axis before are neighbours, and
   so on: each step multiplies the item by a size. The last one is the whole patch, which is
   written to the result.

NumPy moves items of 1, 2, 4, 8 and 16 bytes five times faster than others as long as one side is
contiguous. A shorter item is therefore moved in a lane of one of these widths, in two copies: into
contiguous lanes, and from there to its place, in order of address. What a lane carries beyond its
item falls on the place of the next item, which is written after it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np

from xpatches.dtypes import Array, as_items
from xpatches.geometry.blocks import SCRATCH
from xpatches.geometry.boxes import Span, clip

Dims: TypeAlias = list[tuple[int, int]]
"""Length and stride in bytes of every dim."""

_LANES = (1, 2, 4, 8, 16)
"""Item sizes in bytes that NumPy copies fastest."""
_SLACK = max(_LANES)
"""Bytes behind a buffer, for the lane of its last item."""
_ROW = 512
"""Patches of a tile along the last axis before it grows along the others."""
_PATCHES = 1 << 15
"""Patches of a tile, at most: enough to make the calls cheap."""
_SCRATCH = SCRATCH // 4, 1 << 21
"""Bytes of the longest intermediate of a tile: a quarter of the scratch, for there are up to four,
but within these limits; the upper one is what a core's cache holds."""


def copy_by_tiles(
    block: Array, spans: Sequence[Span], fill_value: Array, patches: Array, scratch: int
) -> None:
    """Copy the patches of a block, tile by tile.

    Parameters
    ----------
    block
        The samples, of any memory order.
    spans
        The patches along each of the block's first axes; the other axes are the depth. At least
        one has a size above 1.
    fill_value
        0-d array of the block's dtype, for samples outside the block.
    patches
        C-contiguous result, to be written: the counts, the sizes, the depth.
    scratch
        Bytes that may be taken beside them.
    """
    depth = block.shape[len(spans) :]
    pixel = math.prod(depth) * block.itemsize
    longest = min(max(scratch // 4, _SCRATCH[0]), _SCRATCH[1])
    shape = _tile_shape(spans, pixel, longest)
    places, _ = _dense(
        [span.count for span in spans], pixel * math.prod(s.grid.size for s in spans)
    )
    strides = [stride for _, stride in places]
    tile = _Tile(spans, shape, depth, block.dtype, strides)
    out = patches.reshape(-1).view(np.uint8)
    for corner in product(*map(_starts, spans, shape)):
        tile.load(block, corner, fill_value)
        tile.write(out, sum(map(int.__mul__, corner, strides)))


@dataclass(frozen=True, slots=True)
class _Lines:
    """The patches of an axis on lines where the samples of each patch are neighbours.

    With ``g = gcd(stride, rate)`` patches ``rate / g`` apart lie ``stride / g`` samples apart on
    one line. Line c holds the samples ``c * stride + t * rate``, and patch ``m * count + c`` begins
    at its sample ``m * step``. Patches that share no sample get a line each.
    """

    count: int
    length: int
    step: int
    spacing: int
    """Samples of the block between neighbours on a line."""

    @classmethod
    def of(cls, span: Span, patches: int) -> "_Lines":
        size, stride, rate = span.grid.size, span.grid.stride, span.grid.rate
        if size == 1:
            return cls(1, patches, 1, 1) if stride == 1 else cls(patches, 1, 1, 1)
        common = math.gcd(stride, rate)
        if stride > size * common:
            return cls(patches, size, size, rate)
        count, step = min(rate // common, patches), stride // common
        return cls(count, (-(-patches // count) - 1) * step + size, step, rate)


class _Tile:
    """Scratch memory and the copies that lead from the samples of a tile to its patches."""

    def __init__(
        self,
        spans: Sequence[Span],
        shape: Sequence[int],
        depth: tuple[int, ...],
        dtype: np.dtype[np.generic],
        strides: Sequence[int],
    ) -> None:
        self._spans = spans
        self._copies: list[tuple[Array, Array]] = []
        self._writes: list[tuple[Array, int, int, Dims]] = []
        lines = [_Lines.of(span, count) for span, count in zip(spans, shape, strict=True)]
        self._lengths = [
            max(
                (count - 1) * span.grid.stride + span.grid.effective_size,
                (line.count - 1) * span.grid.stride + (line.length - 1) * line.spacing + 1,
            )
            for span, count, line in zip(spans, shape, lines, strict=True)
        ]
        item = math.prod(depth) * dtype.itemsize
        dims, size = _dense(self._lengths, item)
        buffer = _scratch(size)
        self._samples = buffer[:size].view(dtype).reshape(*self._lengths, *depth)
        # Per axis: the dim over lines and the dim along them.
        layout: list[Dims] = [[(1, 0), dim] for dim in dims]
        whole = [axis for axis, span in enumerate(spans) if span.grid.size == 1]
        todo = [axis for axis, span in enumerate(spans) if span.grid.size > 1]
        if todo[-1] < len(spans) - 1 or any(line.count > 1 or line.spacing > 1 for line in lines):
            buffer, layout = self._sort(buffer, dims, lines, [*whole, *todo], item)
        done: list[int] = []
        while todo:
            axis = todo.pop()
            line, (over, along) = lines[axis], layout[axis]
            layout[axis] = [(-(-shape[axis] // line.count), line.step * along[1]), over]
            item *= spans[axis].grid.size
            done.append(axis)
            if todo:
                order = [*done, *whole, *todo]
                source = [dim for axis in order for dim in layout[axis]]
                target, size = _dense([length for length, _ in source], item)
                made = _scratch(size)
                self._move(made, target, buffer, source, item)
                buffer = made
                for axis, pair in zip(order, _pairs(target), strict=True):
                    layout[axis] = pair
        parts = [
            _parts(span, line, dims, count, stride)
            for span, line, dims, count, stride in zip(
                spans, lines, layout, shape, strides, strict=True
            )
        ]
        for part in product(*parts):
            self._finish(buffer, item, part)

    def load(self, block: Array, corner: Sequence[int], fill_value: Array) -> None:
        """Copy the samples under the tile whose first patch is `corner`, and make its patches."""
        source, inside = [], []
        for span, patch, length in zip(self._spans, corner, self._lengths, strict=True):
            start = span.first + patch * span.grid.stride
            before, part, after = clip(range(start, start + length), block.shape[span.axis])
            source.append(part)
            inside.append(slice(before, length - after))
        target = self._samples[tuple(inside)]
        if target.shape != self._samples.shape:
            self._samples[...] = fill_value
        np.copyto(target, block[tuple(source)])
        for target, samples in self._copies:
            np.copyto(target, samples)

    def write(self, out: Array, start: int) -> None:
        """Write the patches to the bytes of the result, from byte `start` on."""
        for patches, offset, item, places in self._writes:
            np.copyto(_items(out, start + offset, item, places), patches)

    def _sort(
        self, buffer: Array, dims: Dims, lines: Sequence[_Lines], order: Sequence[int], item: int
    ) -> tuple[Array, list[Dims]]:
        """Copy the samples to their lines, the axes in this order."""
        target, size = _dense([n for a in order for n in (lines[a].count, lines[a].length)], item)
        source: Dims = []
        for axis in order:
            line, stride = lines[axis], dims[axis][1]
            source.append((line.count, self._spans[axis].grid.stride * stride))
            source.append((line.length, line.spacing * stride))
        made = _scratch(size)
        # One call for each step along the shorter of the last two dims: the inner loop is long.
        cut = len(target) - (1 if target[-1][0] < target[-2][0] else 2)
        for step in range(target[cut][0]):
            self._copies.append(
                (
                    _items(made, step * target[cut][1], item, target[:cut] + target[cut + 1 :]),
                    _items(buffer, step * source[cut][1], item, source[:cut] + source[cut + 1 :]),
                )
            )
        return made, [dims for _, dims in sorted(zip(order, _pairs(target), strict=True))]

    def _move(self, made: Array, target: Dims, buffer: Array, source: Dims, item: int) -> None:
        """Copy items into a dense intermediate."""
        lane = _lane(item)
        if lane > item:
            lanes, count = self._lanes(buffer, 0, source, lane)
            self._copies.append((_items(made, 0, lane, [(count, item)]), lanes.reshape(-1)))
        else:
            samples = _items(buffer, 0, item, source)
            self._copies.append((_items(made, 0, item, target), samples))

    def _lanes(self, buffer: Array, start: int, source: Dims, lane: int) -> tuple[Array, int]:
        """Copy items, and what follows them, into contiguous lanes."""
        dims, size = _dense([length for length, _ in source], lane)
        lanes = _items(_scratch(size), 0, lane, dims)
        self._copies.append((lanes, _items(buffer, start, lane, source)))
        return lanes, size // lane

    def _finish(self, buffer: Array, item: int, part: Sequence["_Part"]) -> None:
        """Plan the writes of whole patches to the result."""
        start = sum(axis.start for axis in part)
        offset = sum(axis.offset for axis in part)
        pairs = [pair for axis in part for pair in axis.dims if pair[0] > 1] or [(1, 0, item)]
        lane, (count, step, place) = _lane(item), pairs[-1]
        split = count - -(-lane // item)
        if lane > item and place == item and split > 0:
            # The last patches of a row go one by one: their lanes would end on other rows.
            outer = pairs[:-1]
            lanes, _ = self._lanes(
                buffer, start, [*(pair[:2] for pair in outer), (split, step)], lane
            )
            places = [*((pair[0], pair[2]) for pair in outer), (split, item)]
            self._writes.append((lanes, offset, lane, places))
            pairs[-1] = (count - split, step, item)
            start += split * step
            offset += split * item
        patches = _items(buffer, start, item, [pair[:2] for pair in pairs])
        self._writes.append((patches, offset, item, [(pair[0], pair[2]) for pair in pairs]))


@dataclass(frozen=True, slots=True)
class _Part:
    """Patches of a tile along one axis: where they are in the intermediate and in the result."""

    start: int
    offset: int
    dims: list[tuple[int, int, int]]
    """Length, stride in the intermediate and stride in the result, in bytes."""


def _parts(span: Span, line: _Lines, dims: Dims, count: int, stride: int) -> list[_Part]:
    """Split the patches of an axis into those of all lines and the few of a last step."""
    if span.grid.size == 1:
        return [_Part(0, 0, [(count, dims[line.count == 1][1], stride)])]
    (_, step), (_, over) = dims
    steps, rest = divmod(count, line.count)
    parts = [_Part(0, 0, [(steps, step, line.count * stride), (line.count, over, stride)])]
    if rest:
        begin = steps * line.count * stride
        parts.append(_Part(steps * step, begin, [(rest, over, stride)]))
    return parts


def _tile_shape(spans: Sequence[Span], pixel: int, scratch: int) -> list[int]:
    """Choose the patches of a tile per axis: long rows first, then as many as the limits allow."""
    first = next(axis for axis, span in enumerate(spans) if span.grid.size > 1)

    def fits(shape: Sequence[int]) -> bool:
        size = pixel
        for axis, (span, count) in enumerate(zip(spans, shape, strict=True)):
            line = _Lines.of(span, count)
            size *= line.count * line.length if axis == first else count * span.grid.size
        return size <= scratch and math.prod(shape) <= _PATCHES

    shape = [1] * len(spans)
    shape[-1] = min(_ROW, spans[-1].count)
    while shape[-1] > 1 and not fits(shape):
        shape[-1] = -(-shape[-1] // 2)
    growing = True
    while growing:
        growing = False
        for axis in reversed(range(len(spans))):
            larger = [*shape[:axis], min(2 * shape[axis], spans[axis].count), *shape[axis + 1 :]]
            if larger != shape and fits(larger):
                shape, growing = larger, True
    # Tiles of equal extent: the last one would else be a sliver.
    return [-(-s.count // -(-s.count // count)) for s, count in zip(spans, shape, strict=True)]


def _starts(span: Span, count: int) -> list[int]:
    """First patch of every tile along an axis; the last tile ends with the last patch."""
    return sorted({min(start, span.count - count) for start in range(0, span.count, count)})


def _lane(item: int) -> int:
    """Width of the lane that an item is moved in."""
    return next((lane for lane in _LANES if lane >= item), item)


def _dense(lengths: Sequence[int], item: int) -> tuple[Dims, int]:
    """Lay out dims of these lengths without gaps, the last one fastest; the bytes they take."""
    dims: Dims = []
    for length in reversed(lengths):
        dims.insert(0, (length, item))
        item *= length
    return dims, item


def _pairs(dims: Dims) -> list[Dims]:
    return [dims[i : i + 2] for i in range(0, len(dims), 2)]


def _scratch(size: int) -> Array:
    return np.empty(size + _SLACK, np.uint8)


def _items(buffer: Array, start: int, item: int, dims: Dims) -> Array:
    """View bytes as items of any size."""
    shape, strides = zip(*dims, strict=True)
    return np.ndarray(shape, as_items(item), buffer, start, strides)
