"""The NumPy kernel of the way back: the patches over a block in, the block out."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from xpatches.dtypes import Array, as_floats, divided, halves, in_floats, least, missing_value
from xpatches.geometry.coverage import Cover
from xpatches.stitching.overlay import Layer, Overlay

_ROWS = 1 << 18
"""Samples of the rows of tiles that are made at once, about."""
_PAIRS = 9
"""Patches over a sample up to which their labels are compared with each other, not counted."""


@dataclass(frozen=True, slots=True)
class Stitching:
    """What to make of the patches over a sample."""

    how: str
    """``"sum"``, ``"mean"``, ``"max"``, ``"min"``, ``"first"``, ``"vote"`` or ``"crop"``."""
    dtype: np.dtype[Any]
    """Dtype of the result."""
    within: np.dtype[Any]
    """Dtype in which sums are made."""
    weights: tuple[Array, ...] | None
    """Of a patch's samples, for every spatial dim, float64; None for ones."""
    fill_value: Array
    """0-d array of the result's dtype, for samples that no patch holds."""
    skipna: bool = False
    """Whether missing samples of patches do not count where others are."""
    nodata: Array | None = None
    """0-d array of the patches' dtype: the value of missing samples, besides NaN and NaT."""


def stitch_block(
    patches: Array,
    covers: Sequence[Cover],
    axes: Sequence[tuple[int, int]],
    order: Sequence[int],
    stitching: Stitching,
    present: Array | None = None,
) -> Array:
    """Make one block of an image from all patches that reach into it.

    Parameters
    ----------
    patches
        Of any memory order.
    covers
        The samples of the block and the patches over them, for every axis of `patches` that runs
        along the grid, in their order.
    axes
        For every spatial dim, in the image's order, the axis of `patches` that runs along the grid
        and the one that runs along the samples of a patch.
    order
        For every axis of the result, the axis of `patches` that it is made of.
    stitching
        What to make of them.
    present
        Which patches of the image there are, bool, along the spatial dims; None for all.

    Returns
    -------
    numpy.ndarray
        C-contiguous; of the covers' lengths along the spatial dims.

    Examples
    --------
    >>> from xpatches.geometry.coverage import AxisCover
    >>> from xpatches.geometry.grid import AxisGrid
    >>> cover = AxisCover.of(AxisGrid("x", length=5, size=3, stride=1)).block(0, 5)
    >>> how = Stitching("sum", np.dtype(int), np.dtype(int), None, np.array(0))
    >>> stitch_block(np.ones((3, 3), int), [cover], [(0, 1)], [0], how)
    array([1, 2, 3, 2, 1])
    """
    by_axis = dict(zip(sorted(axis for axis, _ in axes), covers, strict=True))
    spatial = {axis: by_axis[axis] for axis, _ in axes}
    lengths = [spatial[axis].length if axis in spatial else patches.shape[axis] for axis in order]
    result = np.empty(lengths, stitching.dtype)
    others = [axis for axis in order if axis not in spatial]
    target = result.transpose([order.index(axis) for axis in (*others, *spatial)])
    laid = patches.transpose([*others, *(axis for pair in axes for axis in pair)])
    first, *behind = spatial.values()
    stride, whole = first.axis.stride, (slice(None),) * len(others)
    row = math.prod(target.shape[: len(others)]) * math.prod(cover.length for cover in behind)
    rows = stride * max(1, _ROWS // max(1, stride * row))
    for start in range(-first.margin, first.length, rows):
        taken = slice(max(0, start), min(start + rows, first.length))
        part = first.part(taken.start, taken.stop)
        parts = (part, *behind)
        over = slice(part.first - first.first, part.first - first.first + part.count)
        there = None if present is None else present[tuple(cover.numbers for cover in parts)]
        overlay = Overlay(laid[(*whole, over)], parts, stitching.weights, there)
        with np.errstate(all="ignore"):  # Inf and NaN are what they are
            target[(*whole, taken)] = overlay.inside(_stitched(overlay, stitching))
    return result


def _stitched(overlay: Overlay, stitching: Stitching) -> Array:
    """Make the samples of some tiles, those that no patch holds, too."""
    tiles = _of_known(overlay, stitching).astype(stitching.dtype, copy=False)
    bare = overlay.bare()
    if bare is not None:
        np.copyto(tiles, stitching.fill_value, where=bare)
    return tiles


def _of_known(overlay: Overlay, stitching: Stitching) -> Array:
    """Make samples of patches; of those that are known, where some are missing and to be skipped.

    The others are made as if none were missing anywhere: they have the same bits.
    """
    how, nodata, reduction = stitching.how, stitching.nodata, _REDUCTIONS[stitching.how]
    tiles = reduction(overlay, stitching)
    votes = how == "vote" and overlay.patches.dtype.kind == "f"  # NaN is never the same label
    if not (stitching.skipna or votes):
        return tiles
    suspect = np.True_ if votes or nodata is not None else _is_nan(tiles)
    if not suspect.any():
        return tiles
    touched = overlay.full(False, bool)
    for layer in overlay.layers():
        touched[layer.place] |= layer.counted(_is_missing(layer.samples, nodata))
    touched &= suspect
    if not touched.any():
        return tiles
    if how == "sum":
        nothing: Any = tiles.dtype.type(0)
    elif nodata is not None:
        nothing = nodata.astype(tiles.dtype)
    else:
        nothing = missing_value(tiles.dtype) if votes else tiles
    if not stitching.skipna:
        return np.where(touched, nothing, tiles)
    patches = overlay.patches
    known = replace(overlay, known=lambda taken: ~_is_missing(patches[taken], nodata))
    skipped, bare = reduction(known, stitching), known.bare()
    return np.where(touched, skipped if bare is None else np.where(bare, nothing, skipped), tiles)


def _is_missing(samples: Array, nodata: Array | None) -> Array:
    """Tell which samples are NaN, NaT or the declared value."""
    if nodata is None:
        return _is_nan(samples)
    declared: Array = samples == nodata
    return declared | _is_nan(samples) if samples.dtype.kind in "fcmM" else declared


def _is_nan(samples: Array) -> Array:
    """Tell which samples are NaN or NaT."""
    return np.isnat(samples) if samples.dtype.kind in "mM" else np.isnan(samples)


def _sum(overlay: Overlay, stitching: Stitching) -> Array:
    return _settled(_summed(overlay, stitching.within))


def _summed(
    overlay: Overlay, within: np.dtype[Any], base: Array | None = None, scale: float = 1
) -> Array:
    """Sum what patches hold over every sample, or how far it is from a base, or part of it."""
    total = overlay.full(0, within)
    for layer in overlay.layers():
        samples = layer.samples
        if base is not None:
            samples = np.subtract(samples, base[layer.place], dtype=within)
        elif scale != 1:
            samples = np.multiply(samples, within.type(scale), dtype=within)
        samples = layer.counted(samples)
        if overlay.weights is not None:
            samples = samples * layer.weight.astype(within)
        total[layer.place] += samples
    return total


def _settled(sums: Array) -> Array:
    """Give all NaN the same bits: those that adding them up leaves depend on where they stand."""
    if sums.dtype.kind in "fc" and not np.isfinite(sums.sum()):
        parts = sums.view(sums.real.dtype)
        np.copyto(parts, np.nan, where=np.isnan(parts))
    return sums


def _mean(overlay: Overlay, stitching: Stitching) -> Array:
    patches, dtype, within = overlay.patches, stitching.dtype, stitching.within
    kind, flat = patches.dtype.kind, overlay.weights is None
    if kind in "iu" and dtype.kind in "iuf" and (flat or patches.dtype.itemsize == 8):
        whole, rest, count = _average(overlay) if flat else _weighted_average(overlay)
        if dtype.kind == "f":
            return as_floats(whole, rest, count)
        up = (2 * rest > count) | ((2 * rest == count) & (whole & 1 == 1))
        return np.asarray(whole + up)
    if kind == "c":
        mean = overlay.full(0, within)
        for part in ("real", "imag"):  # Inf in one of them is nothing to the other
            parts = replace(overlay, patches=getattr(patches, part))
            getattr(mean, part)[...] = _mean_of_floats(parts, mean.real.dtype)
        return mean
    mean = _mean_of_floats(overlay, within)
    if dtype.kind in "iu":  # rounded half to even; weights may lead out of range by their rounding
        np.clip(np.rint(mean, out=mean), np.iinfo(dtype).min, np.iinfo(dtype).max, out=mean)
    return mean


def _mean_of_floats(overlay: Overlay, within: np.dtype[Any]) -> Array:
    """Give the mean, which is exactly what patches hold where they agree, whatever the weights.

    Without weights two or four patches need no more bits: ``x + x`` is exact, and what ``2x + x``
    loses, half of what ``4x`` can tell apart at most, rounding makes good again. Three times a
    value may, as where one of four patches is missing. Elsewhere that is what the heaviest patch
    holds, and the mean of how far all are from it.
    """
    most = [cover.axis.most_over(1) for cover in overlay.covers]
    alike = overlay.all_count and overlay.weights is None
    exact = alike and max(most) <= 2 and math.prod(most) <= 4
    base = None if exact else overlay.heaviest(within)
    totals = overlay.totals(within)
    mean = _summed(overlay, within, base)
    mean /= totals
    if base is not None:
        mean += base
    if np.isfinite(mean.sum()):
        return mean
    # A sum was too large, for which a mean is not, or Inf was no base; or it is Inf or NaN.
    scale = 0.5 ** (1 + math.prod(most).bit_length())
    scaled = _summed(overlay, within, scale=scale)
    scaled /= totals * within.type(scale)
    return _settled(np.where(np.isfinite(mean), mean, scaled))


def _average(overlay: Overlay) -> tuple[Array, Array, Array]:
    """Divide sums of integers: quotient, rest and count; those of 64 bits are summed in halves."""
    dtype = overlay.patches.dtype.newbyteorder("=")
    wide, count = dtype.itemsize == 8, overlay.totals(np.int64)
    sums = tuple(overlay.full(0, np.int64) for _ in range(1 + wide))
    for layer in overlay.layers():
        samples = layer.counted(layer.samples)
        for total, part in zip(sums, halves(samples) if wide else [samples], strict=True):
            total[layer.place] += part
    return *divided(sums, count, dtype if wide else np.dtype("i8")), count


def _weighted_average(overlay: Overlay) -> tuple[Array, Array, int]:
    """Do the same around what the heaviest patch holds: float64 holds how far others are."""
    dtype = overlay.patches.dtype.newbyteorder("=")
    base, above = overlay.heaviest(dtype), overlay.full(0, float)
    floats, lost = in_floats(base)
    for layer in overlay.layers():
        whole, rest = in_floats(layer.samples)
        away = (whole - floats[layer.place]) + (rest - lost[layer.place])
        above[layer.place] += layer.counted(away) * layer.weight
    above /= overlay.totals(float)
    down = np.floor(above)
    top = np.floor(down / 2.0**32)
    base += top.astype("i8").astype(dtype) << base.dtype.type(32)
    base += (down - top * 2.0**32).astype("i8").astype(dtype)
    return base, above - down, 1


def _extreme(overlay: Overlay, stitching: Stitching) -> Array:
    how, dtype = stitching.how, stitching.dtype
    better = np.maximum if how == "max" else np.minimum
    extreme = overlay.full(least(dtype, how), dtype)
    for samples, place, _, counts in overlay.layers():
        better(extreme[place], samples, out=extreme[place], where=counts)
    return extreme


def _first(overlay: Overlay, stitching: Stitching) -> Array:
    return overlay.heaviest(stitching.dtype)


def _crop(overlay: Overlay, stitching: Stitching) -> Array:
    """Take every sample from the patch whose center is nearest, the first of several."""
    near = []
    for axis in (cover.axis for cover in overlay.covers):
        middle = (axis.effective_size - 1) // 2
        away = np.arange(axis.size) * axis.rate - middle
        near.append(axis.effective_size**2 - away**2)
    nearest = replace(overlay, weights=tuple(near), combine=np.add.outer)
    return nearest.heaviest(stitching.dtype)


def _vote(overlay: Overlay, stitching: Stitching) -> Array:
    """Take the label that most patches give, the least of several; of two zeros the positive."""
    layers = list(overlay.layers())
    best, most = overlay.full(0, stitching.dtype), overlay.full(0, np.int32)
    for label in _candidates(overlay, layers):
        votes = overlay.full(0, np.int32)
        for layer in layers:
            votes[layer.place] += layer.counted(layer.samples == label[layer.place])
        better = (votes > most) | ((votes == most) & (votes > 0) & (label < best))
        np.copyto(best, label, where=better)
        np.maximum(most, votes, out=most)
    if best.dtype.kind in "fc":
        best[best == 0] = 0  # which of two that are equal comes first depends on blocks
    return best


def _candidates(overlay: Overlay, layers: Sequence[Layer]) -> Iterator[Array]:
    """Give labels for every sample: all that there are if they are few, or those of every layer."""
    if len(layers) > _PAIRS:
        labels = reduce(np.union1d, (layer.samples for layer in layers))
        if len(labels) <= len(layers):
            yield from (np.broadcast_to(label, overlay.shape) for label in labels)
            return
    for layer in layers:
        laid = overlay.full(0, layer.samples.dtype)
        laid[layer.place] = layer.samples
        yield laid


_REDUCTIONS: dict[str, Callable[[Overlay, Stitching], Array]] = {
    "sum": _sum,
    "mean": _mean,
    "max": _extreme,
    "min": _extreme,
    "first": _first,
    "crop": _crop,
    "vote": _vote,
}
