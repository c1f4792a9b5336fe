"""How patches lie in a dataset: dims, chunks, shards, and the blocks that tasks write.

Integers only. A block is a box of the result that covers whole stored objects (shards, or chunks
where there are none), so that no two tasks write to the same one. The samples under it are read at
once where they fit the budget: what several of its objects need is then read once. Its patches are
cut and written step by step, each step a few objects. Where the samples under a block do not fit,
those under its pieces are read: boxes of the grid whose region does.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

from xpatches.arguments import among
from xpatches.errors import PatchError
from xpatches.geometry.boxes import Span, _around, divide, halve, split_run
from xpatches.geometry.grid import AxisGrid
from xpatches.geometry.search import grow

T = TypeVar("T")


CHUNK = 1 << 20
"""Bytes of a chunk to which several patches are put together."""
SHARD = 1 << 25
"""Bytes of a stored object, about."""
BLOCKS = 16
"""Blocks of an array, at least, before they grow larger than a stored object."""
_MOST = 4
"""Budgets that the patches of a block take, at most: a failure costs that much work."""


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
class Layout:
    """The patches of one variable as a stored array.

    Examples
    --------
    >>> grids = (AxisGrid("y", 8, 2, 2), AxisGrid("x", 12, 2, 2))
    >>> dims, chunks = ("sample", "y_patch", "x_patch"), (5, 2, 2)
    >>> layout = Layout(True, dims, grids, (0, 1), 1, chunks, None, chunks, (10, 2, 2), 99)
    >>> layout.shape, len(layout), layout.block(1)
    ((24, 2, 2), 3, (slice(10, 20, None), slice(0, 2, None), slice(0, 2, None)))
    >>> layout.region(layout.block(1))
    (slice(2, 8, None), slice(0, 12, None))
    >>> first, second = layout.steps(layout.block(1))
    >>> [piece.region for piece in layout.pieces(first)]
    [(slice(2, 4, None), slice(8, 12, None)), (slice(4, 6, None), slice(0, 6, None))]
    """

    flat: bool
    """Whether the patches lie along one dim, ``sample``, or along the dims of the grid."""
    dims: tuple[Hashable, ...]
    """Dims of the result."""
    grids: tuple[AxisGrid, ...]
    """One for each axis of the image; an axis without patches has patches of one sample."""
    spatial: tuple[int, ...]
    """Numbers of the axes that are cut into patches, in the order in which patches are numbered."""
    itemsize: int
    """Bytes of one sample."""
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    writes: tuple[int, ...]
    """Lengths of a step, multiples of those of a stored object."""
    blocks: tuple[int, ...]
    """Lengths of a block, multiples of those of a step."""
    max_bytes: int
    """Budget of the samples under a block, or else under a piece."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the result."""
        return _shape(self.grids, self.spatial, self.flat)

    @property
    def axes(self) -> tuple[int | None, ...]:
        """The axis of the image that a dim of the result runs along, where there is one."""
        new, every = len(self.spatial), range(len(self.grids))
        if self.flat:
            return (None, *[None] * new, *(axis for axis in every if axis not in self.spatial))
        after = self.spatial[-1] + 1
        return (*every[:after], *[None] * new, *every[after:])

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of blocks along every dim of the result."""
        return tuple(-(-n // length) for n, length in zip(self.shape, self.blocks, strict=True))

    def __len__(self) -> int:
        return prod(self.counts)

    def block(self, number: int) -> tuple[slice, ...]:
        """Find a block of the result by its number, the last dim running fastest."""
        place = []
        for count, length, n in zip(
            reversed(self.counts), reversed(self.blocks), reversed(self.shape), strict=True
        ):
            number, i = divmod(number, count)
            place.append(slice(i * length, min(n, (i + 1) * length)))
        return tuple(reversed(place))

    def region(self, block: tuple[slice, ...]) -> tuple[slice, ...] | None:
        """Find the samples under a block, along every axis of the image; None if too many."""
        box = self._box(block)
        if self.flat:
            counts = [self.grids[axis].count for axis in self.spatial]
            box = _replaced(box, self.spatial, _around(counts, block[0].start, block[0].stop))
        region = self._under(box)
        return region if self._nbytes(region) <= self.max_bytes else None

    def steps(self, block: tuple[slice, ...]) -> Iterator[tuple[slice, ...]]:
        """Divide a block into what is cut and written at once."""
        return divide(block, self.writes)

    def reads(self, block: tuple[slice, ...]) -> list[tuple[slice, ...]]:
        """List the regions that are read for a block, in order."""
        whole = self.region(block)
        if whole is not None:
            return [whole]
        return [piece.region for step in self.steps(block) for piece in self.pieces(step)]

    def pieces(self, step: tuple[slice, ...]) -> Iterator[Piece]:
        """Divide a step into pieces."""
        boxes = [self._box(step)]
        if self.flat:
            counts = [self.grids[axis].count for axis in self.spatial]
            runs = split_run(counts, step[0].start, step[0].stop)
            boxes = [_replaced(boxes[0], self.spatial, run) for run in runs]
        for box in boxes:
            for part in halve(tuple(box), self._fits, self.spatial):
                yield self._piece(part, step)

    def _box(self, block: tuple[slice, ...]) -> list[range]:
        """Give the patches of a block along every axis of the image that a dim runs along."""
        at = [range(along.start, along.stop) for along in block]
        axes = {axis: dim for dim, axis in enumerate(self.axes) if axis is not None}
        return [at[axes[axis]] if axis in axes else range(0) for axis in range(len(self.grids))]

    def _under(self, box: Sequence[range]) -> tuple[slice, ...]:
        """Find the samples under a box of patches."""
        regions = (grid.region(of.start, len(of)) for grid, of in zip(self.grids, box, strict=True))
        return tuple(slice(start, stop) for start, stop, _ in regions)

    def _nbytes(self, region: tuple[slice, ...]) -> int:
        samples: int = prod(along.stop - along.start for along in region)
        return self.itemsize * samples

    def _fits(self, box: Sequence[range]) -> bool:
        """Whether the samples under a box of patches do."""
        return self._nbytes(self._under(box)) <= self.max_bytes

    def _piece(self, box: Sequence[range], step: tuple[slice, ...]) -> Piece:
        spans = []
        for axis in self.spatial:
            grid, of = self.grids[axis], box[axis]
            _, _, origin = grid.region(of.start, len(of))
            spans.append(Span(axis, grid, origin, len(of)))
        place = []
        for follows, along in zip(self.axes, step, strict=True):
            of = range(along.start, along.stop) if follows is None else box[follows]
            place.append(slice(of.start - along.start, of.stop - along.start))
        if self.flat:
            first = 0
            for span in spans:
                first = first * span.grid.count + box[span.axis].start
            first -= step[0].start
            place[0] = slice(first, first + prod(span.count for span in spans))
        return Piece(self._under(box), tuple(spans), tuple(place))


def lay_out(
    what: str,
    flat: bool,
    dims: tuple[Hashable, ...],
    grids: tuple[AxisGrid, ...],
    spatial: tuple[int, ...],
    itemsize: int,
    max_bytes: int,
    chunks: Mapping[Any, int] | None = None,
    shards: Mapping[Any, int] | bool | None = None,
) -> Layout:
    """Choose chunks, shards and blocks.

    A chunk is a patch, or several patches up to `CHUNK` bytes, with all that lies along the other
    dims: behind the patch up to a shard, before it where that makes no more than four `CHUNK`, or
    else as much as one holds. A shard is as many chunks as make `SHARD` bytes, and so is a step.
    Blocks grow as long as the samples under one fit the budget and there are `BLOCKS`, for large
    ones read little of the image twice.

    Parameters
    ----------
    what
        Name of the variable, for errors.
    flat, dims, grids, spatial, itemsize
        As in `Layout`.
    max_bytes
        Budget of a task: half for the patches of a step, half for the samples under a block.
    chunks, shards
        Lengths by dim that the user gives, -1 for a whole dim; `shards` may be False for none.

    Raises
    ------
    PatchError
        If a length does not fit the dims, or a stored object does not fit the budget.
    """
    layout = Layout(flat, dims, grids, spatial, itemsize, (), None, (), (), max_bytes // 2)
    shape, axes = layout.shape, layout.axes
    check_not_empty(what, dims, shape)
    patch = [dim for dim, axis in enumerate(axes) if axis is None and not (flat and dim == 0)]
    counted = [0] if flat else list(spatial)
    depth = [dim for dim, axis in enumerate(axes) if axis is not None and dim > min(patch)]
    leading = [dim for dim in range(len(dims)) if dim not in (*patch, *counted, *depth)]

    def within(most: int) -> Callable[[Sequence[int]], bool]:
        return lambda lengths: itemsize * prod(lengths) <= most

    def grown(
        units: Sequence[int],
        groups: Sequence[list[int]],
        fits: Callable[[Sequence[int]], bool],
        lengths: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """Double lengths of some units, the shortest of a group first, as long as they fit."""

        def longer(dim: int, length: int) -> int:
            return min(2 * length, -(-shape[dim] // units[dim]) * units[dim])

        lengths = lengths or units
        for group in groups:

            def order(lengths: Sequence[int], group: list[int] = group) -> list[int]:
                return sorted(group, key=lambda dim: (lengths[dim], -dim))

            lengths = grow(lengths, order, longer, fits)
        return tuple(lengths)

    fixed = given_lengths(chunks, dims, shape)
    least = [fixed.get(dim, shape[dim] if dim in patch else 1) for dim in range(len(dims))]
    free = [[dim for dim in group if dim not in fixed] for group in (depth, counted, leading)]
    # A task writes whole patches, of which chunks may hold parts.
    parts = prod(-(-shape[dim] // least[dim]) for dim in patch)
    ones, shard = [1] * len(dims), min(SHARD, max_bytes // 2) // parts
    stored = grown(ones, free[:1], within(shard), least)
    together = _replaced(stored, free[2], [shape[dim] for dim in free[2]])
    most = 4 * CHUNK if within(4 * CHUNK)(together) else CHUNK
    stored = grown(ones, free[2:], within(min(most, shard)), stored)
    stored = objects = grown(ones, free[1:2], within(min(CHUNK, shard)), stored)
    if shards is not False:
        fixed = given_shards(shards, dims, shape, stored)
        free = [[dim for dim in group if dim not in fixed] for group in (counted, leading)]
        least = [fixed.get(dim, length) for dim, length in enumerate(stored)]
        objects = grown(stored, free, within(shard), least)
    whole = [-(-shape[dim] // objects[dim]) * objects[dim] for dim in patch]
    least = _replaced(objects, patch, whole)
    if itemsize * prod(least) > max_bytes // 2:
        raise PatchError(
            f"what a task writes of {what} must be <= {max_bytes // 2} bytes, half of dask's "
            f"array.chunk-size, got {itemsize * prod(least)}: whole patches in objects of "
            f"{dict(zip(dims, objects, strict=True))}; give smaller chunks and shards, or set "
            "dask's array.chunk-size higher"
        )

    def several(fits: Callable[[Sequence[int]], bool]) -> Callable[[Sequence[int]], bool]:
        return lambda lengths: _count(shape, lengths) >= BLOCKS and fits(lengths)

    def readable(lengths: Sequence[int]) -> bool:
        """Whether the samples under a block in the middle of the grid fit."""
        block = []
        for n, length in zip(shape, lengths, strict=True):
            start = n // length // 2 * length
            block.append(slice(start, min(start + length, n)))
        return within(_MOST * max_bytes)(lengths) and layout.region(tuple(block)) is not None

    groups = [counted, leading]
    writes = grown(least, groups, several(within(min(SHARD, max_bytes // 2))))
    return replace(
        layout,
        chunks=stored,
        shards=None if objects == stored else objects,
        writes=writes,
        blocks=grown(writes, groups, several(readable)),
    )


def _shape(grids: Sequence[AxisGrid], spatial: Sequence[int], flat: bool) -> tuple[int, ...]:
    counts, sizes = [grid.count for grid in grids], [grids[axis].size for axis in spatial]
    if flat:
        others = [n for axis, n in enumerate(counts) if axis not in spatial]
        return (prod(counts[axis] for axis in spatial), *sizes, *others)
    after = spatial[-1] + 1
    return (*counts[:after], *sizes, *counts[after:])


def _count(shape: Sequence[int], lengths: Sequence[int]) -> int:
    return prod(-(-n // length) for n, length in zip(shape, lengths, strict=True))


def check_not_empty(what: str, dims: Sequence[Hashable], shape: Sequence[int]) -> None:
    """Refuse to write what has no samples."""
    if not prod(shape):
        raise PatchError(
            f"{what} must have samples along every dim, got {dict(zip(dims, shape, strict=True))}; "
            "there is nothing to write"
        )


def given_lengths(
    given: Mapping[Any, int] | bool | None, dims: tuple[Hashable, ...], shape: tuple[int, ...]
) -> dict[int, int]:
    """Give lengths by number of the dim, of those by dim, where -1 is a whole dim."""
    by_dim = given if isinstance(given, Mapping) else {}
    lengths = {dims.index(dim): length for dim, length in by_dim.items() if among(dim, dims)}
    return {
        number: min(length, shape[number]) if length > 0 else shape[number]
        for number, length in lengths.items()
    }


def given_shards(
    given: Mapping[Any, int] | bool | None,
    dims: tuple[Hashable, ...],
    shape: tuple[int, ...],
    chunks: Sequence[int],
) -> dict[int, int]:
    """Give lengths of shards by number of the dim, whole chunks."""
    fixed = given_lengths(given, dims, shape)
    for number, length in fixed.items():
        chunk = chunks[number]
        if length % chunk and length < shape[number]:
            raise PatchError(
                f"shards on {dims[number]!r} must be a multiple of the chunks, got {length} and "
                f"chunks of {chunk}; choose another length, or give both"
            )
        fixed[number] = -(-length // chunk) * chunk
    return fixed


def _replaced(items: Sequence[T], at: Sequence[int], by: Sequence[T]) -> list[T]:
    items = list(items)
    for number, item in zip(at, by, strict=True):
        items[number] = item
    return items
