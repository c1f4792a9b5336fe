"""Labels beyond the samples and between them: numbers and times along the dims of an image.

A label is known where a sample lies. Where labels are evenly spaced they go on likewise beyond the
image; halfway between two samples a number or a time is their mean. Whatever is no number and no
time has neither.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpatches.dtypes import Array

_ROUNDED = 4
"""Units in the last place by which evenly spaced labels may be off."""
_SINGLE = float(np.finfo("f4").eps)
"""Of labels that were stored in single precision, whatever they are now."""
_PART = 1e-3
"""Of a step, by which such labels may be off at most."""


@dataclass(frozen=True, slots=True)
class Line:
    """Evenly spaced labels along one dim.

    Examples
    --------
    >>> line = line_of(np.array([0.25, 0.5, 0.75]))
    >>> line.beyond([-1, 3])
    array([0., 1.])
    >>> line_of(np.array([3, 5, 7], "uint8")).beyond(range(-3, 0))
    array([-3, -1,  1])
    """

    first: Any
    last: Any
    step: Any
    length: int
    dtype: np.dtype[Any]
    start: int = 0
    """Position of the first label."""

    def beyond(self, positions: Iterable[int]) -> Array:
        """Label positions that none of the labels has, from the nearest of them.

        Returns
        -------
        numpy.ndarray
            Of the labels' dtype; int64 where narrower integers cannot hold a label.
        """
        start, end, step, dtype = self.start, self.start + self.length - 1, self.step, self.dtype
        labels = [
            self.first + (at - start) * step if at < start else self.last + (at - end) * step
            for at in positions
        ]
        if dtype.kind in "mM":
            return np.array(labels, "i8").view(dtype)
        if dtype.kind in "iu" and labels:
            info = np.iinfo(dtype)
            dtype = dtype if min(labels) >= info.min and max(labels) <= info.max else np.dtype("i8")
        return np.array(labels, dtype)


def line_of(labels: Array) -> Line | None:
    """Find the step of labels that are evenly spaced; None if they are not, or are no quantities.

    Floats may be off by rounding, that of their dtype or, where this is little beside a step, of
    single precision, in which many files hold them. Integers and times may not.
    """
    if len(labels) < 2 or not is_quantity(labels) or labels.dtype.kind == "c":
        return None
    if labels.dtype.kind == "O" and (labels == None).any():  # noqa: E711  by element
        return None
    dtype, values = labels.dtype, labels
    if dtype.kind in "mM":
        if np.isnat(labels).any():
            return None
        values = labels.view("i8")
    elif dtype.kind in "iu":
        if int(labels.max()) > np.iinfo("i8").max:
            return None
        values = labels.astype("i8")
    elif dtype.kind == "f":
        return _line_of_floats(labels)
    steps = np.diff(values)
    if not steps[0] or (steps != steps[0]).any():
        return None
    first, last, step = values[[0, -1]].tolist()[0], values[-1], steps[0]
    if dtype.kind != "O":
        last, step = int(last), int(step)
    return Line(first, last, step, len(labels), dtype)


def _line_of_floats(labels: Array) -> Line | None:
    values = labels.astype("f8")
    step = float(values[-1] - values[0]) / (len(values) - 1)
    if not (np.isfinite(step) and step):
        return None
    off = np.abs(values - (values[0] + np.arange(len(values)) * step)).max()
    if not off <= rounding(labels, step):
        return None
    return Line(float(values[0]), float(values[-1]), step, len(values), labels.dtype)


def rounding(labels: Array, step: float) -> float:
    """Say by how much floats may be off an even line: rounding, as `line_of` takes it."""
    largest = max(abs(float(labels[0])), abs(float(labels[-1])))
    single = min(_PART * abs(step), _ROUNDED * _SINGLE * largest)
    return max(_ROUNDED * float(np.finfo(labels.dtype).eps) * largest, single)


def is_quantity(labels: Array) -> bool:
    """Whether labels are numbers or times, those of other calendars (cftime) included."""
    if labels.dtype.kind == "O":  # None is missing
        kinds = {
            type(label).__module__.partition(".")[0] for label in labels.flat if label is not None
        }
        return kinds == {"cftime"}
    return labels.dtype.kind in "iufcmM"


def halfway(lower: Array, upper: Array, around: float | None = None) -> Array:
    """Give the mean of neighbouring labels; of what is no quantity, the first of the two.

    Means of integers are float64; times get a finer unit where theirs does not hold the mean.
    Numbers on a circle are `around` as they come back to the same place: the shorter way counts.

    Examples
    --------
    >>> halfway(np.array([1, 2]), np.array([2, 5]))
    array([1.5, 3.5])
    >>> halfway(np.array(["a"]), np.array(["b"]))
    array(['a'], dtype='<U1')
    >>> halfway(np.array([179.0]), np.array([-180.0]), around=360)
    array([179.5])
    """
    if around is not None and lower.dtype.kind in "iuf":
        rounds = np.rint((upper.astype(float) - lower) / around)
        upper = upper - (around * rounds).astype(upper.dtype)
    return _between(lower, upper, np.array(0.5)) if is_quantity(lower) else lower


def interpolated(labels: Array, positions: Array) -> Array:
    """Interpolate labels along one dim linearly, and go on likewise beyond both ends.

    Parameters
    ----------
    labels
        At least 2 quantities, of the samples ``0, 1, ...``.
    positions
        Float64, in samples.

    Examples
    --------
    >>> interpolated(np.array([0, 4, 6]), np.array([-0.25, 0.5, 2, 2.25]))
    array([-1. ,  2. ,  6. ,  6.5])
    """
    lower = np.clip(np.floor(positions).astype(np.intp), 0, len(labels) - 1)
    lower = np.where((positions > lower) & (lower == len(labels) - 1), lower - 1, lower)
    upper = np.minimum(lower + 1, len(labels) - 1)
    return _between(labels[lower], labels[upper], positions - lower)


def _between(lower: Array, upper: Array, share: Array) -> Array:
    """Go a share of the way from labels to others; a share of 0 gives the first exactly."""
    kind = lower.dtype.kind
    if kind in "mM":
        return _between_times(lower, upper, share)
    if kind == "O":
        labels = np.full(lower.shape, None)
        known = (lower != None) & (upper != None)  # noqa: E711  by element
        shares = np.broadcast_to(share, lower.shape)[known].astype(object)
        labels[known] = lower[known] + (upper[known] - lower[known]) * shares
        return labels
    if kind in "iu":
        lower, upper = lower.astype("f8"), upper.astype("f8")
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite stays so, or is NaN
        return np.asarray(lower + (upper - lower) * share.astype(lower.real.dtype))


def _between_times(lower: Array, upper: Array, share: Array) -> Array:
    missing = np.isnat(lower) | np.isnat(upper)
    whole = (upper.view("i8") - lower.view("i8")) * share
    if (np.rint(whole) != whole)[~missing].any():
        finer = np.dtype(f"{lower.dtype.kind}8[ns]")
        pair = [fine for t in (lower, upper) if (fine := _refined(t, finer, missing)) is not None]
        if len(pair) == 2:
            lower, upper = pair
            whole = (upper.view("i8") - lower.view("i8")) * share
    times: Array = (lower.view("i8") + np.rint(whole).astype("i8")).view(lower.dtype)
    times[missing] = "NaT"
    return times


def _refined(times: Array, finer: np.dtype[Any], missing: Array) -> Array | None:
    """Convert times to another unit; None where some are too far from now for that."""
    try:
        fine = times.astype(finer)
    except OverflowError:  # of NumPy 2.5; others wrap around
        return None
    return fine if (fine.astype(times.dtype) == times)[~missing].all() else None
