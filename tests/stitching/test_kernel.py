"""Every reduction against lists of terms, also where some of them are missing."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from overlaps import HOWS, expected_of, extracted
from reference import Array, same_bits, terms_over
from strategies import arguments, chunkings, problems
from xpatches.geometry.grid import AxisGrid
from xpatches.stitching.labelled import stitch
from xpatches.stitching.tapers import TAPERS, weights_of


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


@given(
    problems(max_spatial=2),
    st.sampled_from(["flat", "hann", "triangular"]),
    st.sampled_from(["i8", "u8", "i4", ">i8"]),
    st.sampled_from([None, "float64"]),
    st.sampled_from([1, 2**40, 0]),
    st.integers(0, 99),
    st.booleans(),
)
@settings(max_examples=150)
def test_means_of_integers_are_right_to_float64(
    problem: tuple[Array, dict[int, AxisGrid]],
    taper: str,
    dtype: str,
    result: str | None,
    spread: int,
    seed: int,
    some: bool,
) -> None:
    image, grids = problem
    if not image.size:
        return
    rng = np.random.default_rng(seed)
    patches = extracted(image, grids)
    info = np.iinfo(dtype)
    low, high = (info.min, info.max) if not spread else (info.max // 3, info.max // 3 + spread)
    values = rng.integers(low, min(high, info.max), patches.shape, info.dtype.newbyteorder("="))
    patches = patches.copy(data=values.astype(dtype))
    weights = weights_of(taper, {grid.dim: grid.size for grid in grids.values()})
    assert weights is not None
    lost = rng.random([grid.count for grid in grids.values()]) < (0.3 if some else 0)
    stacked = patches.stack(sample=[*weights], create_index=False).transpose("sample", ...)
    kept = stacked.isel(sample=np.flatnonzero(~lost.ravel()))
    if not kept.size:
        return
    options: dict[str, Any] = {"taper": taper, "fill_value": 7, "dtype": result}
    back = stitch(kept if some else patches, **options)
    assert back.dtype == (result or dtype)
    made = back.transpose(*(f"d{axis}" for axis in range(image.ndim))).to_numpy()
    for place, terms in terms_over(values, arguments(grids), image.shape).items():
        terms = [term for term in terms if not lost[term[0]]]
        if not terms:
            assert made[place] == 7
            continue
        wanted = expected_of(terms, "mean", [*weights.values()], [*grids.values()])
        most = max(int(value) for *_, value in terms) - min(int(value) for *_, value in terms)
        error = abs(Fraction(made[place].item()) - wanted)
        rounding = Fraction(1, 2) if result is None else abs(Fraction(wanted)) * Fraction(2.0**-52)
        assert error <= rounding + most * Fraction(2.0**-48)
        assert most or result or error == 0


@given(
    problems(max_spatial=2),
    st.sampled_from(["flat", "hann", "gaussian", lambda size: np.arange(size) % 3 + (size == 1)]),
    st.integers(0, 99),
    st.booleans(),
)
@settings(max_examples=150)
def test_means_of_floats_are_as_close_as_weighted_sums(
    problem: tuple[Array, dict[int, AxisGrid]], taper: Any, seed: int, some: bool
) -> None:
    image, grids = problem
    if not image.size:
        return
    rng = np.random.default_rng(seed)
    patches = extracted(image, grids)
    # Of any size, up to the largest floats there are.
    values = rng.choice([-1, 1], patches.shape) * 10 ** rng.uniform(-4, 38.5, patches.shape)
    patches = patches.copy(data=values.astype("f4"))
    weights = weights_of(taper, {grid.dim: grid.size for grid in grids.values()})
    assert weights is not None
    lost = rng.random([grid.count for grid in grids.values()]) < (0.3 if some else 0)
    stacked = patches.stack(sample=[*weights], create_index=False).transpose("sample", ...)
    kept = stacked.isel(sample=np.flatnonzero(~lost.ravel()))
    if not kept.size:
        return
    back = stitch(kept if some else patches, taper=taper, fill_value=7)
    made = back.transpose(*(f"d{axis}" for axis in range(image.ndim))).to_numpy()
    axes = {axis: (g.size, g.stride, g.rate, g.padding) for axis, g in grids.items()}
    for place, terms in terms_over(patches.to_numpy(), axes, image.shape).items():
        terms = [term for term in terms if not lost[term[0]]]
        wanted = expected_of(terms, "mean", [*weights.values()], [*grids.values()])
        if wanted is None:
            assert made[place] == 7
            continue
        sizes = [(patch, taps, abs(value)) for patch, taps, value in terms]
        size = expected_of(sizes, "mean", [*weights.values()], [*grids.values()])
        error = abs(Fraction(float(made[place])) - wanted)
        assert error <= 2 * (len(terms) + 2) * float(np.finfo("f4").eps) * size


def holed(values: Array, rng: np.random.Generator, share: float) -> Array:
    """Lose a share of values."""
    values = values.copy()
    values[rng.random(values.shape) < share] = "NaT" if values.dtype.kind in "mM" else np.nan
    return values


SKIPPING = [*HOWS, "hann", "triangular"]


@given(
    problems(max_spatial=2),
    st.sampled_from([
        *[(how, dtype) for how in SKIPPING for dtype in ("f4", "f8")],
        *[(how, "c16") for how in ("sum", "mean", "hann", "first", "crop")],
        *[(how, "M8[s]") for how in ("max", "min", "first", "crop")],
    ]),
    st.sampled_from([0.1, 0.6]),
    st.integers(0, 99),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=300)
def test_missing_samples_do_not_count_where_others_are(
    problem: tuple[Array, dict[int, AxisGrid]],
    what: tuple[str, str],
    share: float,
    seed: int,
    some: bool,
) -> None:
    (image, grids), (how, dtype) = problem, what
    if not image.size:
        return
    rng = np.random.default_rng(seed)
    patches = extracted(image, grids)
    values = holed(rng.integers(0, 9, patches.shape).astype(dtype), rng, share)
    if dtype == "c16":  # of which a part may be missing alone
        values = values + 1j * holed(rng.integers(0, 9, patches.shape).astype("f8"), rng, share / 2)
    patches = patches.copy(data=values)
    lost = rng.random([grid.count for grid in grids.values()]) < (0.3 if some else 0)
    stacked = patches.stack(sample=[g.dim for g in grids.values()], create_index=False)
    kept = stacked.transpose("sample", ...).isel(sample=np.flatnonzero(~lost.ravel()))
    if not kept.size:
        return
    taper = how if how in TAPERS else "flat"
    fill = np.array(7, dtype)[()]
    options: dict[str, Any] = {"fill_value": fill, "skipna": True}
    options |= {"taper": how} if how in TAPERS else {"reduce": how}
    back = stitch(kept if some else patches, **options)
    made = back.transpose(*(f"d{axis}" for axis in range(image.ndim))).to_numpy()
    found = weights_of(taper, {grid.dim: grid.size for grid in grids.values()})
    weights = None if found is None else [*found.values()]
    reduction = "mean" if how in ("hann", "triangular") else how
    for place, terms in terms_over(values, arguments(grids), image.shape).items():
        terms = [term for term in terms if not lost[term[0]]]
        known = [term for term in terms if term[2] == term[2]]
        if not terms:
            assert made[place] == fill
        elif not known:
            assert made[place] == 0 if how == "sum" else made[place] != made[place]
        elif dtype == "c16" and reduction in ("mean", "sum"):
            for part in ("real", "imag"):
                parts = [(*term[:2], getattr(term[2], part)) for term in known]
                wanted = expected_of(parts, reduction, weights, [*grids.values()])
                assert abs(getattr(made[place], part) - float(wanted)) < 1e-14
        elif reduction in ("mean", "sum"):
            wanted = expected_of(known, reduction, weights, [*grids.values()])
            assert abs(made[place] - float(wanted)) < (1e-14 if dtype == "f8" else 5e-6)
        else:
            assert made[place] == expected_of(known, reduction, weights, [*grids.values()])


@given(problems(), st.sampled_from(SKIPPING), st.sampled_from(["f4", "c8"]), st.data())
@settings(max_examples=100)
def test_missing_samples_change_no_bits_of_samples_that_they_are_not_over(
    problem: tuple[Array, dict[int, AxisGrid]], how: str, dtype: str, data: st.DataObject
) -> None:
    image, grids = problem
    if not image.size:
        return
    dtype = "f4" if how in ("max", "min", "vote") else dtype
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    patches = extracted(image, grids)
    values = rng.normal(size=(*patches.shape, 2)).round(how != "vote").astype("f4")
    whole = patches.copy(data=values[..., 0] if dtype == "f4" else values.view("c8")[..., 0])
    lost = rng.random(whole.shape) < data.draw(st.sampled_from([0.01, 0.2]))
    some = whole.copy(data=np.where(lost, np.array(np.nan, dtype), whole))
    options: dict[str, Any] = {"fill_value": 5}
    options |= {"taper": how} if how in TAPERS else {"reduce": how}
    touched = stitch(whole.copy(data=lost), reduce="max", fill_value=False).values
    back = stitch(some, **options, skipna=True).values
    expected = stitch(whole, **options).values
    assert same_bits(back[~touched], expected[~touched])
    chunks = {dim: data.draw(chunkings(n)) for dim, n in some.sizes.items() if n}
    chunked = stitch(some.chunk(chunks), **options, skipna=True, max_bytes=2**20)
    assert same_bits(chunked.to_numpy(), back)
    eaten = stitch(some, **options, skipna=False).values
    assert same_bits(eaten[~touched], expected[~touched])
    if how not in ("first", "crop"):
        assert np.isnan(eaten[touched]).all()


@pytest.mark.parametrize("taper", [*TAPERS])
def test_what_one_patch_knows_is_what_the_image_is_there(taper: str) -> None:
    rng = np.random.default_rng(0)
    image = xr.DataArray(rng.normal(size=(30, 40)).astype("f4"), dims=("y", "x"))
    patches = image.patches(y=8, x=8, stride=4, padding="same").extract()
    lost = xr.DataArray(rng.random((8, 10)) < 0.4, dims=("y", "x"))  # whole patches
    back = stitch(patches.where(~lost), taper=taper)
    known = stitch((~lost).broadcast_like(patches).assign_attrs(patches.attrs), reduce="max")
    assert 0 < known.mean() < 1
    np.testing.assert_array_equal(back, image.where(known))
