"""Lengths that grow or shrink until they fit."""

from collections.abc import Callable, Iterable, Sequence

from xpatches.errors import PatchError

MOST_TASKS = 10**7
"""Tasks that no dask graph is to reach: it takes a kilobyte for each, and a scheduler minutes."""


def check_tasks(count: int, what: str = "a dask graph") -> None:
    """Refuse what would take too many tasks, or blocks along one dim, before any is listed.

    Raises
    ------
    PatchError
        It says what to do instead.

    Examples
    --------
    >>> check_tasks(10**12)
    Traceback (most recent call last):
    ...
    xpatches.errors.PatchError: a dask graph must have fewer than 10000000 tasks (blocks), got ...
    """
    if count >= MOST_TASKS:
        raise PatchError(
            f"{what} must have fewer than {MOST_TASKS} tasks (blocks), got {count}; write a "
            "job instead, with to_zarr, map_to_zarr or reduce_to_zarr, take single patches, p[i], "
            "or make blocks larger, by max_bytes or by the chunks of the image"
        )


def shrink(
    most: Sequence[int], movable: Sequence[int], fits: Callable[[Sequence[int]], bool]
) -> list[int]:
    """Lessen the patches per axis, the first axis first, until they fit, or are 1."""
    for axis in movable:
        low, high = 1, most[axis]
        if fits(most) or high <= 1:
            continue
        while low < high:
            middle = (low + high + 1) // 2
            if fits([*most[:axis], middle, *most[axis + 1 :]]):
                low = middle
            else:
                high = middle - 1
        most = [*most[:axis], low, *most[axis + 1 :]]
    return list(most)


def grow(
    lengths: Sequence[int],
    order: Callable[[Sequence[int]], Iterable[int]],
    longer: Callable[[int, int], int],
    fits: Callable[[Sequence[int]], bool],
) -> list[int]:
    """Lengthen one axis at a time, the first in order that still fits, as long as there is one.

    Examples
    --------
    >>> grow([1, 1], lambda of: sorted([0, 1], key=of.__getitem__), lambda axis, n: 2 * n,
    ...      lambda of: of[0] * of[1] <= 8)
    [4, 2]
    """
    lengths = list(lengths)
    while True:
        for axis in order(lengths):
            larger = [*lengths[:axis], longer(axis, lengths[axis]), *lengths[axis + 1 :]]
            if larger != lengths and fits(larger):
                lengths = larger
                break
        else:
            return lengths


def even_divisor(count: int, limit: int) -> int:
    """Give the largest divisor up to `limit`, or `limit` where there is none above half of it."""
    parts = -(-count // limit) if count else 1
    check_tasks(parts, "one dim")
    return next((count // n for n in range(parts, 2 * parts) if count % n == 0), limit) or 1


def equal_counts(count: int, size: int) -> tuple[int, ...]:
    """Cut a count of patches into blocks of this size; the last one may be smaller."""
    whole, rest = divmod(count, size)
    check_tasks(whole, "one dim")
    return (size,) * whole + ((rest,) if rest or not whole else ())
