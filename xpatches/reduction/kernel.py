"""Reduce every patch of a block; NumPy only.

A reduction that can be merged from those of two halves needs no patches: it is made along one axis
after the other. Along an axis, the reduction of 2m samples is merged from two of m samples that lie
m * rate apart, so that a size of k takes about log2(k) passes over the samples, the last of them at
the stride. Nothing is carried from one patch to the next, as a running sum would do: there is no
cancellation, and NaN and Inf stay in the patches that hold them.

Variances are merged as in Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
Computing Sample Variances" (1979): counts, means and sums of squared deviations.

The work is done in tiles that fit the cache, for there are several passes over each. Where patches
are so large that most of such a tile would be halo, tiles are larger, and the first pass, which
leaves little, goes over a strip of them at a time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from xpatches.dtypes import Array, as_floats, divided, halves, in_floats, least
from xpatches.edges import pad_block, region_of
from xpatches.geometry.boxes import Span
from xpatches.geometry.lengths import grow

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

_CACHE = 1 << 17
"""Samples that a pass works on at once."""
_ROW = 256
"""Samples of a strip beside each other, at least."""
_MOST = 1 << 19
"""As many where patches or strides are large, and most of what fits the cache would be halo."""


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
    >>> from xpatches.geometry.grid import AxisGrid
    >>> span = Span(0, AxisGrid("x", length=7, size=3, stride=2), first=0, count=3)
    >>> how = Reduction("max", np.dtype(int), skipna=False, min_count=0, ignore_padding=False)
    >>> reduce_block(np.array([3, 1, 4, 1, 5, 9, 2]), [span], np.array(0), how)
    array([4, 5, 9])
    """
    counts = list(block.shape)
    for span in spans:
        counts[span.axis] = span.count
    result = np.empty(counts, reduction.dtype)
    if not result.size:
        return result
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
    """Choose the patches of a tile per axis.

    They grow as long as what the first pass leaves fits the cache, or halos are more than half of
    the rest: first those of which more than a quarter is halo, then the last, for long rows.
    """
    grids = {span.axis: span.grid for span in spans}
    order = sorted(range(len(counts)), key=lambda axis: axis != spans[0].axis)

    def reach(axis: int, length: int) -> int:
        if axis not in grids:
            return length
        return (length - 1) * grids[axis].stride + grids[axis].effective_size

    def halo(axis: int, lengths: Sequence[int]) -> float:
        stride = grids[axis].stride if axis in grids else 1
        return max(4 / 3, reach(axis, lengths[axis]) / (lengths[axis] * stride))

    def fits(lengths: Sequence[int]) -> bool:
        room = _MOST if math.prod(halo(axis, lengths) for axis in grids) > 2 else _CACHE
        along, *others = (reach(axis, lengths[axis]) for axis in order)
        strip = along * min(_ROW, math.prod(others))
        return lengths[order[0]] * math.prod(others) <= room and strip <= _MOST

    lengths = grow(
        [1] * len(counts),
        lambda lengths: sorted(range(len(counts)), key=lambda axis: (-halo(axis, lengths), -axis)),
        lambda axis, length: min(length + -(-length // 4), counts[axis]),
        fits,
    )
    return [-(-n // -(-n // length)) for n, length in zip(counts, lengths, strict=True)]


def _reduce(block: Array, spans: list[Span], fill_value: Array, reduction: Reduction) -> Array:
    """Reduce the patches of a tile."""
    how = reduction.how
    samples, valid = _samples(block, spans, fill_value, reduction)
    given = (samples,) if valid is None else (samples, valid)
    if how in ("any", "all"):
        merge = np.logical_or if how == "any" else np.logical_and

        def truth(samples: Array, valid: Array | None = None) -> State:
            true = samples != 0 if samples.dtype.kind != "b" else samples
            return (true if valid is None else np.where(valid, true, how == "all"),)

        return _passes(truth, given, spans, _by(merge), overlap=True)[0]
    if how in ("argmin", "argmax"):
        return _arg(given, spans, reduction)
    count: Any = math.prod(span.grid.size for span in spans)
    if valid is not None:
        count = _sum((valid,), spans)
    if how == "count":
        return np.asarray(count)
    if how in ("min", "max"):
        result = _extreme(given, spans, how)
    elif how == "mean" and samples.dtype.kind in "iu" and samples.dtype.itemsize == 8:
        result = _mean_of_integers(given, spans, count)
    elif how in ("sum", "mean"):
        result = _sum(given, spans)
        if how == "mean":
            result = np.divide(result, np.asarray(count, _wide(reduction.dtype)))
    else:
        result = _variance(given, spans, count, _wide(reduction.dtype))
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


def _extreme(given: State, spans: list[Span], how: str) -> Array:
    def extremes(samples: Array, valid: Array | None = None) -> State:
        return (_only(samples, valid, least(samples.dtype, how)),)

    merge = np.minimum if how == "min" else np.maximum
    return _passes(extremes, given, spans, _by(merge), overlap=True)[0]


def _sum(given: State, spans: list[Span]) -> Array:
    """Sum exactly where the samples are integers, in the narrowest dtype that holds the sums."""
    dtype = given[0].dtype
    if dtype.kind in "biu":
        sign = "i" if dtype.kind == "i" else "u"
        most = 1 if dtype.kind == "b" else max(-int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        most *= math.prod(span.grid.size for span in spans)
        widths = (np.dtype(f"{sign}{size}") for size in (1, 2, 4, 8))
        dtype = next((wide for wide in widths if most <= np.iinfo(wide).max), np.dtype(f"{sign}8"))
    dtype = _wide(dtype)

    def terms(samples: Array, valid: Array | None = None) -> State:
        return (_only(samples, valid, 0).astype(dtype, copy=False),)

    return _passes(terms, given, spans, _by(np.add))[0]


def _mean_of_integers(given: State, spans: list[Span], count: Any) -> Array:
    """Average integers of 64 bits, of which sums may be wider: in two halves where they are."""
    samples, total = given[0], math.prod(span.grid.size for span in spans)
    largest = max(-int(samples.min(initial=0)), int(samples.max(initial=0)))

    def terms(samples: Array, valid: Array | None = None) -> State:
        samples = _only(samples, valid, samples.dtype.type(0))
        if largest * total <= np.iinfo("i8").max:
            return (samples.astype("i8", copy=False),)
        return halves(samples)

    def add(first: State, second: State, *_: int) -> State:
        return tuple(map(np.add, first, second))

    sums = _passes(terms, given, spans, add)
    count = np.maximum(count, 1)
    return as_floats(*divided(sums, count, samples.dtype), count)


def _variance(given: State, spans: list[Span], count: Any, dtype: np.dtype[Any]) -> Array:
    long = given[0].dtype.kind in "iu" and given[0].dtype.itemsize >= 4

    def moments(samples: Array, valid: Array | None = None) -> State:
        samples = _only(samples, valid, samples.dtype.type(0))
        mean = np.zeros(samples.shape) if long else samples.astype(dtype)
        state: State = (mean, mean - mean)  # 0, or NaN where the sample is not finite
        if valid is not None:
            state = (*state, valid.astype(dtype))
        return (*state, *in_floats(samples)) if long else state

    merge = _merge_long_variances if long else _merge_variances
    return np.asarray(_passes(moments, given, spans, merge)[1] / count)


def _only(samples: Array, valid: Array | None, neutral: Any) -> Array:
    return samples if valid is None else np.where(valid, samples, neutral)


def _merge_variances(first: State, second: State, m: int, n: int, between: Any = None) -> State:
    """Merge means, sums of squared deviations, and counts where they differ.

    What lies `between` is how far the number from which the second mean is counted is from the
    first one's; that from which the merged one is counted is the first one's.
    """
    away = second[0] - first[0]
    if between is not None:
        away += between
    if len(first) == 2:
        share = n / (m + n)
        return first[0] + away * share, first[1] + second[1] + away * away * (m * share)
    total = first[2] + second[2]
    shares = second[2] / np.maximum(total, 1)
    mean = first[0] + away * shares
    return mean, first[1] + second[1] + away * away * (first[2] * shares), total


def _merge_long_variances(first: State, second: State, m: int, n: int) -> State:
    """Merge the same of large integers, whose means are counted from one of them, in two floats."""
    base, lost = first[-2:]
    if len(first) == 5:  # where nothing came before, there is none
        there = first[2] > 0
        base, lost = np.where(there, base, second[-2]), np.where(there, lost, second[-1])
    between = (second[-2] - base) + (second[-1] - lost)
    return *_merge_variances(first[:-2], second[:-2], m, n, between), base, lost


def _arg(given: State, spans: list[Span], reduction: Reduction) -> Array:
    """Index of the extreme in the patch, in C order; of the first one where there are several."""
    how = reduction.how
    if len(given) > 1 and reduction.skipna:
        some = _passes(lambda _, valid: (valid,), given, spans, _by(np.logical_or), overlap=True)
        if not some[0].all():
            raise ValueError(f"{how} met a patch of NaN alone; use skipna=False")
    better = np.less if how == "argmin" else np.greater

    def indexed(samples: Array, valid: Array | None = None) -> State:
        kept = _only(samples, valid, least(samples.dtype, how[3:]))
        return kept, np.zeros(kept.shape, np.int64)

    def merge(first: State, second: State, shift: int, _: int) -> State:
        (a, i), (b, j) = first, second
        taken = better(b, a)
        if a.dtype.kind == "f":  # NaN is more extreme than any number
            taken = (taken | np.isnan(b)) & ~np.isnan(a)
        return np.where(taken, b, a), np.where(taken, j + shift, i)

    return _passes(indexed, given, spans[::-1], merge, overlap=True)[1]


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Dtype to compute in: half precision would overflow."""
    return np.dtype("f4") if dtype == np.dtype("f2") else dtype


def _by(ufunc: np.ufunc) -> Merge:
    return lambda first, second, *_: (ufunc(first[0], second[0]),)


def _passes(
    prepare: Callable[..., State],
    given: State,
    spans: Sequence[Span],
    merge: Merge,
    overlap: bool = False,
) -> State:
    """Reduce the samples of every patch, one axis after the other.

    Parameters
    ----------
    prepare
        Makes the state of single samples; it is called with a strip of each array of `given`.
    given
        The samples under the patches, and which of them count unless all do.
    spans
        The patches along every axis, in the order of the passes.
    merge, overlap
        As for `_along`, but counting samples of the patch, along all axes reduced so far.
    """
    axis = spans[0].axis
    shape = given[0].shape
    widest = max((n, other) for other, n in enumerate(shape) if other != axis or len(shape) == 1)[1]
    strips = 1 if widest == axis else -(-given[0].size // _MOST)
    width = -(-shape[widest] // strips)
    parts: list[State] = []
    for start in range(0, shape[widest], width):
        strip = (*(slice(None),) * widest, slice(start, start + width))
        parts.append(_along(prepare(*(array[strip] for array in given)), spans[0], merge, overlap))
    state = (
        parts[0]
        if len(parts) == 1
        else tuple(np.concatenate(all_of, widest) for all_of in zip(*parts, strict=True))
    )
    unit = spans[0].grid.size
    for span in spans[1:]:

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
