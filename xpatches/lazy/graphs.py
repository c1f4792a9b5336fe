"""Results made block by block through dask's public functions, lazily.

A source that can be sliced is read region by region: `dask.array.map_blocks` runs one task for each
block. Chunks that are computed exchange halos by `dask.array.map_overlap`; they are cut anew before
where their edges do not fit the blocks. Where a halo reaches beyond the next chunk, or several
blocks share a region, `dask.array.shuffle` gathers what every block reads, axis by axis.

The edges of the image are padded in the kernel, which costs no task.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, product
from math import prod
from typing import Any, TypeAlias

import dask
import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from xpatches.arguments import said
from xpatches.dtypes import Array, as_promised
from xpatches.edges import pad_block
from xpatches.errors import PatchError
from xpatches.geometry.blocks import AxisOverlap, BlockPlan, Kernel, overlap_of, run_kernel
from xpatches.geometry.lengths import check_tasks

Slices: TypeAlias = tuple[slice, ...]
PLANNED = hasattr(da.Array, "expr")
"""Whether dask's arrays are expressions, as its option ``array.query-planning`` says."""


def refuse_planned(what: str) -> None:
    """Refuse what dask cannot do yet where its arrays are expressions.

    Raises
    ------
    PatchError
        It says what to do.
    """
    if PLANNED:
        raise PatchError(
            f"{what} is not possible yet with dask's arrays as expressions; set its option "
            '"array.query-planning" to False before dask is imported'
        )


def checked(array: Any) -> Any:
    """Give a dask array whose blocks are what it promises, or raise an error when computed.

    A block that is shorter than its chunk, say, as ``map_blocks`` without ``chunks`` leaves it,
    would have others taken for its samples.
    """
    return array.map_blocks(
        _checked,
        promised=(array.chunks, array.dtype),
        name=f"checked-{tokenize(array.name)}",
        **_result(array.chunks, array.dtype),
    )


def _checked(block: Any, promised: tuple[Any, Any], block_id: tuple[int, ...]) -> Array:
    chunks, dtype = promised
    starts = [sum(lengths[:number]) for lengths, number in zip(chunks, block_id, strict=True)]
    region = [
        slice(start, start + lengths[number])
        for start, lengths, number in zip(starts, chunks, block_id, strict=True)
    ]
    return as_promised(block, region, dtype, block_id)


@dataclass(frozen=True)
class Work:
    """What all tasks of a result share."""

    blocks: BlockPlan
    kernel: Kernel
    source: Callable[[Slices], Array] | None = None
    """Gives the samples of a region, where tasks are not given any."""
    dtype: np.dtype[Any] | None = None
    """Of what tasks are given; dask's functions lose the order of its bytes."""
    starts: tuple[tuple[int, ...], ...] = ()
    """Where this begins, for every block along every axis of the source."""
    order: tuple[int, ...] | None = None
    """The axes of what the kernel makes, in another order."""


def exchange(array: Any, blocks: BlockPlan, kernel: Kernel, dtype: Any) -> Any:
    """Run a kernel on every block of a dask array, lazily.

    Parameters
    ----------
    array : dask.array.Array
        The image.
    blocks
        What was planned.
    kernel
        Makes a chunk of the result from a region of the image and what to take of it along axes
        that are not sliced.
    dtype
        Dtype of the result.

    Returns
    -------
    dask.array.Array
        In ``blocks.out_chunks``.

    Raises
    ------
    PatchError
        If there would be too many tasks.
    """
    check_tasks(prod(blocks.counts))
    if not all(array.shape):  # there is nothing to exchange
        return read(_Empty(array.dtype), array.name, blocks, kernel, dtype)
    chunked, overlaps, tasks = _prepared(array, blocks)
    check_tasks(tasks)
    if overlaps is None:
        halos = [(0, 0)] * array.ndim
        starts = tuple(tuple(start for start, _ in regions) for regions in _held(blocks, array))
    else:
        chunked = _cut_anew(chunked, [axis.lengths for axis in overlaps])
        halos = [(axis.before, axis.after) for axis in overlaps]
        starts = tuple(axis.starts for axis in overlaps)
    # `map_overlap` keeps axes in order.
    kept = iter(sorted(axis for axis in blocks.out_axes if axis is not None))
    given_axes = tuple(None if axis is None else next(kept) for axis in blocks.out_axes)
    places = tuple(
        place if axis is None else given_axes.index(axis)
        for place, axis in enumerate(blocks.out_axes)
    )
    order = tuple(map(int, np.argsort(places)))
    in_order = order == (*range(len(order)),)
    name = f"patches-{_token(array.name, blocks, kernel)}"
    work = Work(
        replace(blocks, out_axes=given_axes),
        kernel,
        dtype=array.dtype,
        starts=starts,
        order=None if in_order else order,
    )
    result = da.map_overlap(
        _run_on_chunk,
        chunked,
        depth={axis: halo if any(halo) else 0 for axis, halo in enumerate(halos)},
        boundary="none",
        trim=False,
        allow_rechunk=False,
        align_arrays=False,
        name=name if in_order else f"{name}-in-order",
        drop_axis=[axis for axis in range(array.ndim) if axis not in given_axes],
        new_axis=[place for place, axis in enumerate(given_axes) if axis is None],
        work=_shared(work, name),
        **_result(tuple(blocks.out_chunks[place] for place in order), dtype),
    )
    return result if in_order else result.transpose(places)


def read(
    source: Callable[[Slices], Array], token: str, blocks: BlockPlan, kernel: Kernel, dtype: Any
) -> Any:
    """Run a kernel on every block of what can be sliced, lazily: one task for each.

    Parameters
    ----------
    source
        Gives the samples of a region as NumPy, in any thread or process.
    token
        Tells the source from all others.
    blocks
        What was planned.
    kernel, dtype
        As for `exchange`.
    """
    check_tasks(read_tasks(blocks))
    name = f"patches-{_token(token, blocks, kernel)}"
    work = _shared(Work(blocks, kernel, source), name)
    return da.map_blocks(_run_on_region, work=work, name=name, **_result(blocks.out_chunks, dtype))


def exchanged_tasks(array: Any, blocks: BlockPlan) -> int:
    """Count the tasks that `exchange` adds to the graph of a dask array."""
    return _prepared(array, blocks)[2] if all(array.shape) else read_tasks(blocks)


def read_tasks(blocks: BlockPlan) -> int:
    """Count the tasks of what `read` gives: the blocks, and what they share."""
    return prod(blocks.counts) + 1


def _cut_tasks(chunks: Sequence[Sequence[int]], overlaps: Sequence[AxisOverlap]) -> int:
    """Count the tasks of `_cut_anew`: one for each part of a chunk, and one for each new chunk."""
    if all(tuple(old) == axis.lengths for old, axis in zip(chunks, overlaps, strict=True)):
        return 0
    parts, whole = 1, 1
    for old, axis in zip(chunks, overlaps, strict=True):
        before, after = ({0, *accumulate(lengths)} for lengths in (old, axis.lengths))
        edges = sorted(before | after)
        parts *= len(edges) - 1
        whole *= sum({*pair} <= before for pair in pairwise(edges))
    return parts - whole + prod(len(axis.lengths) for axis in overlaps)


def _halo_tasks(overlaps: Sequence[AxisOverlap]) -> int:
    """Count the tasks of dask's overlap: one for each part of a chunk with its halo, and for it."""
    if not any(axis.before or axis.after for axis in overlaps):
        return 0
    counts = [len(axis.lengths) for axis in overlaps]
    sides = [(axis.before > 0) + (axis.after > 0) for axis in overlaps]
    parts = (count + side * (count - 1) for count, side in zip(counts, sides, strict=True))
    return prod(parts) + prod(counts)


def _prepared(array: Any, blocks: BlockPlan) -> tuple[Any, list[AxisOverlap] | None, int]:
    """Give the checked array, how its chunks are to overlap, and the tasks that this will take.

    Where they can't overlap, what every block reads is gathered in a chunk.
    """
    source, array = array, checked(array)
    tasks = read_tasks(blocks)
    kept = [axis for axis in blocks.out_axes if axis is not None]
    if kept != sorted(kept):
        tasks += prod(blocks.counts)
    overlaps = [
        overlap_of(lengths, axis.regions)
        for lengths, axis in zip(array.chunks, blocks.axes, strict=True)
    ]
    found = [overlap for overlap in overlaps if overlap is not None]
    if len(found) < len(overlaps):
        array = _gathered(array, blocks)
        return array, None, tasks + len(dict(array.__dask_graph__())) - len(source.__dask_graph__())
    tasks += prod(array.numblocks) + _cut_tasks(array.chunks, found) + _halo_tasks(found)
    return array, found, tasks


def _cut_anew(array: Any, chunks: Sequence[tuple[int, ...]]) -> Any:
    """Cut a dask array into other chunks, at once."""
    return array.rechunk(tuple(chunks), threshold=sys.maxsize, method="tasks")


def _gathered(array: Any, blocks: BlockPlan) -> Any:
    """Give a dask array of which every chunk is what a block reads."""
    chunks = list(array.chunks)
    for axis, regions in enumerate(_held(blocks, array)):
        chunks[axis] = tuple(stop - start for start, stop in regions)
        if PLANNED:  # where there is no shuffle yet
            before = (slice(None),) * axis
            array = da.concatenate([array[(*before, slice(*region))] for region in regions], axis)
        else:
            groups = [list(range(*region)) for region in regions]
            with dask.config.set({"array.chunk-size-tolerance": 1e6}):  # keep other axes
                array = da.shuffle(array, groups, axis)
        array = _cut_anew(array, chunks)  # short groups were joined
    return array


def _held(blocks: BlockPlan, array: Any) -> list[list[tuple[int, int]]]:
    """Give what a chunk holds for every block: what it reads, or one sample if it reads none."""
    held = []
    for axis, length in zip(blocks.axes, array.shape, strict=True):
        firsts = (min(start, length - 1) for start, _ in axis.regions)
        pairs = zip(firsts, axis.regions, strict=True)
        held.append([(first, max(first + 1, stop)) for first, (_, stop) in pairs])
    return held


@dataclass(frozen=True)
class _Empty:
    """What reads regions of an array without samples."""

    dtype: Any

    def __call__(self, region: Slices) -> Array:
        return np.empty([part.stop - part.start for part in region], self.dtype)


def _shared(work: Work, name: str) -> Any:
    """Have work sent to a worker once, not with every task, where dask can."""
    return work if PLANNED else dask.delayed(work, name=f"{name}-work", traverse=False)


def _run_on_chunk(chunk: Array, work: Work, block_id: tuple[int, ...]) -> Array:
    """Run the kernel on what a block reads of a chunk with its halo."""
    index = work.blocks.index(block_id)
    region, takes = work.blocks.read(index)
    starts = (axis[number] for axis, number in zip(work.starts, index, strict=True))
    inside = tuple(
        slice(part.start - start, part.stop - start)
        for part, start in zip(region, starts, strict=True)
    )
    result = run_kernel(work.kernel, takes, np.asarray(chunk[inside], work.dtype))
    return result if work.order is None else result.transpose(work.order)


def _run_on_region(work: Work, block_id: tuple[int, ...]) -> Array:
    """Run the kernel on what a block reads of the source."""
    assert work.source is not None
    region, takes = work.blocks.read(work.blocks.index(block_id))
    return run_kernel(work.kernel, takes, work.source(region))


def _token(*parts: Any) -> str:
    try:
        return tokenize(*parts)
    except Exception as error:  # whatever a type raises that is to be pickled
        raise PatchError(
            f"dask cannot tell the function and the attrs of the image from others: {said(error)}; "
            "drop those that are no plain data"
        ) from error


def grid_chunks(lengths: Sequence[int], counts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Choose chunks of a grid that are runs of patches, about as long as those along one axis.

    Examples
    --------
    >>> grid_chunks((8, 8, 8), (4, 3, 2))
    ((1, 1, 1, 1), (3,), (2,))
    >>> grid_chunks((4, 4, 4, 4, 4, 4), (4, 3, 2))
    ((1, 1, 1, 1), (2, 1), (2,))
    """
    room = max(lengths)
    chunks: list[tuple[int, ...]] = []
    for number, count in enumerate(counts):
        inner = prod(counts[number + 1 :])
        length = min(count, max(1, room // inner))
        chunks.append(tuple(min(length, count - start) for start in range(0, count, length)))
        if length < count:
            room = min(room, inner)
    return tuple(chunks)


def as_grid(array: Any, axis: int, counts: Sequence[int], numbers: Array) -> Any:
    """Lay what lies along an axis along several; what is missing there is any of the others.

    Parameters
    ----------
    array, axis
        A dask array, and that of its axes along which patches lie.
    counts
        Lengths of the axes that replace it.
    numbers
        For every patch its number in the grid, the last axis running fastest.

    Raises
    ------
    PatchError
        If there would be too many tasks, or dask plans arrays as expressions.
    """
    refuse_planned("stitching patches along one dim lazily")
    array, total = checked(array), prod(counts)
    if not np.array_equal(numbers, np.arange(total)):
        positions = np.zeros(total, np.intp)
        positions[numbers] = np.arange(len(numbers))
        array = da.take(array, positions, axis)
    grid = grid_chunks(array.chunks[axis], counts)
    others = (len(lengths) for at, lengths in enumerate(array.chunks) if at != axis)
    check_tasks(prod(map(len, grid)) * prod(others))
    runs = tuple(prod(run) for run in product(*grid))
    array = array.rechunk({axis: runs})
    name = f"grid-{tokenize(array.name, grid)}"
    chunks = (*array.chunks[:axis], *grid, *array.chunks[axis + 1 :])
    graph = dict[Any, Any]()
    for index in product(*(range(len(lengths)) for lengths in chunks)):
        run = 0
        for number, lengths in zip(index[axis:], grid, strict=False):
            run = run * len(lengths) + number
        shape = tuple(lengths[number] for number, lengths in zip(index, chunks, strict=True))
        source = (array.name, *index[:axis], run, *index[axis + len(grid) :])
        graph[(name, *index)] = (np.reshape, source, shape)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[array])
    return da.Array(layers, name, **_result(chunks, array.dtype))


def pad(array: Any, pads: Mapping[int, tuple[int, int]], fill_value: Array) -> Any:
    """Build the graph of `pad_block`, in one chunk along the axes of `pads`."""
    array = array.rechunk(dict.fromkeys(pads, -1))
    chunks = list(array.chunks)
    for axis, (before, after) in pads.items():
        chunks[axis] = (before + array.shape[axis] + after,)
    return array.map_blocks(
        pad_block, pads=dict(pads), fill_value=fill_value, **_result(tuple(chunks), array.dtype)
    )


def _result(chunks: tuple[tuple[int, ...], ...], dtype: Any) -> dict[str, Any]:
    """Tell dask what it would otherwise guess."""
    return {"chunks": chunks, "dtype": dtype, "meta": np.empty((0,) * len(chunks), dtype)}
