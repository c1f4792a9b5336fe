"""Patches that overlap: cut and labelled, and what their terms give."""

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import xarray as xr

from reference import Array
from xpatches.geometry.grid import AxisGrid

HOWS = ["sum", "mean", "max", "min", "first", "vote", "crop"]


def extracted(image: Array, grids: dict[int, AxisGrid]) -> xr.DataArray:
    """Extract as labelled patches."""
    labelled = xr.DataArray(image, dims=[f"d{axis}" for axis in range(image.ndim)])
    p: Any = labelled.patches(
        {g.dim: g.size for g in grids.values()},
        stride={g.dim: g.stride for g in grids.values()},
        rate={g.dim: g.rate for g in grids.values()},
        padding={g.dim: g.padding for g in grids.values()},
    )
    made: xr.DataArray = p.extract()
    return made


def expected_of(terms: list[Any], how: str, weights: Any, grids: list[AxisGrid]) -> Any:
    """Reduce what patches hold over one sample, exactly."""
    values = [value for *_, value in terms]
    if how == "sum":
        return sum(map(int, values))
    if how in ("max", "min"):
        return max(values) if how == "max" else min(values)
    if how == "first":
        return values[0]
    if how == "vote":
        counts = Counter(values)
        most = max(counts.values())
        return min(value for value, count in counts.items() if count == most)
    if how == "crop":

        def away(term: Any) -> int:
            centers = ((grid.effective_size - 1) // 2 for grid in grids)
            return sum(
                (j * grid.rate - c) ** 2 for j, grid, c in zip(term[1], grids, centers, strict=True)
            )

        return min(terms, key=away)[2]
    total = Fraction(0)
    mass = Fraction(0)
    for _, taps, value in terms:
        weight = Fraction(1)
        for j, of in zip(taps, weights, strict=True):
            weight *= Fraction(float(of[j]))
        total += weight * Fraction(int(value) if isinstance(value, np.integer) else float(value))
        mass += weight
    return None if mass == 0 else total / mass


def labelled(length: int = 24, dtype: str = "f4") -> xr.DataArray:
    samples = np.random.default_rng(0).random((length, length + 4, 2))
    return xr.DataArray(
        (99 * samples).astype(dtype),
        {
            "y": np.linspace(50, 40, length),
            "x": np.arange(0, 2 * length + 8, 2),
            "lat": (("y", "x"), np.random.default_rng(1).random((length, length + 4))),
            "band": ["red", "green"],
            "spatial_ref": ((), 0, {"crs_wkt": "...", "GeoTransform": "0 1 0 0 0 1"}),
        },
        ("y", "x", "band"),
        "image",
        {"units": "K"},
    )


def patches_of(image: Any) -> Any:
    return image.patches(y=6, x=6, stride=3, padding="same")
