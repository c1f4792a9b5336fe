"""Tapers: weights of a patch's samples, by their position along every dim."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import numpy as np

from xpatches.arguments import as_choice, by_dim, said, shown
from xpatches.dtypes import Array
from xpatches.errors import PatchError

Taper: TypeAlias = str | Mapping[Any, Any] | Callable[[int], Any] | Any
"""A name, weights by dim, a function from a size to weights, or weights for every dim."""

CROP = "crop"
"""The taper that has no weights: every sample comes from one patch."""


def hann(size: int) -> Array:
    """Give ``sin(pi * (j + 1/2) / size) ** 2``: the Hann window, sampled between its zeros.

    With a stride of half the size the weights over a sample sum to 1.

    Examples
    --------
    >>> hann(4).round(3).tolist()
    [0.146, 0.854, 0.854, 0.146]
    """
    return np.asarray(np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2)


def triangular(size: int) -> Array:
    """Give the distance to the nearer edge, 1 in the middle.

    Examples
    --------
    >>> triangular(4).tolist()
    [0.25, 0.75, 0.75, 0.25]
    """
    return np.asarray(1 - np.abs((2 * np.arange(size) + 1) / size - 1))


def gaussian(size: int) -> Array:
    """Give a Gaussian around the middle, with a sigma of an eighth of the size.

    Examples
    --------
    >>> gaussian(4).round(4).tolist()
    [0.0111, 0.6065, 0.6065, 0.0111]
    """
    return np.asarray(np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2))


TAPERS: dict[str, Callable[[int], Array] | None] = {
    "flat": np.ones,
    "hann": hann,
    "triangular": triangular,
    "gaussian": gaussian,
    CROP: None,
}


def as_taper(taper: Any) -> Taper | None:
    """Normalise the name of a taper; others are looked at with the sizes."""
    if not isinstance(taper, str):
        return taper
    return as_choice("taper", taper, (*TAPERS,), "weights", "a function")


def weights_of(taper: Taper, sizes: Mapping[Hashable, int]) -> dict[Hashable, Array] | None:
    """Normalise a taper: float64 weights for every dim, or None for "crop".

    Raises
    ------
    PatchError
        If its weights do not fit the sizes, are negative, not
        finite, or all zero.

    Examples
    --------
    >>> weights_of({"x": [1, 2, 1]}, {"y": 2, "x": 3})
    {'y': array([1., 1.]), 'x': array([1., 2., 1.])}
    """
    if isinstance(taper, str):
        taper = TAPERS[taper]
        if taper is None:
            return None
    if callable(taper):
        weights = {dim: _called(taper, dim, size) for dim, size in sizes.items()}
    else:
        ones = {dim: np.ones(size) for dim, size in sizes.items()}
        weights = {**ones, **by_dim("taper", taper, sizes)}
    return {dim: _checked(dim, weights[dim], size) for dim, size in sizes.items()}


def _called(taper: Callable[[int], Any], dim: Hashable, size: int) -> Any:
    try:
        return taper(size)
    except Exception as error:  # whatever the user's function raises
        raise PatchError(
            f"taper on {dim!r} must be a function of the size, got {type(error).__name__} from "
            f"{shown(taper)} of {size}: {said(error)}"
        ) from error


def _checked(dim: Hashable, given: Any, size: int) -> Array:
    try:
        weights = np.array(given, float)
    except Exception:  # whatever a type raises that is no array
        raise PatchError(f"taper on {dim!r} must be {size} numbers, got {shown(given)}") from None
    if weights.shape != (size,):
        raise PatchError(
            f"taper on {dim!r} must have the shape ({size},), got {weights.shape}; give weights "
            "by dim, {'y': ..., 'x': ...}, or a function of the size"
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise PatchError(f"taper on {dim!r} must be finite, >= 0 and not all 0, got {weights}")
    return weights
