"""Reduce every patch of a block; NumPy only.

A reduction that can be merged from those of two halves needs no patches: it is made along one axis
after the other. Along an axis, the reduction of 2m samples is merged from two of m samples that lie
m * rate apart, so that a size of k takes about log2(k) passes over the samples, the last of them at
the stride. Nothing is carried from one patch to the next, as a running sum would do: there is no
cancellation, and NaN and Inf stay in the patches that hold them.

Variances are merged as in Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
Computing Sample Variances" (1979): counts, means and sums of squared deviations.

The work is done in tiles that fit the cache, for there are several passes over each.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from xpatches.arrays import Array
from xpatches.geometry import Span
from xpatches.kernel import pad_block, region_of

State: TypeAlias = tuple[Array, ...]
"""What is known of the samples reduced so far; all arrays have the same shape."""
Merge: TypeAlias = Callable[[State, State, int, int], State]
"""Merge two neighbouring states, given the number of samples along the axis in either."""

SEPARABLE = {
    **dict.fromkeys(("min", "max", "argmin", "argmax"), "biuf"),
    **dict.fromkeys(("sum", "mean", "any", "all"), "biufc"),
    **dict.fromkeys(("var", "std"), "biuf"),
    "count": "biufcmM",
}
"""Reductions that are made axis by axis, and the kinds of dtypes for which they are."""

_SAMPLES = 1 << 17
"""Samples of a tile, unless its patches are so large that their halos would outweigh it."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """What to make of every patch."""

    how: str
    """One of `SEPARABLE`."""
    dtype: np.dtype[Any]
    """Dtype of the result."""
    skipna: bool
    """Whether NaN counts as no sample."""
    min_count: int
    """Fewer samples than this give NaN."""
    ignore_padding: bool
    """Whether padding counts as no sample."""


def reduce_block(
    block: Array, spans: Sequence[Span], fill_value: Array, reduction: Reduction
) -> Array:
    """Reduce every patch of one block to one sample.

    Parameters
    ----------
    block
        The samples, of any shape and memory order.
    spans
        The patches along every spatial axis, in the order of the axes.
    fill_value
        0-d array of the block's dtype, for samples outside the block.
    reduction
        What to make of the samples of a patch.

    Returns
    -------
    numpy.ndarray
        Of the block's shape, with `count` samples along every spatial axis.

    Examples
    --------
    >>> from xpatches.geometry import AxisGrid
    >>> span = Span(0, AxisGrid("x", length=7, size=3, stride=2), first=0, count=3)
    >>> how = Reduction("max", np.dtype(int), skipna=False, min_count=0, ignore_padding=False)
    >>> reduce_block(np.array([3, 1, 4, 1, 5, 9, 2]), [span], np.array(0), how)
    array([4, 5, 9])
    """
    counts = list(block.shape)
    for span in spans:
        counts[span.axis] = span.count
    result = np.empty(counts, reduction.dtype)
    lengths = _tile(result.shape, spans)
    with np.errstate(all="ignore"):
        for corner in product(*map(range, [0] * result.ndim, counts, lengths)):
            place = tuple(map(slice, corner, map(int.__add__, corner, lengths)))
            part, moved = list(place), []
            for span in spans:
                start, stop, _ = place[span.axis].indices(span.count)
                first = span.first + start * span.grid.stride
                moved.append(replace(span, first=first, count=stop - start))
                part[span.axis] = slice(None)
            result[place] = _reduce(block[tuple(part)], moved, fill_value, reduction)
    return result


def _tile(counts: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """Choose the patches of a tile per axis: halos are to be small beside it, and it, the cache."""
    grids = {span.axis: span.grid for span in spans}
    lengths = []
    room = max(_SAMPLES, math.prod(4 * grid.effective_size for grid in grids.values()))
    for axis in reversed(range(len(counts))):
        rest = math.prod(4 * grid.effective_size for other, grid in grids.items() if other < axis)
        eff, stride = (grids[axis].effective_size, grids[axis].stride) if axis in grids else (1, 1)
        most = max(1, (room // rest - eff) // stride + 1)
        lengths.append(max(1, min(most, counts[axis])))
        room //= min((lengths[-1] - 1) * stride + eff, room)
    return lengths[::-1]


def _reduce(block: Array, spans: list[Span], fill_value: Array, reduction: Reduction) -> Array:
    """Reduce the patches of a tile."""
    how = reduction.how
    samples, valid = _samples(block, spans, fill_value, reduction)
    if how in ("any", "all"):
        truth = samples != 0 if samples.dtype.kind != "b" else samples
        if valid is not None:
            truth = np.where(valid, truth, how == "all")
        merge = np.logical_or if how == "any" else np.logical_and
        return _along_all((truth,), spans, _by(merge), overlap=True)[0]
    if how in ("argmin", "argmax"):
        return _arg(samples, spans, valid, reduction)
    count: Any = math.prod(span.grid.size for span in spans)
    if valid is not None:
        count = _sum(valid, spans)
    if how == "count":
        return np.asarray(count)
    if how in ("min", "max"):
        result = _extreme(samples, spans, valid, how)
    elif how in ("sum", "mean"):
        result = _sum(samples if valid is None else np.where(valid, samples, 0), spans)
        if how == "mean":
            result = np.divide(result, np.asarray(count, _wide(reduction.dtype)))
    else:
        result = _variance(samples, spans, valid, count, _wide(reduction.dtype))
        if how == "std":
            result = np.sqrt(result)
    least = max(reduction.min_count, how != "sum")
    may_miss = reduction.skipna or reduction.ignore_padding
    if may_miss and reduction.dtype.kind in "fc" and (valid is not None or count < least):
        result = np.where(count >= least, result, np.nan)
    return result


def _samples(
    block: Array, spans: list[Span], fill_value: Array, reduction: Reduction
) -> tuple[Array, Array | None]:
    """Give the samples under the patches, and which of them count; None for all."""
    samples, pads = region_of(block, spans, fill_value)
    valid = None
    if reduction.ignore_padding and pads:
        inside = [n - sum(pads.get(axis, ())) for axis, n in enumerate(samples.shape)]
        valid = pad_block(np.ones(inside, bool), pads, np.array(False))
    if (reduction.skipna or reduction.how == "count") and samples.dtype.kind in "fcmM":
        missing = np.isnat(samples) if samples.dtype.kind in "mM" else np.isnan(samples)
        if missing.any():
            valid = ~missing if valid is None else valid & ~missing
    return samples, valid


def _extreme(samples: Array, spans: list[Span], valid: Array | None, how: str) -> Array:
    if valid is not None:
        samples = np.where(valid, samples, _least(samples.dtype, how))
    merge = np.minimum if how == "min" else np.maximum
    return _along_all((samples,), spans, _by(merge), overlap=True)[0]


def _sum(samples: Array, spans: list[Span]) -> Array:
    """Sum exactly where the samples are integers, in the narrowest dtype that holds the sums."""
    dtype = samples.dtype
    if dtype.kind in "biu":
        sign = "i" if dtype.kind == "i" else "u"
        most = 1 if dtype.kind == "b" else max(-int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        most *= math.prod(span.grid.size for span in spans)
        widths = (np.dtype(f"{sign}{size}") for size in (1, 2, 4, 8))
        dtype = next((wide for wide in widths if most <= np.iinfo(wide).max), np.dtype(f"{sign}8"))
    return _along_all((samples.astype(_wide(dtype), copy=False),), spans, _by(np.add))[0]


def _variance(
    samples: Array, spans: list[Span], valid: Array | None, count: Any, dtype: np.dtype[Any]
) -> Array:
    mean = samples.astype(dtype) if valid is None else np.where(valid, samples, 0).astype(dtype)
    state: State = (mean, mean - mean)  # 0, or NaN where the sample is not finite
    if valid is not None:
        state = (*state, valid.astype(dtype))
    return np.asarray(_along_all(state, spans, _merge_variances)[1] / count)


def _merge_variances(first: State, second: State, m: int, n: int) -> State:
    """Merge means, sums of squared deviations, and counts where they differ."""
    away = second[0] - first[0]
    if len(first) == 2:
        share = n / (m + n)
        return first[0] + away * share, first[1] + second[1] + away * away * (m * share)
    total = first[2] + second[2]
    shares = second[2] / np.maximum(total, 1)
    mean = first[0] + away * shares
    return mean, first[1] + second[1] + away * away * (first[2] * shares), total


def _arg(samples: Array, spans: list[Span], valid: Array | None, reduction: Reduction) -> Array:
    """Index of the extreme in the patch, in C order; of the first one where there are several."""
    if valid is not None:
        if reduction.skipna and not _along_all((valid,), spans, _by(np.logical_or), True)[0].all():
            raise ValueError(f"{reduction.how} met a patch of NaN alone; use skipna=False")
        samples = np.where(valid, samples, _least(samples.dtype, reduction.how[3:]))
    better = np.less if reduction.how == "argmin" else np.greater
    state: State = (samples, np.zeros(samples.shape, np.int64))
    weight = 1
    for span in reversed(spans):

        def merge(first: State, second: State, shift: int, _: int, weight: int = weight) -> State:
            (a, i), (b, j) = first, second
            taken = better(b, a)
            if a.dtype.kind == "f":  # NaN is more extreme than any number
                taken = (taken | np.isnan(b)) & ~np.isnan(a)
            return np.where(taken, b, a), np.where(taken, j + shift * weight, i)

        state = _along(state, span, merge, overlap=True)
        weight *= span.grid.size
    return state[1]


def _least(dtype: np.dtype[Any], how: str) -> Any:
    """Give the value that no other is less extreme than."""
    if dtype.kind == "b":
        return how == "min"
    if dtype.kind in "iu":
        return np.iinfo(dtype).max if how == "min" else np.iinfo(dtype).min
    return np.inf if how == "min" else -np.inf


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Dtype to compute in: half precision would overflow."""
    return np.dtype("f4") if dtype == np.dtype("f2") else dtype


def _by(ufunc: np.ufunc) -> Merge:
    return lambda first, second, *_: (ufunc(first[0], second[0]),)


def _along_all(state: State, spans: list[Span], merge: Merge, overlap: bool = False) -> State:
    unit = 1
    for span in spans:

        def scaled(first: State, second: State, m: int, n: int, unit: int = unit) -> State:
            return merge(first, second, m * unit, n * unit)

        state = _along(state, span, scaled, overlap)
        unit *= span.grid.size
    return state


def _along(state: State, span: Span, merge: Merge, overlap: bool) -> State:
    """Reduce the samples of every patch along one axis.

    Parameters
    ----------
    state
        One sample each along the axis, from the first sample of the first patch on.
    span
        The patches.
    merge
        Is given how many samples of the axis lie in the first state, or between the beginnings of
        both where they overlap.
    overlap
        Whether a sample may be in both states, as an extreme does not mind.
    """
    size, stride, rate = span.grid.size, span.grid.stride, span.grid.rate
    before = (slice(None),) * span.axis
    reach = (span.count - 1) * stride + 1

    def patches(state: State, tap: int) -> State:
        part = (*before, slice(tap * rate, tap * rate + reach, stride))
        return tuple(array[part] for array in state)

    passes = size.bit_length() - 1
    if (size - 1) * 2 <= passes * stride + size.bit_count():
        merged = patches(state, 0)
        for tap in range(1, size):
            merged = merge(merged, patches(state, tap), tap, 1)
        return merged
    width, last = 1, 0
    result: State = ()
    while True:
        if not overlap and size & width:
            part = patches(state, last)
            result = merge(result, part, last, width) if result else part
            last += width
        if 2 * width > size:
            break
        gap = width * rate
        low, high = (*before, slice(-gap)), (*before, slice(gap, None))
        first, second = (tuple(array[part] for array in state) for part in (low, high))
        state = merge(first, second, width, width)
        width *= 2
    if overlap:
        result = patches(state, 0)
        if size > width:
            result = merge(result, patches(state, size - width), size - width, width)
    return result
