"""Against TensorFlow's gradients, against lists of terms, and back from every chunking."""

import json
import re
import tracemalloc
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

import xpatches
from reference import Array, same_bits, terms_over
from strategies import arguments, chunkings, image_of, problems
from xpatches.errors import PatchError
from xpatches.geometry.coverage import AxisCover
from xpatches.geometry.grid import AxisGrid
from xpatches.images.relabel import rebuilt
from xpatches.stitching.labelled import stitch
from xpatches.stitching.tapers import TAPERS, weights_of

GOLDENS = Path(__file__).parents[1] / "data" / "tf_goldens.npz"


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
            assert same_bits(stitch(some, reduce="mean").to_numpy(), image)
    if image.dtype.kind == "f":
        for taper in ("flat", "hann", "gaussian"):
            back = stitch(patches, taper=taper).to_numpy()
            assert back.dtype == image.dtype
            np.testing.assert_array_equal(back, image)
    if image.dtype.kind == "c":
        finite = np.nan_to_num(image, posinf=1, neginf=-1)
        back = stitch(extracted(finite, {0: first, 1: second})).to_numpy()
        np.testing.assert_array_equal(back, finite)


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


@given(problems(), st.sampled_from([*HOWS, "hann", "gaussian"]), st.data())
def test_the_result_is_the_same_bits_for_every_chunking(
    problem: tuple[Array, dict[int, AxisGrid]], how: str, data: st.DataObject
) -> None:
    image, grids = problem
    if not image.size:
        return
    patches = extracted(image, grids)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    dtype, values = "f4", 9 * rng.random((*patches.shape, 2))
    if how == "vote":
        dtype = "u2"
    else:  # of what is missing, or too large to be summed, too
        dtype = "f4" if how in ("max", "min") else data.draw(st.sampled_from(["f4", "c8"]))
        large = float(np.finfo("f4").max)
        odd = rng.choice([large, -large, np.inf, -np.inf, np.nan, -np.nan], values.shape)
        share = data.draw(st.sampled_from([0.01, 0.3]))
        values = np.where(rng.random(values.shape) < share, odd, values)
    parts = values.astype("f4").view("c8")[..., 0]
    patches = patches.copy(data=parts if dtype == "c8" else parts.real.astype(dtype))
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


def test_weights_too_small_for_the_dtype_count_where_there_are_no_others() -> None:
    image = np.random.default_rng(0).random((9, 9)).astype("f4")
    patches = extracted(image, {axis: AxisGrid(f"d{axis}", 9, 3, 2) for axis in (0, 1)})
    back = stitch(patches, taper=[1e-30, 1, 1e-30])
    np.testing.assert_array_equal(back, image)


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


def test_missing_samples_are_skipped_but_in_sums_unless_asked() -> None:
    image = xr.DataArray(np.arange(8.0), dims="x")
    patches = image.patches(x=4, stride=2).extract().copy()
    patches[0, 2:], patches[1, 3] = np.nan, np.nan
    assert np.isnan(stitch(patches, reduce="sum")).values.tolist() == [False] * 2 + [True] * 2 + [
        False, True, False, False,
    ]  # fmt: skip
    assert stitch(patches, reduce="sum", skipna=True).values.tolist() == [0, 1, 2, 3, 8, 5, 6, 7]
    for options in ({}, {"reduce": "mean"}, {"reduce": "max"}, {"reduce": "first"}):
        how: dict[str, Any] = options
        np.testing.assert_array_equal(stitch(patches, **how), image)
    eaten = [0, 1, np.nan, np.nan, 4, np.nan, 6, 7]
    np.testing.assert_array_equal(stitch(patches, skipna=False), eaten)
    # Integers have no missing samples: there is nothing to skip.
    whole = image.astype(int).patches(x=4, stride=2).extract()
    for skipna in (True, False):
        assert (stitch(whole, reduce="mean", skipna=skipna) == image).all()


def test_what_one_block_holds_changes_no_other() -> None:
    large = float(np.finfo("f8").max)
    patches = extracted(np.zeros(40, "c16"), {0: AxisGrid("d0", 40, 3, 1)})
    patches[2], patches[3], patches[30, 1] = large, -large, np.inf
    whole = stitch(patches, taper="triangular")
    assert np.isfinite(whole[:30]).all()
    chunked = stitch(patches.chunk(d0=1), taper="triangular", max_bytes=1200)
    assert chunked.data.npartitions > 9
    assert same_bits(chunked.to_numpy(), whole.to_numpy())


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


@pytest.mark.parametrize("flatten", [None, "patch"])
@pytest.mark.parametrize("chunked", [False, True])
def test_like_gives_back_coords_attrs_and_crs(flatten: str | None, chunked: bool) -> None:
    image = labelled()
    source = image.chunk(y=7, x=9) if chunked else image
    patches = patches_of(source).extract(flatten=flatten)
    back = xpatches.stitch(patches, like=image, reduce="first")
    assert (back.chunks is not None) == chunked
    xr.testing.assert_identical(back.compute(), image)
    xr.testing.assert_identical(patches.patches.stitch(like=image, reduce="first"), back)


def test_dims_may_have_come_and_gone() -> None:
    image = labelled()
    patches = patches_of(image).extract()
    parts = [patches.isel(band=0), -patches.isel(band=1), patches.sum("band")]
    classes = xr.concat([part.drop_vars("band", errors="ignore") for part in parts], "class")
    classes = classes.astype("f8").assign_coords({"class": ["a", "b", "c"]})
    back = stitch(classes.transpose("class", ...), like=image)
    assert back.dims == ("class", "y", "x")
    assert back["class"].values.tolist() == ["a", "b", "c"]
    assert "band" not in back.dims
    np.testing.assert_allclose(back[0], image.isel(band=0), rtol=1e-6)
    np.testing.assert_allclose(back[2], image.sum("band"), rtol=1e-6)
    np.testing.assert_array_equal(back.lat, image.lat)


def test_coords_of_even_rasters_are_rebuilt_from_the_labels_of_patches() -> None:
    days = np.datetime64("2024-01-01", "ns") + np.arange(24) * np.timedelta64(1, "D")
    daily = xr.DataArray(np.arange(24.0), {"time": days})
    for size in (5, 6):
        back = stitch(daily.patches(time=size, stride=4).extract(), reduce="first")
        np.testing.assert_array_equal(back.time, days)
    image = labelled()
    for padding in ("same", "valid", (4, 2)):
        p = image.patches(y=7, x=5, stride=3, rate={"x": 2}, padding=padding)
        for label in ("center", "origin"):
            back = stitch(p.extract(label=label), reduce="first")
            np.testing.assert_allclose(back.y, image.y, rtol=1e-14)
            np.testing.assert_array_equal(back.x, image.x)
            assert back.band.values.tolist() == ["red", "green"]
            assert back.attrs == image.attrs
    back = stitch(image.patches(x=3).extract(), reduce="first")
    assert back.x.dtype == image.x.dtype
    single = image.assign_coords(y=np.linspace(50, 40, 24, dtype="f4"))
    back = stitch(single.patches(y=5, stride=2).extract(), reduce="first")
    assert back.y.dtype == np.float32
    np.testing.assert_allclose(back.y, single.y, rtol=1e-6)


DAYS = np.datetime64("2024-01-01")
UNEVEN: dict[str, Array] = {
    "business days": np.busday_offset(DAYS, np.arange(25), roll="forward"),
    "months": (np.datetime64("2024-01") + np.arange(25).astype("m8[M]")).astype("M8[ns]"),
    "two steps": np.repeat(np.arange(0, 130, 10), 2)[:25] + np.arange(25) % 2,
    "levels": np.array([
        *(1000, 975, 950, 925, 900, 850, 800, 750, 700, 650, 600, 550, 500, 450),
        *(400, 350, 300, 250, 225, 200, 150, 100, 70, 50, 30),
    ]),
    "gaussian latitudes": np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(25)[0])),
    "names": np.array([f"station {number}" for number in range(25)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNEVEN)
@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_labels_that_patches_do_not_determine_are_left_out(kind: str, layout: str) -> None:
    image = xr.DataArray(np.arange(25.0), {"t": UNEVEN[kind]}, ["t"])

    def back(**given: Any) -> xr.DataArray:
        patches = image.patches(**given).extract()
        if layout == "samples":
            dataset = patches.reset_index("t").to_dataset(name="a").rename_dims(t="sample")
            patches = dataset.a
        stitched: xr.DataArray = stitch(patches, reduce="first")
        return stitched

    for given_patches in ({"t": 5}, {"t": 5, "stride": 2}, {"t": 3, "stride": 1}):
        assert "t" not in back(**given_patches).coords
    # With a stride of 1 and as many patches as samples, each is the middle of one.
    whole = back(t=5, stride=1, padding="same")
    assert whole.t.dtype == image.t.dtype
    np.testing.assert_array_equal(whole.t, image.t)


@pytest.mark.parametrize(
    ("at", "values", "length", "expected"),
    [
        # Midpoints are no sample's label, even where there is one of every two.
        (range(1, 9, 2), [0.5, 1.5, 2.5, 3.5], 5, [0.0, 1.0, 2.0, 3.0, 4.0]),
        (range(-1, 9, 2), [-0.5, 0.5, 1.5, 2.5, 3.5], 5, [0.0, 1.0, 2.0, 3.0, 4.0]),
        (range(1, 9, 2), [0.5, 1.5, 3.5, 5.5], 5, None),
        (range(1, 7, 2), np.arange(3).astype("M8[s]"), 4, None),  # half seconds
        (range(0, 8, 4), np.array([0, 6], "M8[s]"), 3, [0, 3, 6]),
        (range(3, 15, 4), [1.5, 3.5, 5.5], 7, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        (range(0, 12, 4), [4, 2, 0], 5, [4, 3, 2, 1, 0]),
        (range(0, 12, 4), np.array([4, 2, 0], "u1"), 6, None),  # -1
        (range(0, 12, 4), [0, 3, 6], 5, None),  # 1.5
        (range(0, 8, 4), [0.0, 2.0], 3, [0.0, 1.0, 2.0]),
        (range(0, 4, 4), [0.0], 3, None),
        (range(0, 12, 4), [0.0, 2.0, 4.001], 5, None),
        (range(0, 12, 4), [0.0, np.nan, 4.0], 5, None),
        (range(-2, 8, 2), [9.0, 0.0, 5.0, 1.0, 9.0], 3, [0.0, 5.0, 1.0]),
        (range(0, 6, 2), ["c", "a", "b"], 3, ["c", "a", "b"]),
        (range(0, 4, 2), ["c", "a"], 3, None),
    ],
)
def test_labels_are_rebuilt_from_where_they_lie_in_half_samples(
    at: range, values: Any, length: int, expected: Any
) -> None:
    made = rebuilt(at, np.asarray(values), length, np.asarray(values).dtype)
    if expected is None:
        assert made is None
    else:
        assert made is not None
        np.testing.assert_array_equal(made, np.asarray(expected).astype(made.dtype))
        assert made.dtype == np.asarray(values).dtype


@pytest.mark.parametrize("size", [4, 5])
def test_an_image_with_other_labels_is_not_the_one_that_was_cut(size: int) -> None:
    image = labelled()
    patches = image.patches(y=size, x=size, stride=3, padding="same").extract()
    assert stitch(patches, like=image, reduce="first").equals(image)
    for other in (
        image.isel(y=slice(None, None, -1)),
        image.assign_coords(x=image.x + 1),
        image.assign_coords(y=[f"row {number}" for number in range(image.sizes["y"])]),
    ):
        with pytest.raises(PatchError, match=r"like must have the labels along '[yx]' that"):
            stitch(patches, like=other, reduce="first")
    bare = image.drop_vars(["y", "x"])
    assert "y" not in stitch(patches, like=bare, reduce="first").coords


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("layout", ["grid", "samples"])
@pytest.mark.parametrize("opened", ["memory", "chunked", "with dask", "without"])
def test_patches_in_another_order_are_put_where_their_origins_say(
    order: str, layout: str, opened: str, tmp_path: Path
) -> None:
    image = labelled().drop_vars("band")
    p = image.patches(y=5, x=5, stride=3, padding="same")
    patches: Any = p.extract()
    if layout == "samples" or opened.startswith("with"):
        p.to_zarr(tmp_path / "out", layout=layout, progress=False)
        patches = xpatches.open_patches(tmp_path / "out", chunks=None)
        patches = patches if opened == "without" else patches.chunk()
        patches = patches.compute() if opened == "memory" else patches
    if opened == "chunked":
        patches = patches.chunk(dict.fromkeys(patches.dims[:2], 2))
    rng = np.random.default_rng(0)
    for dim in ("y", "x") if layout == "grid" else ("sample",):
        n = patches.sizes[dim]
        moved = slice(None, None, -1) if order == "reversed" else rng.permutation(n)
        patches = patches.isel({dim: moved})
    if order == "reversed":
        patches = patches.isel(y_patch=slice(None, None, -1))
    back = stitch(patches, reduce="first")
    assert (back.chunks is None) == (opened == "memory")
    assert back.dims == image.dims
    assert same_bits(back.to_numpy(), image.to_numpy())
    np.testing.assert_allclose(back.y, image.y, rtol=1e-14)
    np.testing.assert_array_equal(back.x, image.x)


@pytest.mark.parametrize("layout", ["grid", "samples"])
@pytest.mark.parametrize("chunks", [None, {}, "computed", "memory"])
@pytest.mark.filterwarnings("ignore:.*FixedLengthUTF32")  # of bands' names, by older zarr
def test_datasets_are_stitched_however_they_are_opened(
    tmp_path: Path, layout: str, chunks: Any
) -> None:
    image = labelled()
    small = {"chunks": {"sample": 5}} if layout == "samples" else {"chunks": {"y": 2, "x": 3}}
    p = patches_of(image)
    p.to_zarr(tmp_path / "out", layout=layout, shards=False, progress=False, **small)
    patches: Any = xpatches.open_patches(tmp_path / "out", chunks=None if chunks is None else {})
    if chunks == "computed":
        patches = patches + np.float32(0)
    patches = patches.compute() if chunks == "memory" else patches
    for reduce in ("mean", "first"):
        back = stitch(patches, like=image, reduce=reduce, max_bytes=2**13)
        assert (back.chunks is None) == (chunks == "memory")
        assert back.chunks is None or len(back.chunks[0]) > 1
        whole = stitch(p.extract(), like=image, reduce=reduce)
        assert back.dims == whole.dims == image.dims
        assert same_bits(back.to_numpy(), whole.to_numpy())


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("how", [*HOWS, "hann"])
def test_patches_may_be_missing(how: str, chunked: bool) -> None:
    image = labelled(dtype="i4" if how == "vote" else "f4").isel(band=0, drop=True)
    patches = patches_of(image).extract()
    stacked = patches.stack(sample=("y", "x")).reset_index("sample")
    stacked = stacked.transpose("sample", ...)
    rng = np.random.default_rng(0)
    kept = rng.permutation(np.flatnonzero(rng.random(stacked.sizes["sample"]) < 0.6))
    options: dict[str, Any] = {"reduce": how}
    if how in TAPERS:
        options = {"taper": how}
    some = stacked.isel(sample=kept)
    back = stitch(some.chunk(sample=7) if chunked else some, **options, fill_value=-1)
    back = back.compute()
    # The others are taken for what they are not: each is reduced to nothing by itself.
    axes = {0: (6, 3, 1, "same"), 1: (6, 3, 1, "same")}
    numbers = set(kept.tolist())
    grids = [AxisGrid("y", 24, 6, 3, 1, "same"), AxisGrid("x", 28, 6, 3, 1, "same")]
    weights = weights_of(options.get("taper", "flat"), {"y": 6, "x": 6})
    found = None if weights is None else [*weights.values()]
    for place, of in terms_over(patches.values, axes, (24, 28)).items():
        terms = [term for term in of if term[0][0] * patches.sizes["x"] + term[0][1] in numbers]
        value = back.values[place]
        if not terms:
            assert value == -1
            continue
        wanted = expected_of(terms, "mean" if how in ("flat", "hann") else how, found, grids)
        if how == "sum":
            wanted = sum(float(value) for *_, value in terms)
        assert float(value) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8"])
@given(st.integers(0, 99), st.integers(2, 9))
def test_patches_that_are_there_give_their_floats_back_exactly(
    dtype: str, seed: int, nth: int
) -> None:
    samples = image_of((32, 40), dtype, seed)
    image = xr.DataArray(samples, dims=("y", "x"))
    patches = image.patches(y=8, x=8, stride=4, padding="same").extract()
    stacked = patches.stack(sample=("y", "x"), create_index=False).transpose("sample", ...)
    some = stacked.isel(sample=[i for i in range(stacked.sizes["sample"]) if i % nth])
    for given_patches in (some, patches):
        back = stitch(given_patches, fill_value=7).values
        there = stitch(xr.ones_like(given_patches, int), fill_value=0, reduce="max").values == 1
        # Part by part: to compare complex numbers warns of some, in some releases of NumPy.
        part = samples.real.dtype
        np.testing.assert_array_equal(back[there].view(part), samples[there].view(part))


def test_every_nth_patch_and_parts_of_patches_are_stitched() -> None:
    image = labelled().isel(band=0, drop=True)
    patches = patches_of(image).extract()
    for some in (
        patches.isel(y=slice(1, None, 2), x=slice(2, 7)),
        patches.isel(y_patch=slice(1, 5), x_patch=slice(2, None)),
        patches.isel(y_patch=slice(0, None, 2), y=slice(0, 3)),
    ):
        back = stitch(some, reduce="first")
        chunked = stitch(some.chunk(y=1, x=2), reduce="first", max_bytes=2**15)
        assert same_bits(chunked.to_numpy(), back.to_numpy())
        held = np.zeros((24, 28), bool)
        for y in (some.y_origin + some.y_patch).values.ravel():
            for x in (some.x_origin + some.x_patch).values.ravel():
                if 0 <= y < 24 and 0 <= x < 28:
                    held[y, x] = True
        np.testing.assert_array_equal(back.values[held], image.values[held])
        assert np.isnan(back.values[~held]).all()


def test_datasets_are_stitched_variable_by_variable() -> None:
    image = labelled()
    dataset = xr.Dataset(
        {"image": image, "line": image[:, 0, 0].reset_coords(drop=True), "table": ("n", [1, 2])}
    )
    p = patches_of(dataset)
    back = stitch(p.extract(), like=dataset, reduce="first")
    xr.testing.assert_identical(back, dataset)
    samples = xr.Dataset({"image": image, "more": image + 1})
    grid = samples.patches(y=5, x=5, stride=3, padding="same").extract()
    cut = grid.stack(sample=("y", "x")).reset_index("sample")
    for name in cut.data_vars:
        cut[name].attrs = grid.image.attrs
    back = stitch(cut, reduce="first")
    assert set(back.dims) == {"y", "x", "band"}
    np.testing.assert_array_equal(back.more.transpose(*image.dims), image + 1)
    np.testing.assert_array_equal(back.x, image.x)
    assert "lat" not in back.coords
    scored = p.extract().assign(score=p.extract().image.mean(["y_patch", "x_patch"]).drop_attrs())
    with pytest.raises(PatchError, match="'score' is no patches, but lies along dims of the grid"):
        stitch(scored)


@pytest.mark.parametrize("taper", [*TAPERS, lambda size: np.arange(1, size + 1), {"x": [1] * 64}])
def test_a_constant_stays_constant_to_the_borders(taper: Any) -> None:
    for value in np.array([1, 1 / 3, 0.1, 7.7, 1e-3, 254.9], np.float32):
        image = xr.DataArray(np.full((150, 190), value), dims=("y", "x"))
        p = image.patches(y=64, x=64, stride=56, padding="same")
        back = stitch(p.extract(), taper=taper)
        assert back.dtype == np.float32
        # Padding belongs to patches, not to the image: it does not count.
        np.testing.assert_array_equal(back, value)


def test_nothing_is_computed_and_chunks_are_read_once_or_so(
    tmp_path: Path, counting_store: Any, no_compute: None
) -> None:
    image = xr.DataArray(np.random.default_rng(0).random((96, 96)), dims=("y", "x"), name="image")
    p = image.patches(y=16, x=16, stride=8, padding="same")
    with dask.config.set(scheduler="synchronous"):
        p.to_zarr(tmp_path / "out", chunks={"y": 2, "x": 2}, shards=False, progress=False)
    counting_store.reads.clear()
    opened: Any = xpatches.open_patches(counting_store(tmp_path / "out"))
    counting_store.chunk_reads()
    back = stitch(opened, taper="hann", max_bytes=2**18)
    assert not counting_store.chunk_reads("image")  # but the origins of patches
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_allclose(back, image, rtol=1e-12)
    reads = counting_store.chunk_reads("image")
    assert len(reads) == 36
    assert sum(reads.values()) <= 2.8 * len(reads)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reduce": "median"}, r"reduce must be None, 'mean', 'sum', .*, got 'median'"),
        ({"reduce": "sum", "taper": "hann"}, r"taper is for reduce='mean', got reduce='sum'"),
        ({"taper": "hanning"}, r"taper must be 'flat', .*, got 'hanning'"),
        ({"taper": [1, 2]}, r"taper on 'y' must have the shape \(6,\), got \(2,\)"),
        ({"taper": {"z": [1]}}, r"taper names 'z', which is not among the dims \('y', 'x'\)"),
        ({"taper": lambda size: -np.ones(size)}, r"taper on 'y' must be finite, >= 0 and not all"),
        ({"skipna": "no"}, r"skipna must be True, False or None, got 'no'"),
        (
            {"dtype": "i4"},
            r"dtype must be a floating dtype, for reduce='mean' .* got int32",
        ),
        ({"like": xr.DataArray(np.zeros((3, 3)), dims=("y", "x"))}, r"like must have 24 samples"),
    ],
)
def test_arguments_are_refused_by_name(given: Any, message: str) -> None:
    patches = patches_of(labelled()).extract()
    with pytest.raises(PatchError, match=message):
        stitch(patches, **given)


def test_geometry_that_is_lost_is_said_to_be() -> None:
    patches = patches_of(labelled()).extract()
    for broken, message in (
        (patches.drop_attrs(), r"has no attr 'xpatches': it does not come from extract"),
        (patches.isel(y=0), r"patches must have the dims \('y', 'x', 'y_patch', 'x_patch'\), got"),
        (patches.isel(y=[0, 1, 4]), r"'y_origin' must be at equal distances, got \[-1"),
        (patches.isel(y=[2, 1, 1]), r"'y_origin' must hold every place once, got \[2 2 5\]; drop"),
        (patches.isel(y_patch=[1, 1]), r"'y_patch' must hold every place once, got \[1 1\]; drop"),
        (patches.isel(y=[0, 1]).drop_vars("y_origin"), r"patches must be 8 along 'y', got 2, and"),
        (
            patches[..., :3, :, :].drop_vars("y_patch"),
            r"must have 6 samples along 'y_patch', got 3",
        ),
    ):
        with pytest.raises(PatchError, match=message):
            stitch(broken)
    with pytest.raises(PatchError, match="must be a DataArray or a Dataset, got ndarray"):
        stitch(patches.values)


def test_samples_in_no_patch_need_a_value() -> None:
    image = labelled(dtype="u1").isel(band=0, drop=True)
    for options, why in (
        ({"stride": 9}, r"stride 9 on 'y' exceeds the size 6, stride 9 on 'x' exceeds the size 6"),
        (
            {"stride": 5},
            r"patches on 'y' end before the image does, patches on 'x' end "
            "before the image does",
        ),
        ({"stride": 6, "rate": 2}, r"rate 2 on 'y' leaves gaps, rate 2 on 'x' leaves gaps"),
    ):
        patches = image.patches(y=6, x=6, **options).extract()
        bare = int(np.isnan(stitch(patches.astype(float))).sum())
        message = f"{bare} of 672 samples are in no patch: {why}, and uint8 has no missing value"
        with pytest.raises(PatchError, match=message):
            stitch(patches, reduce="mean")
        back = stitch(patches, fill_value=255, reduce="mean")
        assert back.dtype == np.dtype("u1")
        assert (back.values == 255).sum() >= bare
        assert stitch(patches, reduce="sum").dtype == np.dtype("u8")
    with pytest.raises(PatchError, match="fill_value must be a value that uint8 can hold, got -1"):
        stitch(patches, fill_value=-1, reduce="mean")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("opened", [False, True])
def test_dims_may_be_in_any_order(how: str, opened: bool, tmp_path: Path) -> None:
    image = labelled(dtype="i4").isel(band=0, drop=True)
    p = image.patches(y=6, x=4, stride=3, padding="same")
    options: dict[str, Any] = {"taper": "crop"} if how == "crop" else {"reduce": how}
    expected = stitch(p.extract(), **options)
    patches = p.extract()
    if opened:
        p.to_zarr(tmp_path / "out", chunks={"y": 2, "x": 3}, shards=False, progress=False)
        opened_patches: Any = xpatches.open_patches(tmp_path / "out", chunks=None)
        patches = opened_patches
    for dims in (("x", "y", "y_patch", "x_patch"), ("x_patch", "x", "y_patch", "y")):
        moved = patches.transpose(*dims)
        moved = moved if opened else moved.chunk(x=2, y=3, x_patch=3)
        back = stitch(moved, **options, max_bytes=2**13)
        assert back.dims == ("x", "y")
        xr.testing.assert_equal(back.transpose("y", "x").compute(), expected)
        xr.testing.assert_equal(stitch(moved.compute(), **options).T, expected)


def test_samples_without_weight_do_not_count_whatever_they_hold() -> None:
    image = xr.DataArray(np.arange(12.0), dims="x")
    patches = image.patches(x=4, stride=2).extract().copy()
    patches[:, 0], patches[:, 3] = np.nan, np.inf
    back = stitch(patches, taper=[0, 1, 1, 0])
    np.testing.assert_array_equal(back, [np.nan, *range(1, 11), np.nan])
    with pytest.raises(PatchError, match="samples of patches on 'x' have the weight 0"):
        stitch(image.astype("i8").patches(x=4, stride=2).extract(), taper=[0, 1, 1, 0])


def test_weights_of_any_size_leave_a_constant_constant() -> None:
    def narrow(size: int) -> Array:
        return np.asarray(np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 32)) ** 2))

    image = xr.DataArray(np.full((32, 32), 7, "f4"), dims=("y", "x"))
    patches = image.patches(y=16, x=16, stride=8).extract()
    for taper in (narrow, [1e30] * 16, [1e-300] * 16):
        back = stitch(patches, taper=taper)
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, image)
    large = xr.DataArray(np.full(64, 40000, ">f2"), dims="x").patches(x=16, stride=4).extract()
    assert (stitch(large) == 40000).all()


def test_a_dim_may_be_called_sample() -> None:
    image = xr.DataArray(np.random.default_rng(0).random((3, 9, 9)), dims=("sample", "y", "x"))
    patches = image.patches(y=3, x=3, stride=1).extract()
    np.testing.assert_allclose(stitch(patches), image)
    runs = xr.concat([patches[0], patches[1] + 1], "sample")
    np.testing.assert_allclose(stitch(runs)[1], image[1] + 1)


def test_what_is_opened_stays_lazy(tmp_path: Path) -> None:
    image = labelled().drop_vars("band")
    flat = patches_of(image).extract(flatten="patch")
    flat.to_dataset().to_zarr(tmp_path / "flat", consolidated=False)
    opened = xr.open_zarr(tmp_path / "flat", chunks=None, consolidated=False).image
    back = stitch(opened, reduce="first")
    assert back.chunks is not None
    np.testing.assert_array_equal(back, image)
    dataset = xr.Dataset({"a": image, "b": image + 1}, {"k": ("z", [1, 2])}, {"title": "T"})
    dataset.to_zarr(tmp_path / "image", consolidated=False)
    like = xr.open_zarr(tmp_path / "image", chunks=None, consolidated=False)
    both = stitch(patches_of(like).extract(), like=like, reduce="first")
    assert not both.variables["lat"]._in_memory
    assert both.k.values.tolist() == [1, 2]
    assert both.attrs == {"title": "T"}
    assert stitch(patches_of(dataset).extract().a, like=dataset, reduce="first").attrs == {
        "units": "K"
    }


def test_two_labels_determine_nothing() -> None:
    image = xr.DataArray(np.arange(8.0), {"x": np.arange(8.0) ** 2}, "x")
    assert "x" not in stitch(image.patches(x=4).extract()).coords


@pytest.mark.parametrize(
    ("size", "stride", "rate", "pad"), [(3, 1, 1, 1), (4, 3, 2, 2), (5, 5, 1, 0)]
)
def test_the_sum_is_torchs_fold(size: int, stride: int, rate: int, pad: int) -> None:
    torch: Any = pytest.importorskip("torch")
    image = xr.DataArray(np.zeros((2, 30, 41, 3), "f4"), dims=("batch", "y", "x", "depth"))
    given: dict[str, Any] = {"stride": stride, "rate": rate, "padding": (pad, pad)}
    patches = image.patches(y=size, x=size, **given).extract()
    values = np.random.default_rng(0).integers(-9, 9, patches.shape).astype("f4")
    back = stitch(patches.copy(data=values), reduce="sum")
    columns = values.transpose(0, 5, 3, 4, 1, 2).reshape(2, 3 * size * size, -1)
    fold = torch.nn.Fold((30, 41), size, dilation=rate, padding=pad, stride=stride)
    expected = fold(torch.from_numpy(columns)).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(back, expected)


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.integers(1, 3)),
    st.integers(-6, 4),
    st.integers(0, 5),
    st.sets(st.integers(0, 4)),
)
def test_samples_in_no_patch_are_counted(
    numbers: tuple[int, int, int, int], origin: int, count: int, held: set[int]
) -> None:
    length, size, stride, rate = numbers
    cover = AxisCover("x", length, size, stride, rate, origin, count)
    for some in (range(size), held & {*range(size)}):
        covered = {origin + i * stride + j * rate for i in range(count) for j in some}
        assert cover.bare(some) == len({*range(length)} - covered)


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.integers(1, 3)),
    st.integers(-6, 4),
    st.integers(0, 5),
)
def test_patches_overlap_where_a_sample_of_the_image_is_in_two(
    numbers: tuple[int, int, int, int], origin: int, count: int
) -> None:
    length, size, stride, rate = numbers
    cover = AxisCover("x", length, size, stride, rate, origin, count)
    held = Counter(origin + i * stride + j * rate for i in range(count) for j in range(size))
    assert cover.overlaps == any(held[place] > 1 for place in range(length))


def test_labels_are_not_averaged_unasked() -> None:
    image = xr.DataArray(np.arange(12) % 2 * 390 + 10, dims="x", name="classes")
    for dtype in ("i8", "?", "U3", "M8[s]"):
        patches = image.astype(dtype).patches(x=4, stride=2).extract()
        message = f"reduce must be given for {np.dtype(dtype)} of 'classes', for patches overlap"
        with pytest.raises(PatchError, match=re.escape(message)):
            stitch(patches)
        assert stitch(patches, reduce="first").equals(image.astype(dtype))
        apart = image.astype(dtype).patches(x=4).extract()
        for some in (apart, apart.chunk(x=1), patches.isel(x=slice(None, None, 2), x_patch=[1, 2])):
            assert same_bits(
                stitch(some, fill_value=np.array(0, dtype)[()]).values[1:3],
                image.astype(dtype).values[1:3],
            )
    patches = image.patches(x=4, stride=2).extract()
    for asked in ({"reduce": "mean"}, {"taper": "flat"}, {"taper": "hann"}, {"taper": "crop"}):
        how: dict[str, Any] = asked
        assert (stitch(patches, **how) == image).all()
    with pytest.raises(PatchError, match="reduce must be given for int64"):
        stitch(patches, dtype="float64")
    assert stitch(image.patches(x=4).extract(), dtype="float32").dtype == np.float32


@pytest.mark.parametrize("layout", ["grid", "samples"])
@pytest.mark.parametrize("taper", ["flat", "hann", "crop"])
def test_a_task_holds_its_budget_and_a_few_rows(layout: str, taper: str, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).random((2048, 2048), "f4")
    image = xr.DataArray(samples, dims=("y", "x"), name="image")
    p = image.patches(y=256, x=256, stride=128)
    patches = p.to_zarr(
        tmp_path / "a", layout=layout, progress=False, encoding={"image": {"compressors": ()}}
    )
    budget = 1 << 24
    made = stitch(patches, taper=taper, max_bytes=budget)
    assert made.data.npartitions > 4
    made.data.blocks[0, 0].compute()  # what is loaded once
    tracemalloc.start()
    for index in np.ndindex(2, made.data.numblocks[1]):
        made.data.blocks[index].compute()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Beyond the budget: the rows that are being made, and the objects that zarr is reading.
    stored = 4 * np.prod(patches.encoding["shards"] or patches.encoding["chunks"])
    assert peak <= budget + (1 << 23) + stored
    assert peak > budget / 4


@pytest.mark.parametrize("inner", [{"y_patch": 2, "x_patch": 2}, {"x_patch": 2}, {"time": 2}])
@pytest.mark.parametrize("layout", [None, "grid", "samples"])
@pytest.mark.parametrize("like", [False, True])
def test_patches_of_patches_are_put_back_one_after_the_other(
    inner: dict[str, int], layout: str | None, like: bool, tmp_path: Path
) -> None:
    image = xr.DataArray(
        np.random.default_rng(0).normal(size=(4, 12, 16)),
        {"time": range(4), "y": np.linspace(9, 8, 12), "x": np.linspace(0, 1, 16)},
        ("time", "y", "x"),
        "image",
        {"units": "K"},
    )
    outer = image.patches(y=4, x=8).extract()
    p = outer.patches(inner)
    if layout is None:
        cut = p.extract()
    else:
        cut = p.to_zarr(tmp_path / "a", layout=layout, progress=False).compute()
    back = stitch(cut, like=outer if like else None)
    assert back.attrs == outer.attrs
    xr.testing.assert_equal(
        back.transpose(*outer.dims).drop_vars(back.coords), outer.drop_vars(outer.coords)
    )
    xr.testing.assert_identical(stitch(back.transpose(*outer.dims), like=image), image)
    innermost = back.transpose(*outer.dims).patches(y_patch=2).extract()
    again = innermost.patches(x_patch=4).extract()
    assert stitch(stitch(again)).attrs == outer.attrs
    xr.testing.assert_identical(stitch(stitch(stitch(again)), like=image), image)


def test_a_spec_without_an_outer_one_is_read() -> None:
    patches = xr.DataArray(np.arange(9.0), dims="x").patches(x=2).extract()
    assert "outer" not in json.loads(patches.attrs["xpatches"])
    assert "xpatches" not in stitch(patches, fill_value=0).attrs
