"""What an array holds: whose it is, which dtypes are copied, which values fill them."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from xpatches.arguments import shown
from xpatches.errors import PatchError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def as_items(size: int) -> np.dtype[Any]:
    """Dtype that moves items of `size` bytes whatever they hold; NumPy is fastest with integers."""
    return np.dtype(f"u{size}" if size in (1, 2, 4, 8) else f"V{size}")


def is_dask(array: object) -> bool:
    """Tell a dask array from NumPy's without importing dask."""
    return type(array).__module__.partition(".")[0] == "dask" and hasattr(array, "chunks")


def kind_of(array: object) -> str:
    """Name the type of an array of another library.

    Examples
    --------
    >>> kind_of(np.ma.array([1])), kind_of([1])
    ('MaskedArray', 'list')
    """
    library, name = type(array).__module__.partition(".")[0], type(array).__name__
    place = " on a GPU" if hasattr(array, "__cuda_array_interface__") else ""
    plain = library in ("numpy", "xarray", "zarr", "builtins")
    return f"{name if plain else f'{library}.{name}'}{place}"


def least(dtype: np.dtype[Any], how: str) -> Any:
    """Give the value than which no other is less extreme, for ``"min"`` or ``"max"``.

    Examples
    --------
    >>> least(np.dtype("int8"), "min"), least(np.dtype(float), "max")
    (127, -inf)
    """
    if dtype.kind == "b":
        return how == "min"
    if dtype.kind in "mM":  # the lowest integer is NaT
        return np.array(least(np.dtype("i8"), how) + (how == "max"), "i8").view(dtype)[()]
    if dtype.kind in "iu":
        return np.iinfo(dtype).max if how == "min" else np.iinfo(dtype).min
    return np.inf if how == "min" else -np.inf


def halves(integers: Array) -> tuple[Array, Array]:
    """Split integers of 64 bits into a high half, with the sign, and a low one, int64 both.

    Up to 2**30 of them can be added up without overflow.

    Examples
    --------
    >>> halves(np.array([-1, 2**32 + 5]))
    (array([-1,  1]), array([4294967295,          5]))
    """
    low = integers & integers.dtype.type(0xFFFFFFFF)
    return (integers >> integers.dtype.type(32)).astype("i8"), low.astype("i8")


def in_floats(integers: Array) -> tuple[Array, Array]:
    """Give integers as float64, and what that has lost of each: half a unit of it at most.

    The difference of two integers is that of both parts, to float64.

    Examples
    --------
    >>> in_floats(np.array([2**62 + 3, 7]))
    (array([4.61168602e+18, 7.00000000e+00]), array([3., 0.]))
    """
    floats = integers.astype(float)
    if integers.dtype.itemsize < 8:
        return floats, np.zeros_like(floats)
    high, low = halves(integers)
    top = np.floor(floats / 2.0**32)
    return floats, (high - top) * 2.0**32 + (low - (floats - top * 2.0**32))


def divided(sums: tuple[Array, ...], count: Any, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Divide sums of integers, of one part or of two `halves`, by counts: quotient and rest.

    Parameters
    ----------
    sums
        Of `count` integers of the dtype, int64.
    count
        At least 1.
    dtype
        In which the quotients, rounded down, are given.

    Examples
    --------
    >>> divided(halves(np.array([-3, 2**62])), 2, np.dtype("int64"))
    (array([                 -2, 2305843009213693952]), array([1, 0]))
    """
    if len(sums) == 1:
        mean, rest = np.divmod(sums[0], count)
        return mean.astype(dtype), rest
    top, rest = np.divmod(sums[0], count)
    mean, rest = np.divmod((rest << 32) + sums[1], count)
    return (top.astype(dtype) << dtype.type(32)) + mean.astype(dtype), rest


def as_floats(whole: Array, rest: Array, count: Any) -> Array:
    """Give quotients that were rounded down, and their rests, as float64.

    Examples
    --------
    >>> as_floats(np.array([-1, 3]), np.array([2, 1]), 3).round(3)
    array([-0.333,  3.333])
    """
    negative = (whole < 0) & (rest > 0)  # -1 + 0.9999 would lose what -0.0001 holds
    return np.asarray((whole + negative).astype(float) + (rest - negative * count) / count)


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


def as_dtype(what: str, value: object) -> np.dtype[Any]:
    """Normalise a dtype.

    Raises
    ------
    PatchError
        If NumPy knows none of it.
    """
    try:
        return np.dtype(value)  # type: ignore[call-overload, no-any-return]
    except Exception:  # whatever NumPy raises, and what it asks
        raise PatchError(f"{what} must be a NumPy dtype, got {shown(value)}") from None


def missing_value(dtype: np.dtype[Any]) -> Array:
    """Give what stands for a missing sample of a dtype that has that: NaN or NaT."""
    return np.array("NaT" if dtype.kind in "mM" else np.nan, dtype)


def as_promised(
    block: Any, region: Sequence[slice], dtype: np.dtype[Any], number: tuple[int, ...] | None = None
) -> Array:
    """Refuse samples that are not those that a source promised; masked ones become missing.

    Parameters
    ----------
    block
        What the source gave.
    region
        Which samples it was to give, along every axis.
    dtype
        That it promised; another byte order is no other.
    number
        Of the block, along every axis, where it is one of dask's.

    Raises
    ------
    PatchError
        If the shape or the dtype is another, or what is masked has no missing value.

    Examples
    --------
    >>> as_promised(np.ma.masked_equal([1.0, -9.0], -9), [slice(4, 6)], np.dtype(float))
    array([ 1., nan])
    >>> as_promised(np.zeros(2), [slice(4, 8)], np.dtype(float), number=(1,))
    Traceback (most recent call last):
    ...
    xpatches.errors.PatchError: block (1,), samples [4:8], must have the shape (4,), got (2,); ...
    """
    if isinstance(block, np.ma.MaskedArray):
        block = _unmasked(block, region, number)
    shape = tuple(along.stop - along.start for along in region)
    if not isinstance(block, np.ndarray | np.generic):
        raise PatchError(
            f"{_named(region, number)} must be a NumPy array, got {type(block).__name__}; convert "
            "it first with map_blocks"
        )
    if block.shape != shape:
        raise PatchError(
            f"{_named(region, number)} must have the shape {shape}, got {block.shape}; say what "
            "lengths blocks have where they are made, as map_blocks(..., chunks=...) does"
        )
    if not np.can_cast(block.dtype, dtype, "equiv"):
        raise PatchError(
            f"{_named(region, number)} must hold {dtype}, got {block.dtype}; say what they hold "
            "where they are made, as map_blocks(..., dtype=...) does"
        )
    return np.asarray(block, dtype)


def _unmasked(
    block: "np.ma.MaskedArray[Any, Any]", region: Sequence[slice], number: tuple[int, ...] | None
) -> Array:
    """Give masked samples as missing ones."""
    if not np.ma.is_masked(block):
        return np.asarray(block.data)
    if block.dtype.kind not in "fcmM":
        raise PatchError(
            f"{_named(region, number)} has masked samples, for which {block.dtype} has no value; "
            "fill them first, with map_blocks(np.ma.filled, value), or convert it to float"
        )
    return np.where(np.ma.getmaskarray(block), missing_value(block.dtype), block.data)


def _named(region: Sequence[slice], number: tuple[int, ...] | None) -> str:
    place = ", ".join(f"{along.start}:{along.stop}" for along in region)
    return f"samples [{place}]" if number is None else f"block {number}, samples [{place}],"


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
    except Exception:  # whatever a type raises that is no value of the dtype
        held = None
    if held is None or held.ndim:
        raise PatchError(
            f"{what} must be a value that {dtype} can hold, got {shown(value)}; "
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
