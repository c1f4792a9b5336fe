"""Which lengths chunks, shards and blocks have; those of patches are chosen here."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from operator import add
from typing import Any, TypeAlias

from xpatches.arguments import among, check_among
from xpatches.datasets.layout import Arrangement
from xpatches.errors import PatchError
from xpatches.geometry.boxes import count_parts
from xpatches.geometry.lengths import grow

CHUNK = 1 << 20
"""Bytes of a chunk to which several patches are put together."""
SHARD = 1 << 25
"""Bytes of a stored object, about."""
BLOCKS = 16
"""Blocks of an array, at least, before they grow larger than a stored object."""
_MOST = 8
"""Budgets of samples that the patches of a block take, at most: a failure costs that much work."""

Fits: TypeAlias = Callable[[Sequence[int]], bool]
"""Whether lengths fit."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Along every dim of an array of patches."""

    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    steps: tuple[int, ...]
    """Of what is cut and written at once, multiples of those of a stored object."""
    blocks: tuple[int, ...]
    """Multiples of those of a step."""


def lay_out(
    what: str,
    patches: Arrangement,
    chunks: Mapping[Any, int] | None = None,
    shards: Mapping[Any, int] | bool | None = None,
) -> Lengths:
    """Choose the lengths of chunks, shards, steps and blocks.

    A chunk is a patch, or several patches up to `CHUNK` bytes, with all that lies along the other
    dims: behind the patch up to a shard, before it where that makes no more than four `CHUNK`, or
    else as much as one holds. A shard is as many chunks as make `SHARD` bytes, and so is a step.
    Blocks grow as long as the samples under one fit the budget and there are `BLOCKS`, for large
    ones read little of the image twice.

    Parameters
    ----------
    what
        Name of the variable, for errors.
    patches
        What is stored; its budget is half of a task's, and the other half is for a step.
    chunks, shards
        Lengths by dim that the user gives, -1 for a whole dim; `shards` may be False for none.

    Raises
    ------
    PatchError
        If a length does not fit the dims, or a stored object does not fit the budget.
    """
    dims, shape, axes, budget = patches.dims, patches.shape, patches.axes, patches.max_bytes
    check_not_empty(what, dims, shape)
    # Of lengths that are equal, that of the last dim is doubled first.
    last_first = range(len(dims) - 1, -1, -1)
    counted = [0] if patches.flat else sorted(patches.spatial, reverse=True)
    patch = [dim for dim in last_first if axes[dim] is None and dim not in counted]
    behind = [dim for dim in last_first if axes[dim] is not None and dim > patch[0]]
    before = [dim for dim in last_first if dim not in (*patch, *counted, *behind)]
    within = partial(_within, patches.itemsize)

    fixed = given_lengths(chunks, dims, shape)
    free = [[dim for dim in group if dim not in fixed] for group in (behind, before, counted)]
    least = [fixed.get(dim, shape[dim] if dim in patch else 1) for dim in range(len(dims))]
    # A task writes whole patches, of which chunks may hold parts.
    shard = min(SHARD, budget) // prod(-(-shape[dim] // least[dim]) for dim in patch)
    chunk = double_lengths(least, shape, within(shard), free[0])
    together = [shape[dim] if dim in free[1] else length for dim, length in enumerate(chunk)]
    most = 4 * CHUNK if within(4 * CHUNK)(together) else CHUNK
    chunk = double_lengths(chunk, shape, within(min(most, shard)), free[1])
    chunk = stored = double_lengths(chunk, shape, within(min(CHUNK, shard)), free[2])

    if shards is not False:
        fixed = given_shards(shards, dims, shape, chunk)
        free = [[dim for dim in group if dim not in fixed] for group in (counted, before)]
        least = [fixed.get(dim, length) for dim, length in enumerate(chunk)]
        stored = double_lengths(least, whole_units(shape, chunk), within(shard), *free)
    objects = whole_units(shape, stored)
    least = [objects[dim] if dim in patch else length for dim, length in enumerate(stored)]
    if not within(budget)(least):
        raise PatchError(
            f"what a task writes of {what} must be <= {budget} bytes, half of dask's "
            f"array.chunk-size, got {patches.itemsize * prod(least)}: whole patches in objects of "
            f"{dict(zip(dims, stored, strict=True))}; give smaller chunks and shards, or set "
            "dask's array.chunk-size higher"
        )

    def several(most: int) -> Fits:
        """Whether there are many blocks, of so many bytes at most."""
        return lambda lengths: count_parts(shape, lengths) >= BLOCKS and within(most)(lengths)

    def readable(lengths: Sequence[int]) -> bool:
        """Whether the samples under a block in the middle of the grid fit."""
        starts = [n // length // 2 * length for n, length in zip(shape, lengths, strict=True)]
        ends = map(min, map(add, starts, lengths), shape)
        return patches.region(tuple(map(slice, starts, ends))) is not None

    ends, fits = whole_units(shape, least), several(min(SHARD, budget))
    step = double_lengths(least, ends, fits, counted, before)
    ends, fits = whole_units(shape, step), several(_MOST * budget)
    block = double_lengths(step, ends, lambda n: fits(n) and readable(n), counted, before)
    return Lengths(chunk, None if stored == chunk else stored, step, block)


def double_lengths(
    lengths: Sequence[int], ends: Sequence[int], fits: Fits, *groups: Sequence[int]
) -> tuple[int, ...]:
    """Double lengths along the dims of one group after the other, as long as they fit.

    The shortest length of a group is doubled first, and of several the one that is named first.

    Parameters
    ----------
    lengths
        At the beginning.
    ends
        The longest lengths.
    fits
        Whether lengths may be.
    *groups
        Numbers of dims.

    Examples
    --------
    >>> double_lengths((1, 1), (9, 3), lambda lengths: prod(lengths) <= 12, [1, 0])
    (4, 3)
    """
    for group in groups:
        lengths = grow(
            lengths,
            partial(_shortest_first, group),
            lambda dim, length: min(2 * length, ends[dim]),
            fits,
        )
    return tuple(lengths)


def whole_units(shape: Sequence[int], units: Sequence[int]) -> list[int]:
    """Give the lengths of so many units as hold everything."""
    return [-(-n // unit) * unit for n, unit in zip(shape, units, strict=True)]


def _shortest_first(dims: Sequence[int], lengths: Sequence[int]) -> list[int]:
    return sorted(dims, key=lengths.__getitem__)


def _within(itemsize: int, most: int) -> Fits:
    return lambda lengths: itemsize * prod(lengths) <= most


def check_dims(dims: Iterable[Iterable[Hashable]], **lengths: Any) -> None:
    """Refuse lengths by dim, of chunks and shards, that name dims which no array has."""
    known = {dim: None for several in dims for dim in several}
    for argument, by_dim in lengths.items():
        check_among(argument, by_dim or (), known)


def check_not_empty(what: str, dims: Sequence[Hashable], shape: Sequence[int]) -> None:
    """Refuse to write what has no samples."""
    if not prod(shape):
        raise PatchError(
            f"{what} must have samples along every dim, got {dict(zip(dims, shape, strict=True))}; "
            "there is nothing to write"
        )


def given_lengths(
    by_dim: Mapping[Any, int] | bool | None, dims: tuple[Hashable, ...], shape: tuple[int, ...]
) -> dict[int, int]:
    """Give by number of the dim the lengths that the user gives by dim, -1 for a whole one."""
    lengths = by_dim if isinstance(by_dim, Mapping) else {}
    numbers = {dims.index(dim): length for dim, length in lengths.items() if among(dim, dims)}
    return {
        number: min(length, shape[number]) if length > 0 else shape[number]
        for number, length in numbers.items()
    }


def given_shards(
    by_dim: Mapping[Any, int] | bool | None,
    dims: tuple[Hashable, ...],
    shape: tuple[int, ...],
    chunks: Sequence[int],
) -> dict[int, int]:
    """Give lengths of shards by number of the dim, whole chunks."""
    fixed = given_lengths(by_dim, dims, shape)
    for number, length in fixed.items():
        chunk = chunks[number]
        if length % chunk and length < shape[number]:
            raise PatchError(
                f"shards on {dims[number]!r} must be a multiple of the chunks, got {length} and "
                f"chunks of {chunk}; choose another length, or give both"
            )
        fixed[number] = -(-length // chunk) * chunk
    return fixed
