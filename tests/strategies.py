"""What Hypothesis draws: axes, chunkings, images."""

import itertools
import os
from typing import Any

import numpy as np
from hypothesis import strategies as st

from reference import Array
from xpatches.geometry.grid import AxisGrid

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
"""Whether tests take all the time that they find something in."""
DTYPES = [
    *("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"),
    *("M8[ns]", "M8[D]", "m8[ns]", "m8[s]", "U3", "S4", ">i2", ">f8"),
]


@st.composite
def axis_grids(draw: st.DrawFn, max_length: int = 30, dim: str = "x") -> AxisGrid:
    """Any axis with at least one patch."""
    number = st.integers(1, 6)
    pads = st.tuples(st.integers(0, 12), st.integers(0, 12))
    axis = AxisGrid(
        dim,
        length=draw(st.integers(1, max_length)),
        size=draw(number),
        stride=draw(st.integers(1, 9)),
        rate=draw(st.integers(1, 4)),
        padding=draw(st.one_of(st.just("valid"), st.just("same"), pads)),
    )
    return (
        axis
        if axis.count
        else AxisGrid(dim, axis.length, axis.size, axis.stride, axis.rate, "same")
    )


@st.composite
def chunkings(draw: st.DrawFn, length: int) -> tuple[int, ...]:
    """Any way to cut a length into chunks."""
    edges = draw(st.sets(st.integers(1, max(1, length - 1)), max_size=8)) if length > 1 else set()
    cuts = [0, *sorted(edges), length]
    return tuple(b - a for a, b in itertools.pairwise(cuts))


def image_of(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Random bits of a dtype: NaN with payloads, Inf, -0.0 and NaT come up among them."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    if kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if kind in "US":
        return rng.integers(0, 999, shape).astype(dtype)
    if kind in "mM":  # times that xarray can hold, too
        times = rng.integers(-9999, 9999, shape).astype(dtype)
        times[rng.random(shape) < 0.1] = "NaT"
        return times
    count = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    image = np.frombuffer(rng.bytes(count), dtype).reshape(shape).copy()
    if kind == "f" and image.size > 3:
        image.flat[:4] = [-0.0, np.inf, -np.inf, np.nan]
    return image


@st.composite
def problems(draw: st.DrawFn, max_spatial: int = 3) -> tuple[Array, dict[int, AxisGrid]]:
    """An image of any dtype and dims, and the patches along one to three of its axes."""
    spatial = draw(st.integers(1, max_spatial))
    most = {1: 30, 2: 13, 3: 7}[spatial]
    others = draw(st.integers(0, 2))
    ndim = spatial + others
    axes = sorted(draw(st.permutations(range(ndim)))[:spatial])
    grids = {axis: draw(axis_grids(most, f"d{axis}")) for axis in axes}
    shape = tuple(
        grids[axis].length if axis in grids else draw(st.integers(0, 3)) for axis in range(ndim)
    )
    image = image_of(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)))
    return image, grids


def arguments(grids: dict[int, AxisGrid]) -> dict[int, tuple[int, int, int, Any]]:
    """What the four-loop reference takes."""
    return {axis: (g.size, g.stride, g.rate, g.padding) for axis, g in grids.items()}
