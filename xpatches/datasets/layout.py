"""How patches lie in an array: its dims, and the blocks that tasks write.

Integers only. A block is a box of the result that covers whole stored objects (shards, or chunks
where there are none), so that no two tasks write to the same one. The samples under it are read at
once where they fit the budget: what several of its objects need is then read once. Its patches are
cut and written step by step, each step a few objects. Where the samples under a block do not fit,
those under its pieces are read: boxes of the grid whose region does.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

from xpatches.geometry.boxes import Span, around, count_samples, halve, split_run, within
from xpatches.geometry.grid import AxisGrid
from xpatches.images.labels import SAMPLE_DIM

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Piece:
    """Patches of a step that are cut from one region of the image."""

    region: tuple[slice, ...]
    """The samples under them, along every axis of the image."""
    spans: tuple[Span, ...]
    """The patches in that region."""
    place: tuple[slice, ...]
    """Where they go in the step, along every dim of the result."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The patches of one variable along the dims of an array.

    Examples
    --------
    >>> grids = (AxisGrid("y", 8, 2, 2), AxisGrid("x", 12, 2, 2))
    >>> patches = Arrangement(True, grids, (0, 1), 1, 99)
    >>> block = (slice(10, 20), slice(0, 2), slice(0, 2))
    >>> patches.dims, patches.shape
    (('sample', 'y_patch', 'x_patch'), (24, 2, 2))
    >>> patches.region(block)
    (slice(2, 8, None), slice(0, 12, None))
    >>> [piece.region for piece in patches.pieces((slice(10, 15), slice(0, 2), slice(0, 2)))]
    [(slice(2, 4, None), slice(8, 12, None)), (slice(4, 6, None), slice(0, 6, None))]
    """

    flat: bool
    """Whether the patches lie along one dim, ``sample``, or along the dims of the grid."""
    grids: tuple[AxisGrid, ...]
    """One for each axis of the image; an axis without patches has patches of one sample."""
    spatial: tuple[int, ...]
    """Numbers of the axes that are cut into patches, in the order in which patches are numbered."""
    itemsize: int
    """Bytes of one sample."""
    max_bytes: int
    """Budget of the samples under a block, or else under a piece; as much again is for patches."""

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Dims of the result."""
        dims = [grid.dim for grid in self.grids]
        return self._in_order(SAMPLE_DIM, [f"{grid.dim}_patch" for grid in self._cut], dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the result."""
        counts = [grid.count for grid in self.grids]
        return self._in_order(prod(self._counts), [grid.size for grid in self._cut], counts)

    @property
    def axes(self) -> tuple[int | None, ...]:
        """The axis of the image that a dim of the result runs along, where there is one."""
        return self._in_order(None, [None] * len(self.spatial), range(len(self.grids)))

    def region(self, block: tuple[slice, ...]) -> tuple[slice, ...] | None:
        """Find the samples under a block, along every axis of the image; None if too many."""
        run = around(self._counts, block[0].start, block[0].stop) if self.flat else ()
        box = self._box(block, run)
        return self._under(box) if self._fits(box) else None

    def pieces(self, step: tuple[slice, ...]) -> Iterator[Piece]:
        """Divide a step of a block into pieces."""
        runs = split_run(self._counts, step[0].start, step[0].stop) if self.flat else [()]
        for run in runs:
            for box in halve(self._box(step, run), self._fits, self.spatial):
                yield self._piece(box, step)

    def _in_order(self, sample: T, patch: Sequence[T], image: Sequence[T]) -> tuple[T, ...]:
        """Order what belongs to the dims of the result: samples, those of a patch, the image's."""
        if self.flat:
            others = (item for axis, item in enumerate(image) if axis not in self.spatial)
            return (sample, *patch, *others)
        after = self.spatial[-1] + 1
        return (*image[:after], *patch, *image[after:])

    @property
    def _cut(self) -> list[AxisGrid]:
        return [self.grids[axis] for axis in self.spatial]

    @property
    def _counts(self) -> list[int]:
        return [grid.count for grid in self._cut]

    def _box(self, block: tuple[slice, ...], run: Sequence[range]) -> tuple[range, ...]:
        """Give the patches of a block, or of a run of samples in it, along every axis."""
        along = dict(zip(self.spatial, run, strict=False))
        along |= {
            axis: range(part.start, part.stop)
            for axis, part in zip(self.axes, block, strict=True)
            if axis is not None
        }
        return tuple(along[axis] for axis in range(len(self.grids)))

    def _under(self, box: Sequence[range]) -> tuple[slice, ...]:
        """Find the samples under a box of patches."""
        regions = (
            grid.region(patches.start, len(patches))
            for grid, patches in zip(self.grids, box, strict=True)
        )
        return tuple(slice(start, stop) for start, stop, _ in regions)

    def _fits(self, box: Sequence[range]) -> bool:
        return self.itemsize * count_samples(self._under(box)) <= self.max_bytes

    def _piece(self, box: Sequence[range], step: tuple[slice, ...]) -> Piece:
        spans, first = [], 0
        for axis in self.spatial:
            grid, patches = self.grids[axis], box[axis]
            _, _, origin = grid.region(patches.start, len(patches))
            spans.append(Span(axis, grid, origin, len(patches)))
            first = first * grid.count + patches.start
        parts = [
            range(part.start, part.stop) if axis is None else box[axis]
            for axis, part in zip(self.axes, step, strict=True)
        ]
        if self.flat:
            parts[0] = range(first, first + prod(span.count for span in spans))
        return Piece(self._under(box), tuple(spans), within(parts, step))
