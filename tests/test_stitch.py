"""Against TensorFlow's gradients, against lists of terms, and back from every chunking."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import Array, same_bits, terms_over
from strategies import arguments, chunkings, image_of, problems
from xpatches.covers import AxisCover
from xpatches.geometry import AxisGrid
from xpatches.stitch import stitch
from xpatches.tapers import TAPERS, weights_of

GOLDENS = Path(__file__).parent / "data" / "tf_goldens.npz"


def gradients() -> list[Any]:
    with np.load(GOLDENS) as stored:
        cases = json.loads(stored["meta"].tobytes())["cases"]
    return [pytest.param(case, id=str(case["case"])) for case in cases if case["op"] == "gradient"]


@pytest.mark.parametrize("case", gradients())
@pytest.mark.parametrize("chunked", [False, True])
def test_the_sum_is_tensorflows_gradient(case: dict[str, Any], chunked: bool) -> None:
    number = case["case"]
    with np.load(GOLDENS) as stored:
        image, gradient, expected = (stored[f"{name}{number}"] for name in "xgy")
    labelled = xr.DataArray(image, dims=("batch", "y", "x", "depth"))
    given = {name: dict(zip("yx", case[name], strict=True)) for name in ("size", "stride", "rate")}
    patches = labelled.patches(**given, padding=case["padding"].lower()).extract(flatten="patch")
    incoming = patches.copy(data=gradient)
    if chunked:
        incoming = incoming.chunk(batch=1, y=2, x=3)
    assert same_bits(stitch(incoming, reduce="sum").to_numpy(), expected)


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


@given(problems(), st.integers(0, 99))
def test_the_sum_is_the_adjoint_of_the_extraction(
    problem: tuple[Array, dict[int, AxisGrid]], seed: int
) -> None:
    image, grids = problem
    rng = np.random.default_rng(seed)
    image = np.asarray(rng.integers(-99, 99, image.shape))
    patches = extracted(image, grids)
    given = rng.integers(-99, 99, patches.shape)
    back = stitch(patches.copy(data=given), reduce="sum")
    assert back.dims == tuple(f"d{axis}" for axis in range(image.ndim))
    assert (patches.values * given).sum() == (image * back.values).sum()


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


HOWS = ["sum", "mean", "max", "min", "first", "vote", "crop"]


@given(problems(max_spatial=2), st.sampled_from(HOWS), st.integers(0, 99))
@settings(max_examples=150)
def test_integers_are_stitched_as_their_terms_say(
    problem: tuple[Array, dict[int, AxisGrid]], how: str, seed: int
) -> None:
    image, grids = problem
    rng = np.random.default_rng(seed)
    patches = extracted(image, grids)
    few = how == "vote"
    low, high = (0, 4) if few else (-(2**63), 2**63 - 1)
    given = rng.integers(0 if how == "sum" else low, 99 if how == "sum" else high, patches.shape)
    back = stitch(
        patches.copy(data=given),
        reduce="mean" if how == "crop" else how,
        taper="crop" if how == "crop" else "flat",
        fill_value=-7,
    )
    assert back.dtype == np.dtype("i8")
    ones = [np.ones(grid.size) for grid in grids.values()]
    terms = terms_over(given, arguments(grids), image.shape)
    for place, of in terms.items():
        wanted = expected_of(of, how, ones, [*grids.values()]) if of else -7
        if of and how == "mean":
            wanted = round(wanted)  # half to even
        assert int(back.values[place]) == wanted, place


@given(problems(max_spatial=2), st.sampled_from([*TAPERS]), st.integers(0, 99))
@settings(max_examples=150)
def test_tapers_weigh_as_their_terms_say(
    problem: tuple[Array, dict[int, AxisGrid]], taper: str, seed: int
) -> None:
    image, grids = problem
    rng = np.random.default_rng(seed)
    patches = extracted(image, grids)
    given = rng.random(patches.shape) + 1
    back = stitch(patches.copy(data=given), taper=taper)
    sizes = {grid.dim: grid.size for grid in grids.values()}
    found = weights_of(taper, sizes)
    weights = None if found is None else [*found.values()]
    how = "crop" if weights is None else "mean"
    for place, of in terms_over(given, arguments(grids), image.shape).items():
        wanted = expected_of(of, how, weights, [*grids.values()]) if of else None
        if wanted is None:
            assert np.isnan(back.values[place])
        else:
            assert abs(Fraction(float(back.values[place])) / Fraction(wanted) - 1) < 4e-15


@st.composite
def covering(draw: st.DrawFn, max_length: int = 20, dim: str = "x") -> AxisGrid:
    """Draw patches that hold every sample."""
    size, rate = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    stride = draw(st.integers(1, size if rate == 1 else 1))
    length = draw(st.integers(1, max_length))
    if draw(st.booleans()):
        axis = AxisGrid(dim, length, size, stride, rate, "same")
        if not AxisCover.of(axis).bare():
            return axis
    before = draw(st.integers(0, size * rate))
    return AxisGrid(dim, length, size, stride, rate, (size * rate + before, 3 * size * rate))


ROUND = [*("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")]
EVERY = [*ROUND, "?", "M8[ns]", "M8[D]", "m8[s]", "U3", "S4", ">i2", ">f8"]


@given(covering(dim="d0"), covering(12, "d1"), st.sampled_from(EVERY), st.data())
def test_extracting_and_stitching_gives_the_image(
    first: AxisGrid, second: AxisGrid, dtype: str, data: st.DataObject
) -> None:
    shape = (first.length, second.length)
    image = xr.DataArray(image_of(shape, dtype, data.draw(st.integers(0, 99)))).values
    patches = extracted(image, {0: first, 1: second})
    chunked = patches.chunk(
        d0=data.draw(chunkings(first.count)), d1=data.draw(chunkings(second.count))
    )
    for some in (patches, chunked):
        assert same_bits(stitch(some, reduce="first").to_numpy(), image)
        assert same_bits(stitch(some, taper="crop").to_numpy(), image)
        if image.dtype.kind in "iu":
            assert same_bits(stitch(some).to_numpy(), image)
    if image.dtype.kind in "fc":
        image = np.nan_to_num(image, posinf=1, neginf=-1)
        image = np.where(np.abs(image) > 1e3, 1, image).astype(image.dtype)
        back = stitch(extracted(image, {0: first, 1: second})).to_numpy()
        np.testing.assert_allclose(back, image, rtol=4 * np.finfo(image.dtype).eps)


@given(problems(), st.sampled_from([*HOWS, "hann", "gaussian"]), st.data())
def test_the_result_is_the_same_bits_for_every_chunking(
    problem: tuple[Array, dict[int, AxisGrid]], how: str, data: st.DataObject
) -> None:
    image, grids = problem
    if not image.size:
        return
    patches = extracted(image, grids)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    dtype = "u2" if how == "vote" else "f4"
    patches = patches.copy(data=(9 * rng.random(patches.shape)).astype(dtype))
    options: dict[str, Any] = {"reduce": how, "fill_value": 5}
    if how in TAPERS:
        options = {"taper": how, "fill_value": 5}
    whole = stitch(patches, **options).to_numpy()
    chunks = {dim: data.draw(chunkings(n)) for dim, n in patches.sizes.items() if n}
    chunked = stitch(patches.chunk(chunks), **options, max_bytes=2**20)
    assert chunked.chunks is not None
    assert same_bits(chunked.to_numpy(), whole)
    with dask.config.set(scheduler="threads"):
        assert same_bits(chunked.to_numpy(), whole)
