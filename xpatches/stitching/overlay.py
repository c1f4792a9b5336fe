"""The NumPy kernel of the way back: the patches over a block in, the block out.

All patches are laid over a block in as many steps as a patch has groups
(`xpatches.geometry.coverage`): the samples of a patch that lie in its first, second, ... tile. A
step adds, for all patches at once, one rectangle of each to the tiles that it falls on. The steps
go in a fixed order, patches with low numbers first, so that a sample is made of the same terms in
the same order whatever the block.

The work is done for a few rows of tiles at a time, which stay in cache until they are finished.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import pairwise, product
from typing import Any, TypeAlias

import numpy as np

from xpatches.dtypes import Array, as_floats, divided, halves, in_floats, least, missing_value
from xpatches.geometry.coverage import Cover

_ROWS = 1 << 18
"""Samples of the rows of tiles that are made at once, about."""
_PARTS = 32
"""Parts of a step, at most, in which patches are the heaviest, up to which they are listed."""
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
    covers = [by_axis[axis] for axis, _ in axes]
    lengths = {axis: cover.length for cover, (axis, _) in zip(covers, axes, strict=True)}
    result = np.empty([lengths.get(axis, patches.shape[axis]) for axis in order], stitching.dtype)
    others = [axis for axis in order if axis not in lengths]
    target = result.transpose([order.index(axis) for axis in (*others, *lengths)])
    laid = patches.transpose([*others, *(axis for pair in axes for axis in pair)])
    tiles = [_Tiles.of(cover) for cover in covers]
    shape = target.shape[: len(others)]
    row = tiles[0].stride * math.prod(shape) * math.prod(of.length for of in tiles[1:])
    rows = max(1, _ROWS // max(1, row))
    if present is not None:
        present = present[tuple(slice(of.first, of.first + of.count) for of in covers)]
    whole = (slice(None),) * len(others)
    for first in range(0, tiles[0].count, rows):
        part = [tiles[0].some(first, rows), *tiles[1:]]
        with np.errstate(all="ignore"):  # Inf and NaN are what they are
            made = _made(_Rows(laid, shape, part, stitching, present))
        made = made.reshape(*shape, *(of.length for of in part))
        to, of = zip(*map(_Tiles.inside, part), strict=True)
        target[(*whole, *to)] = made[(*whole, *of)]
    return result


_Step: TypeAlias = tuple[slice, slice, slice, slice]
"""Along one dim: some patches, some samples of each, the tiles, and the samples of those."""
_Place: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Tiles over a block along one dim; the first one may begin before it, the last end behind."""

    cover: Cover
    begin: int
    """Index in the block of the first tile's first sample."""
    shift: int
    """Number of the tile in which the first patch begins; may be negative."""
    count: int

    @classmethod
    def of(cls, cover: Cover) -> "_Tiles":
        stride = cover.axis.stride
        begin = -(-cover.origin % stride)
        count = -(-(cover.length - begin) // stride)
        return cls(cover, begin, (cover.origin - begin) // stride, count)

    @property
    def stride(self) -> int:
        return self.cover.axis.stride

    @property
    def length(self) -> int:
        return self.count * self.stride

    def some(self, first: int, count: int) -> "_Tiles":
        begin, shift = self.begin + first * self.stride, self.shift - first
        return _Tiles(self.cover, begin, shift, min(count, self.count - first))

    def inside(self) -> tuple[slice, slice]:
        """Where the tiles lie in the block, and what of the tiles does."""
        start, stop = max(0, self.begin), min(self.cover.length, self.begin + self.length)
        return slice(start, stop), slice(start - self.begin, stop - self.begin)

    def steps(self) -> list[_Step]:
        """List the steps that lay all patches over the tiles, those with low numbers first."""
        found = []
        for tile, samples, places in reversed(self.cover.axis.groups):
            to = self.shift + tile
            first, stop = max(0, -to), min(self.cover.count, self.count - to)
            if first < stop:
                tiles = slice(first + to, stop + to)
                found.append((slice(first, stop), samples, tiles, places))
        return found


class _Rows:
    """A few rows of tiles, and the patches over them.

    Dims are in pairs: of patches, which one and which of its samples; of tiles likewise. Samples
    count that are not missing in `judged`, or all if that is None.
    """

    def __init__(
        self,
        laid: Array,
        others: tuple[int, ...],
        tiles: Sequence[_Tiles],
        stitching: Stitching,
        present: Array | None,
        judged: Array | None = None,
    ) -> None:
        self.stitching, self._laid, self._present = stitching, laid, present
        self._judged = judged
        self.shape = (*others, *(n for of in tiles for n in (of.count, of.stride)))
        self._steps = [of.steps() for of in tiles]
        self._tiles, self._whole = tiles, (slice(None),) * len(others)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the patches."""
        return self._laid.dtype

    def part(self, name: str) -> "_Rows":
        """Give the real or the imaginary part, ``"real"`` or ``"imag"``."""
        within = np.empty(0, self.stitching.within).real.dtype
        laid, stitching = getattr(self._laid, name), replace(self.stitching, within=within)
        others = self.shape[: len(self._whole)]
        return _Rows(laid, others, self._tiles, stitching, self._present, self._judged)

    def known(self) -> "_Rows":
        """Give the same, but of missing samples none counts."""
        others = self.shape[: len(self._whole)]
        return _Rows(self._laid, others, self._tiles, self.stitching, self._present, self._laid)

    def touched(self) -> Array:
        """Tell which samples have a missing one of a patch over them that has a weight."""
        touched = self.full(False, bool)
        for source, place, samples, there in self.steps():
            missing = self._is_missing(source)
            if there is not None:
                missing &= there
            if self.stitching.weights is not None:
                missing &= self.weight(samples) > 0
            touched[place] |= missing
        return touched

    def _is_missing(self, samples: Array) -> Array:
        """Tell which samples are missing: NaN, NaT or the declared value."""
        nodata = self.stitching.nodata
        if nodata is None:
            return _is_nan(samples)
        declared: Array = samples == nodata
        return declared | _is_nan(samples) if samples.dtype.kind in "fcmM" else declared

    def full(self, value: Any, dtype: Any) -> Array:
        """Make samples that are all the same."""
        return np.full(self.shape, value, dtype)

    def steps(
        self, along: Sequence[list[_Step]] | None = None
    ) -> Iterator[tuple[Array, _Place, Any, Any]]:
        """Give for every step: samples of patches, their place, their number, and which count."""
        for step in product(*(along or self._steps)):
            taken = (*self._whole, *(of for pair in step for of in pair[:2]))
            source = self._laid[taken]
            place = (*self._whole, *(of for pair in step for of in pair[2:]))
            samples = tuple(pair[1] for pair in step)
            there = None
            if self._present is not None:
                some = self._present[tuple(pair[0] for pair in step)]
                there = some.reshape([n for count in some.shape for n in (count, 1)])
            if self._judged is not None:
                known = ~self._is_missing(self._judged[taken])
                there = known if there is None else there & known
            yield source, place, samples, there

    def backwards(self) -> Iterator[tuple[Array, _Place, Any, Any]]:
        """Give the steps in reverse, patches with high numbers first."""
        return self.steps([steps[::-1] for steps in self._steps])

    def spread(self, along: Sequence[Array]) -> list[Array]:
        """Lay one vector a dim, over the samples of a patch, along that dim of many patches."""
        return [
            of.reshape([-1 if dim == 2 * number + 1 else 1 for dim in range(2 * len(along))])
            for number, of in enumerate(along)
        ]

    @property
    def _all_count(self) -> bool:
        """Whether all samples of all patches do."""
        return self._present is None and self._judged is None

    @property
    def _before(self) -> int:
        """Dims, not along the grid, along which the same samples count."""
        return len(self._whole) if self._judged is None else 0

    @property
    def sums_are_exact(self) -> bool:
        """Whether the same value of all patches over a sample adds up to a multiple of it.

        One, two or four times a value needs no more bits: ``x + x`` is exact, and what ``2x + x``
        loses, half of what ``4x`` can tell apart at most, rounding makes good again. Three times
        may, as where one of four patches is missing.
        """
        most = [of.cover.axis.most_over(1) for of in self._tiles]
        whole = self._all_count and self.stitching.weights is None
        return whole and max(most) <= 2 and math.prod(most) <= 4

    @property
    def scale(self) -> float:
        """Give a power of two by which sums of weights are less than 1/2; 1 if they are anyway."""
        most = sum(np.log2(of.sum()) for of in self._weights)
        return float(2 ** min(0.0, -np.ceil(most + 1)))

    @cached_property
    def _weights(self) -> tuple[Array, ...]:
        """Weights along every dim, or ones."""
        ones = (np.ones(of.cover.axis.size) for of in self._tiles)
        return self.stitching.weights or tuple(ones)

    def heaviest(self, dtype: np.dtype[Any]) -> Array:
        """Give what the patch of the greatest weight holds over every sample, the first of several.

        Weights are products: it is found along every dim by itself, if that leaves large parts.
        """
        held = self.full(0, dtype)
        if self._all_count:
            parts = [self._wins(number) for number in range(len(self._tiles))]
            if math.prod(map(len, parts)) <= _PARTS * math.prod(map(len, self._steps)):
                for source, place, *_ in self.steps(parts):
                    held[place] = source
                return held
        before = self._before
        best = np.zeros(self.shape[before:])
        for source, place, samples, there in self.steps():
            weight = self.weight(samples)
            better = weight > best[place[before:]]
            if there is not None:
                better &= there
            np.copyto(held[place], source, where=better)
            np.copyto(best[place[before:]], weight, where=better)
        return held

    def _wins(self, number: int) -> list[_Step]:
        """List the parts of the steps along a dim in which patches are the heaviest."""
        of, steps = self._tiles[number], self._steps[number]
        winner, best = np.full((of.count, of.stride), -1), np.zeros((of.count, of.stride))
        for step, (_, samples, *place) in enumerate(steps):
            weight = self._weights[number][samples]
            heavier = weight > best[*place]
            np.copyto(best[*place], weight, where=heavier)
            winner[*place][heavier] = step
        found = []
        for step, (patches, samples, tiles, places) in enumerate(steps):
            wins = winner[tiles, places] == step
            changes = np.flatnonzero((wins[1:] != wins[:-1]).any(1)) + 1
            for first, stop in pairwise([0, *changes, len(wins)]):  # all but the outer tiles alike
                edges = np.flatnonzero(np.diff(wins[first], prepend=False, append=False))
                for begin, end in edges.reshape(-1, 2):
                    found.append(
                        (
                            _some(patches, first, stop),
                            _some(samples, begin, end),
                            _some(tiles, first, stop),
                            _some(places, begin, end),
                        )
                    )
        return found

    @cached_property
    def _totals(self) -> list[Array]:
        """Arrays whose product is the sum of the weights, or the number of patches.

        One vector a dim, or where patches are missing, one array.
        """
        weights = self.stitching.weights
        dtype = np.int64 if weights is None else float
        if not self._all_count:
            before = self._before
            total = np.zeros(self.shape[before:], dtype)
            for _, place, samples, there in self.steps():
                total[place[before:]] += there if weights is None else there * self.weight(samples)
            return [total]
        vectors = []
        for number, (of, steps) in enumerate(zip(self._tiles, self._steps, strict=True)):
            vector = np.zeros((of.count, of.stride), dtype)
            for _, samples, tiles, places in steps:
                vector[tiles, places] += 1 if weights is None else weights[number][samples]
            shape = [1] * (2 * len(self._tiles))
            shape[2 * number : 2 * number + 2] = vector.shape
            vectors.append(vector.reshape(shape))
        return vectors

    def totals(self, dtype: Any) -> Array:
        """Sum the weights, or count the patches, over every sample."""
        return reduce(np.multiply, [of.astype(dtype) for of in self._totals])

    def missing(self) -> Array | None:
        """Tell which samples no patch holds; None if there are none."""
        bare = [of == 0 for of in self._totals]
        return reduce(np.logical_or, bare) if any(of.any() for of in bare) else None

    def away(self, samples: tuple[slice, ...]) -> Array:
        """Give the squared distance of some samples of a patch from its center."""
        squares = []
        for of, part in zip(self._tiles, samples, strict=True):
            axis = of.cover.axis
            offsets = np.arange(axis.size)[part] * axis.rate
            squares.append((offsets - (axis.effective_size - 1) // 2) ** 2)
        return reduce(np.add, self.spread(squares))

    def weight(self, samples: tuple[slice, ...]) -> Array:
        """Give the weights of some samples of a patch."""
        some = [of[part] for of, part in zip(self._weights, samples, strict=True)]
        return reduce(np.multiply, self.spread(some))


def _is_nan(samples: Array) -> Array:
    """Tell which samples are NaN or NaT."""
    return np.isnat(samples) if samples.dtype.kind in "mM" else np.isnan(samples)


def _some(of: slice, first: int, stop: int) -> slice:
    """Take some of what a slice takes."""
    step = of.step or 1
    return slice(of.start + first * step, of.start + (stop - 1) * step + 1, step)


def _made(rows: _Rows) -> Array:
    """Make samples of patches; of those that are not missing, where some are and are to be skipped.

    The others are made as if none were missing anywhere: they have the same bits.
    """
    stitching = rows.stitching
    how, make = stitching.how, _MAKE[stitching.how]
    made = make(rows)
    votes = how == "vote" and rows.dtype.kind == "f"  # in which NaN is never the same label
    if not (stitching.skipna or votes):
        return made
    nodata = stitching.nodata
    suspect, bare = np.True_ if votes or nodata is not None else _is_nan(made), rows.missing()
    if bare is not None:
        suspect = suspect & ~bare
    if not suspect.any():
        return made
    changed = suspect & rows.touched()
    if not changed.any():
        return made
    known = rows.known()
    nothing = known.missing()
    counts = np.True_ if nothing is None else ~nothing
    if votes and nodata is None:
        missing = changed & ~counts if stitching.skipna else changed
        return np.where(missing, missing_value(made.dtype), make(known))
    some = make(known)
    if nodata is not None and how != "sum":
        return np.where(changed, np.where(counts, some, nodata.astype(made.dtype)), made)
    if how == "sum":
        return np.where(changed, np.where(counts, some, some.dtype.type(0)), made)
    return np.where(changed & counts, some, made)


def _sum(rows: _Rows, base: Array | None = None, scale: float | None = None) -> Array:
    """Sum what patches hold over every sample, or how far it is from a base, or part of it."""
    within = rows.stitching.within
    total = rows.full(0, within)
    for source, place, samples, there in rows.steps():
        if base is not None:
            source = np.subtract(source, base[place], dtype=within)
        elif scale is not None:
            source = np.multiply(source, within.type(scale), dtype=within)
        if there is not None:
            source = np.where(there, source, np.zeros((), source.dtype))
        if rows.stitching.weights is None:
            total[place] += source
            continue
        weight = rows.weight(samples)
        if not weight.all():  # not even NaN counts there
            source = np.where(weight, source, np.zeros((), source.dtype))
        total[place] += source * weight.astype(within)
    return total


def _sums(rows: _Rows) -> Array:
    return _finished(rows, _settled(_sum(rows)))


def _mean(rows: _Rows) -> Array:
    dtype = rows.stitching.dtype
    if rows.dtype.kind in "iu" and dtype.kind in "iuf" and rows.stitching.weights is None:
        mean = _mean_of_integers(rows)
    elif rows.dtype.kind in "iu" and rows.dtype.itemsize == 8 and dtype.kind in "iuf":
        mean = _weighted_integers(rows)
    elif rows.dtype.kind == "c":
        mean = rows.full(0, rows.stitching.within)
        for part in ("real", "imag"):  # Inf in one of them is nothing to the other
            getattr(mean, part)[...] = _mean_of_floats(rows.part(part))
    else:
        mean = _mean_of_floats(rows)
        if rows.dtype.kind != "f" and dtype.kind in "iu":
            mean = _as_integers(mean, dtype)
    return _finished(rows, mean)


def _mean_of_floats(rows: _Rows) -> Array:
    """Give the mean, which is exactly what patches hold where they agree, whatever the weights."""
    totals = rows.totals(rows.stitching.within)
    if not totals.all():  # no patch holds these samples, or its weight is too small for the dtype
        totals[totals == 0] = 1
    if rows.sums_are_exact:
        mean = _sum(rows)
        mean /= totals
    else:  # what the heaviest patch holds, and the mean of how far all are from it
        base = rows.heaviest(rows.stitching.within)
        mean = _sum(rows, base)
        mean /= totals
        mean += base
    if np.isfinite(mean.sum()):
        return mean
    # A sum was too large, for which a mean is not, or Inf was no base; or it is Inf or NaN.
    scaled = _sum(rows, scale=rows.scale)
    scaled /= totals * totals.dtype.type(rows.scale)
    return _settled(np.where(np.isfinite(mean), mean, scaled))


def _settled(made: Array) -> Array:
    """Give all NaN the same bits: those that adding them up leaves depend on where they stand."""
    if made.dtype.kind in "fc" and not np.isfinite(made.sum()):
        parts = made.view(made.real.dtype)
        np.copyto(parts, np.nan, where=np.isnan(parts))
    return made


def _mean_of_integers(rows: _Rows) -> Array:
    """Give exact means, rounded half to even: those of 64 bits are summed in two halves."""
    dtype = rows.dtype.newbyteorder("=")
    wide, count = dtype.itemsize == 8, np.maximum(rows.totals(np.int64), 1)
    sums = tuple(rows.full(0, np.int64) for _ in range(1 + wide))
    for source, place, _, there in rows.steps():
        if there is not None:
            source = np.where(there, source, dtype.type(0))
        for total, part in zip(sums, halves(source) if wide else [source], strict=True):
            total[place] += part
    mean, rest = divided(sums, count, dtype if wide else np.dtype("i8"))
    if rows.stitching.dtype.kind == "f":
        return as_floats(mean, rest, count)
    up = (2 * rest > count) | ((2 * rest == count) & (mean & 1 == 1))
    return np.asarray(mean + up, dtype)


def _weighted_integers(rows: _Rows) -> Array:
    """Average integers of 64 bits around the heaviest patch: float64 holds how far others are."""
    base = rows.heaviest(rows.dtype.newbyteorder("="))
    above = rows.full(0, np.float64)
    floats, lost = in_floats(base)
    for source, place, samples, there in rows.steps():
        whole, rest = in_floats(source)
        away = (whole - floats[place]) + (rest - lost[place])
        weight = rows.weight(samples)
        above[place] += away * (weight if there is None else there * weight)
    totals = rows.totals(float)
    totals[totals == 0] = 1
    above /= totals
    down = np.floor(above)
    rest = above - down
    top = np.floor(down / 2.0**32)
    mean = base + (top.astype("i8").astype(base.dtype) << base.dtype.type(32))
    mean += (down - top * 2.0**32).astype("i8").astype(base.dtype)
    if rows.stitching.dtype.kind == "f":
        return as_floats(mean, rest, 1)
    mean += ((rest > 0.5) | ((rest == 0.5) & (mean & 1 == 1))).astype(base.dtype)
    return np.asarray(mean)


def _as_integers(mean: Array, dtype: np.dtype[Any]) -> Array:
    """Round half to even; a sum of weights may leave the dtype's range by a rounding error."""
    info = np.iinfo(dtype)
    rounded = np.rint(mean)
    inside = (rounded > info.min) & (rounded < info.max)
    made = np.where(inside, rounded, 0).astype(dtype)
    made[rounded >= info.max], made[rounded <= info.min] = info.max, info.min
    return made


def _extreme(rows: _Rows) -> Array:
    how, dtype = rows.stitching.how, rows.stitching.dtype
    better = np.maximum if how == "max" else np.minimum
    extreme = rows.full(least(dtype, how), dtype)
    for source, place, _, there in rows.steps():
        if there is None:
            better(extreme[place], source, out=extreme[place])
        else:
            better(extreme[place], source, out=extreme[place], where=there)
    return _finished(rows, extreme)


def _first(rows: _Rows) -> Array:
    first = rows.full(rows.stitching.fill_value, rows.stitching.dtype)
    for source, place, _, there in rows.backwards():
        np.copyto(first[place], source, where=True if there is None else there)
    return first


def _crop(rows: _Rows) -> Array:
    """Take every sample from the patch whose center is nearest, the first of several."""
    nearest = rows.full(rows.stitching.fill_value, rows.stitching.dtype)
    best = rows.full(np.iinfo(np.int64).max, np.int64)
    for source, place, samples, there in rows.steps():
        away = rows.away(samples)
        closer = away < best[place]
        if there is not None:
            closer &= there
        np.copyto(nearest[place], source, where=closer)
        np.copyto(best[place], np.broadcast_to(away, closer.shape), where=closer)
    return nearest


def _vote(rows: _Rows) -> Array:
    """Take the label that most patches give, the least of several; of two zeros the positive."""
    steps = list(rows.steps())
    best = rows.full(rows.stitching.fill_value, rows.stitching.dtype)
    most = rows.full(0, np.int32)

    def count(label: Any) -> Array:
        votes = rows.full(0, np.int32)
        for source, place, _, there in steps:
            votes[place] += (source == label) if there is None else (source == label) & there
        return votes

    labels = reduce(np.union1d, (of for of, *_ in steps)) if len(steps) > _PAIRS else ()
    if 0 < len(labels) <= len(steps):
        for label in labels:
            votes = count(label)
            np.copyto(best, label, where=votes > most)
            np.maximum(most, votes, out=most)
        return _positive(best)
    for source, place, _, there in steps:
        label = rows.full(rows.stitching.fill_value, rows.stitching.dtype)
        given = rows.full(False, bool)
        label[place], given[place] = source, True if there is None else there
        votes = rows.full(0, np.int32)
        for other, at, _, some in steps:
            same = other == label[at]
            votes[at] += same if some is None else same & some
        votes *= given
        better = (votes > most) | ((votes == most) & given & (label < best))
        np.copyto(best, label, where=better)
        np.maximum(most, votes, out=most)
    return _positive(best)


def _positive(made: Array) -> Array:
    """Make all zeros positive: which of two that are equal comes first depends on blocks."""
    if made.dtype.kind in "fc":
        made[made == 0] = 0
    return made


def _finished(rows: _Rows, made: Array) -> Array:
    """Convert to the result's dtype, and put the fill value where no patch is."""
    made, missing = made.astype(rows.stitching.dtype, copy=False), rows.missing()
    if missing is not None:
        np.copyto(made, rows.stitching.fill_value, where=missing)
    return made


_MAKE: dict[str, Callable[[_Rows], Array]] = {
    "sum": _sums,
    "mean": _mean,
    "max": _extreme,
    "min": _extreme,
    "first": _first,
    "crop": _crop,
    "vote": _vote,
}
