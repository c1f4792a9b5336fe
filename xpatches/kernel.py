"""The NumPy kernel: one block with its halo in, C-contiguous patches out.

Extraction moves bits. Every dtype but ``object`` comes through unchanged, nothing is promoted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from xpatches.errors import PatchError
from xpatches.geometry import AxisGrid, clip

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Span:
    """The patches to take along one axis of a block."""

    axis: int
    """Axis of the block."""
    grid: AxisGrid
    """Size, stride and rate of the patches."""
    first: int
    """Index in the block of the first patch's first sample; negative where it is padding."""
    count: int
    """Number of patches."""

    @property
    def reach(self) -> range:
        """Indices in the block from the first patch's first sample to the last one's last."""
        length = (self.count - 1) * self.grid.stride + self.grid.effective_size
        return range(self.first, self.first + length)


def extract_block(block: Array, spans: Sequence[Span], fill_value: Array) -> Array:
    """Copy the patches of one block.

    Parameters
    ----------
    block
        The samples, of any shape, dtype and memory order; it may be read-only.
    spans
        The patches along every spatial axis, in the order of the axes. A patch may reach outside
        the block: its samples there are `fill_value`.
    fill_value
        0-d array of the block's dtype.

    Returns
    -------
    numpy.ndarray
        C-contiguous, of the block's dtype, and never a view of it. Each spatial axis has `count`
        patches; axes of length `size`, one per span, follow the last spatial axis.

    Examples
    --------
    >>> span = Span(0, AxisGrid("x", length=5, size=3, stride=2), first=-1, count=3)
    >>> extract_block(np.arange(1, 6), [span], np.array(0))
    array([[0, 1, 2],
           [2, 3, 4],
           [4, 5, 0]])
    """
    axes = tuple(span.axis for span in spans)
    behind = max(axes) + 1
    if any(span.count == 0 for span in spans):
        shape = list(block.shape)
        for span in spans:
            shape[span.axis] = span.count
        shape[behind:behind] = [span.grid.size for span in spans]
        return np.empty(shape, block.dtype)
    region, pads = block, {}
    for span in spans:
        before, inside, after = clip(span.reach, block.shape[span.axis])
        region = region[(slice(None),) * span.axis + (inside,)]
        pads[span.axis] = before, after
    if any(map(any, pads.values())):
        region = pad_block(region, pads, fill_value)
    view = np.lib.stride_tricks.sliding_window_view(
        region, tuple(span.grid.effective_size for span in spans), axes
    )
    # The stride and the rate thin the view before anything is copied.
    step = [slice(None)] * view.ndim
    for number, span in enumerate(spans):
        step[span.axis] = slice(None, None, span.grid.stride)
        step[block.ndim + number] = slice(None, None, span.grid.rate)
    patch_axes = range(block.ndim, view.ndim)
    return np.moveaxis(view[tuple(step)], patch_axes, range(behind, behind + len(spans))).copy()


def pad_block(block: Array, pads: Mapping[int, tuple[int, int]], fill_value: Array) -> Array:
    """Copy a block, with `fill_value` before and after it along the axes of `pads`.

    Examples
    --------
    >>> pad_block(np.array([1, 2]), {0: (2, 1)}, np.array(0))
    array([0, 0, 1, 2, 0])
    """
    shape = list(block.shape)
    inside = [slice(None)] * block.ndim
    for axis, (before, after) in pads.items():
        inside[axis] = slice(before, before + shape[axis])
        shape[axis] += before + after
    padded = np.full(shape, fill_value, block.dtype)
    padded[tuple(inside)] = block
    return padded


def flatten_patches(patches: Array, axis: int) -> Array:
    """Join the patch axes, which begin at `axis`, and those behind them; a view."""
    return patches.reshape(*patches.shape[:axis], math.prod(patches.shape[axis:]))


def is_dask(array: object) -> bool:
    """Tell a dask array from NumPy's without importing dask."""
    return type(array).__module__.partition(".")[0] == "dask" and hasattr(array, "chunks")


def check_dtype(what: str, dtype: Any) -> None:
    """Refuse samples that are not fixed-width bits.

    Raises
    ------
    PatchError
        If `dtype` is an object, holds objects, or is not NumPy's.
    """
    if not isinstance(dtype, np.dtype) or dtype.hasobject or dtype.kind == "T":
        raise PatchError(
            f"dtype of {what} must be a fixed-width NumPy dtype, got {dtype!s}; "
            "convert it first, for example with .astype(float) or .astype(str)"
        )


def as_fill_value(value: object, dtype: np.dtype[Any], what: str = "fill_value") -> Array:
    """Normalise a fill value: a 0-d array of the dtype that holds the value.

    Parameters
    ----------
    value
        None stands for zero: 0, False, an empty string, and NaT where the dtype is a time.
        A float may round, as a literal does; nothing else may change.
    dtype
        Dtype of the samples.
    what
        Name of the argument, for the error.

    Raises
    ------
    PatchError
        If the dtype cannot hold the value.

    Examples
    --------
    >>> as_fill_value(255, np.dtype("uint8"))
    array(255, dtype=uint8)
    >>> as_fill_value(300, np.dtype("uint8"))
    Traceback (most recent call last):
    ...
    xpatches.errors.PatchError: fill_value must be a value that uint8 can hold, got 300; choose ...
    """
    if value is None:
        return np.array("NaT", dtype) if dtype.kind in "mM" else np.zeros((), dtype)
    try:
        with np.errstate(all="ignore"):
            held = _hold(value, dtype)
    except (TypeError, ValueError, OverflowError):
        held = None
    if held is None or held.ndim:
        raise PatchError(
            f"{what} must be a value that {dtype} can hold, got {value!r}; "
            "choose another, or convert the image with .astype(...)"
        )
    return held


def _hold(value: Any, dtype: np.dtype[Any]) -> Array | None:
    """Give the value as a 0-d array of the dtype, or None where it would become another value."""
    if isinstance(value, int):
        value = float(value) if dtype.kind in "fc" else int(value)
    if dtype.kind in "mM":  # pandas' scalars hold nanoseconds
        unwrap = "to_timedelta64" if dtype.kind == "m" else "to_datetime64"
        value = getattr(value, unwrap, lambda: value)()
    given = np.asarray(value)
    if given.dtype.kind not in _HOLDS.get(dtype.kind, given.dtype.kind):
        return None
    if dtype.kind in "biu":
        held = np.array(int(value), dtype)
        return held if int(held) == value else None
    if dtype.kind in "fc":
        held = given.astype(dtype)
        return held if np.isfinite(held) or not np.isfinite(given) else None
    if dtype.kind in "mM":
        given = np.asarray(value, f"{dtype.kind}8")
        held = given.astype(dtype)
        same = held.astype(given.dtype) == given
        return held if same or (np.isnat(held) and np.isnat(given)) else None
    held = given.astype(dtype)
    return held if held == given else None


_HOLDS = {
    "b": "biuf", "i": "biuf", "u": "biufO", "f": "biuf", "c": "biufc",
    "M": "MOU", "m": "mOU", "S": "S", "U": "U",
}  # fmt: skip
"""Kinds of values that a kind of dtype may be given; "O" is Python's datetime or a large int."""
