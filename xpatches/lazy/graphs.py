"""Patches through dask: the only module that knows it.

Two engines build the graph. ``map_overlap`` is for chunks that are computed: as dask's function of
that name does, it gives every block its halo from the chunks around it. It differs from dask's in
three points, for which its graph is made here. Cutting the image anew, exchanging the halo and
running the kernel take one task each block and one each strip that is cut from a neighbour, where
``rechunk``, ``overlap`` and ``map_blocks`` would take up to three times as many. A halo may be
longer than a chunk. And several chunks of the result can be computed from one haloed block.

``region`` is for sources that can be sliced: every block reads its own haloed region, in one task.

The edges of the image are padded in the kernel, which costs no task.
"""

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise, product
from math import prod
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from dask._task_spec import DataNode, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from xpatches.arguments import said
from xpatches.dtypes import Array, as_promised
from xpatches.edges import pad_block
from xpatches.errors import PatchError
from xpatches.extraction.plan import Plan
from xpatches.geometry.blocks import Blocks, Kernel
from xpatches.geometry.boxes import Take
from xpatches.geometry.search import check_tasks

Slices: TypeAlias = tuple[slice, ...]


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


def exchange(array: Any, plan: Blocks, kernel: Kernel, dtype: Any, *, large: bool = False) -> Any:
    """Build the graph that runs a kernel on every block of a dask array; nothing is computed.

    Parameters
    ----------
    array : dask.array.Array
        The image.
    plan
        What was planned for the array's chunks.
    kernel
        Makes a chunk of the result from a region of the image and what to take of it along axes
        that are not sliced.
    dtype
        Dtype of the result.
    large
        Whether the kernel is to be sent to a worker once, not with every task.

    Returns
    -------
    dask.array.Array
        In ``plan.out_chunks``.

    Raises
    ------
    PatchError
        If there would be too many tasks.
    """
    check_tasks(prod(plan.counts))
    check_tasks(exchanged_tasks(plan) + large)
    name = f"patches-{_token(array.name, plan, kernel)}"
    result = _result(plan.out_chunks, dtype)
    array = checked(array)
    if isinstance(plan, Plan) and plan.blocks_are_chunks:
        dropped = range(plan.patch_axis, array.ndim) if plan.form == "flat" else range(0)
        added = len(plan.out_chunks) - (array.ndim - len(dropped))
        return array.map_blocks(
            _run_on_chunk,
            name=name,
            plan=plan,
            kernel=kernel,
            drop_axis=list(dropped),
            new_axis=list(range(plan.patch_axis, plan.patch_axis + added)),
            **result,
        )
    graph: dict[Any, Task | DataNode] = {}
    runs: Any = kernel
    if large:
        graph[f"{name}-kernel"] = DataNode(f"{name}-kernel", kernel)
        runs = TaskRef(f"{name}-kernel")
    parts = [_parts(*pair) for pair in zip(plan.regions, plan.chunks, strict=True)]
    takes = plan.takes
    for block in product(*map(range, map(len, parts))):
        along = [axis[i] for axis, i in zip(parts, block, strict=True)]
        keys = [_cut_out(graph, name, array, part) for part in product(*along)]
        shape = tuple(map(len, along))
        outs = list(product(*(axis[i] for axis, i in zip(takes, block, strict=True))))
        if len(outs) > 1 and len(keys) > 1:
            key: tuple[Any, ...] = (f"{name}-region", *block)
            graph[key] = Task(key, _put_together, shape, *keys)
            keys = [TaskRef(key)]
        for out in outs:
            numbers, take = zip(*out, strict=True)
            key = (name, *plan.out_index(numbers))
            graph[key] = Task(key, _run_on_parts, runs, take, shape, *keys)
    return da.Array(
        HighLevelGraph.from_collections(name, graph, dependencies=[array]), name, **result
    )


def read(
    source: Callable[[Slices], Array], token: str, plan: Blocks, kernel: Kernel, dtype: Any
) -> Any:
    """Build the graph in which every block reads its own region, in one task; as `exchange`.

    Parameters
    ----------
    source
        Gives the samples of a region as NumPy, in any thread or process.
    token
        Tells the source from all others.
    plan
        What was planned.
    kernel, dtype
        As for `exchange`.
    """
    check_tasks(read_tasks(plan))
    name = f"patches-{_token(token, plan, kernel)}"
    shared = f"{name}-source"  # sent to a worker once
    graph: dict[Any, Task | DataNode] = {shared: DataNode(shared, (source, kernel))}
    axes = [
        [(*take, slice(*region)) for (take,), region in zip(takes, regions, strict=True)]
        for takes, regions in zip(plan.takes, plan.regions, strict=True)
    ]
    for block in product(*axes):
        numbers, take, region = zip(*block, strict=True)
        key = (name, *plan.out_index(numbers))
        graph[key] = Task(key, _run_on_region, take, region, TaskRef(shared))
    return da.Array(
        HighLevelGraph.from_collections(name, graph), name, **_result(plan.out_chunks, dtype)
    )


def exchanged_tasks(plan: Blocks) -> int:
    """Count the tasks that `exchange` adds to the graph of the array, but for a large kernel's."""
    checks = prod(map(len, plan.chunks))
    if isinstance(plan, Plan) and plan.blocks_are_chunks:
        return 2 * checks
    # Blocks are the product of those along each axis, and so is whatever is counted of them.
    used, whole, blocks, one_part, one_out, both = [1] * 6
    for axis, (regions, lengths) in enumerate(zip(plan.regions, plan.chunks, strict=True)):
        parts = _parts(regions, lengths)
        cut = {(number, of.start, of.stop) for block in parts for number, of in block}
        used *= len(cut)
        whole *= sum(stop - start == lengths[number] for number, start, stop in cut)
        single, alone = [len(of) == 1 for of in parts], [True] * len(parts)
        if isinstance(plan, Plan):  # of others, a block is one chunk of the result
            alone = [count <= plan.axes[axis].limit for count in plan.axes[axis].blocks]
        blocks *= len(parts)
        one_part *= sum(single)
        one_out *= sum(alone)
        both *= sum(map(operator.and_, single, alone))
    put_together = blocks - one_part - one_out + both
    return checks + used - whole + put_together + prod(plan.counts)


def read_tasks(plan: Blocks) -> int:
    """Count the tasks of what `read` gives."""
    return prod(plan.counts) + 1


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
    array : dask.array.Array
        Patches along `axis`.
    counts
        Lengths of the axes that replace it.
    numbers
        For every patch its number in the grid, the last axis running fastest.
    """
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
    graph: dict[Any, Task] = {}
    for index in product(*(range(len(lengths)) for lengths in chunks)):
        run = 0
        for number, lengths in zip(index[axis:], grid, strict=False):
            run = run * len(lengths) + number
        shape = tuple(lengths[number] for number, lengths in zip(index, chunks, strict=True))
        source = (array.name, *index[:axis], run, *index[axis + len(grid) :])
        key = (name, *index)
        graph[key] = Task(key, np.reshape, TaskRef(source), shape)
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


_Part: TypeAlias = tuple[int, slice]
"""Along one axis: a chunk, and what of it."""


def _parts(regions: Iterable[tuple[int, int]], chunks: tuple[int, ...]) -> list[list[_Part]]:
    """Find the parts of every block's region along one axis."""
    edges = [0, *accumulate(chunks)]
    blocks = []
    for start, stop in regions:
        first = min(bisect_right(edges, start), len(chunks)) - 1
        parts = []
        for number in range(first, bisect_left(edges, stop)) or [first]:
            low, high = max(start, edges[number]), min(stop, edges[number + 1])
            if low < high or start == stop:
                parts.append((number, slice(low - edges[number], high - edges[number])))
        blocks.append(parts)
    return blocks


def _cut_out(
    graph: dict[Any, Task | DataNode], name: str, array: Any, part: tuple[_Part, ...]
) -> TaskRef:
    """Refer to a part of a chunk, which one task copies for all blocks that need it."""
    numbers, cut = zip(*part, strict=True)
    chunk: tuple[Any, ...] = (array.name, *numbers)
    lengths = map(tuple.__getitem__, array.chunks, numbers)
    if all(slice(0, length) == of for length, of in zip(lengths, cut, strict=True)):
        return TaskRef(chunk)
    key: tuple[Any, ...] = (
        f"{name}-cut",
        *numbers,
        *(edge for of in cut for edge in (of.start, of.stop)),
    )
    graph[key] = Task(key, _copy_part, TaskRef(chunk), cut)
    return TaskRef(key)


def _copy_part(chunk: Array, cut: Slices) -> Array:
    return np.array(chunk[cut], order="C")


def _put_together(shape: tuple[int, ...], *parts: Array) -> Array:
    """Join this many parts along every axis, given in C order."""
    if len(parts) == 1:
        return parts[0]
    edges = []
    for axis, count in enumerate(shape):
        step = prod(shape[axis + 1 :])  # from a part to the next along the axis
        lengths = [part.shape[axis] for part in parts[: step * count : step]]
        edges.append([slice(*pair) for pair in pairwise(accumulate(lengths, initial=0))])
    region = np.empty([along[-1].stop for along in edges], parts[0].dtype)
    for place, part in zip(product(*edges), parts, strict=True):
        region[place] = part
    return region


def _run_on_parts(
    kernel: Kernel, takes: Sequence[Any], shape: tuple[int, ...], *parts: Array
) -> Array:
    return run_kernel(kernel, takes, _put_together(shape, *parts))


def _run_on_region(
    takes: Sequence[Any], region: Slices, shared: tuple[Callable[[Slices], Array], Kernel]
) -> Array:
    source, kernel = shared
    return run_kernel(kernel, takes, source(region))


def _run_on_chunk(block: Array, plan: Plan, kernel: Kernel, block_id: tuple[int, ...]) -> Array:
    """Run the kernel on one of equal blocks that are whole chunks."""
    last = plan.spatial[-1]
    takes: list[Take] = []
    for axis, of in enumerate(plan.axes):
        number = block_id[axis] if axis <= last or plan.form == "reduced" else 0
        if axis > last and plan.form == "grid":
            number = block_id[axis + len(plan.spatial)]
        count = min(of.limit, of.grid.count - number * of.limit)
        _, _, origin = of.grid.region(number * of.limit, count)
        takes.append(plan.take(axis, origin, count))
    return run_kernel(kernel, takes, block)


def run_kernel(kernel: Kernel, takes: Sequence[Any], block: Array) -> Array:
    """Run a kernel on a region, of which slices among the takes are taken first."""
    kept = tuple(take if isinstance(take, slice) else slice(None) for take in takes)
    return kernel(block[kept], [take for take in takes if not isinstance(take, slice)])


def _result(chunks: tuple[tuple[int, ...], ...], dtype: Any) -> dict[str, Any]:
    """Tell dask what it would otherwise guess."""
    return {"chunks": chunks, "dtype": dtype, "meta": np.empty((0,) * len(chunks), dtype)}
