import math
import tracemalloc
import warnings
from fractions import Fraction
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from reference import Array, same_bits
from strategies import axis_grids, chunkings, problems
from xpatches import MapError, PatchError
from xpatches.geometry.grid import AxisGrid
from xpatches.reduction.kernel import SEPARABLE

NAMES = [*SEPARABLE, "median"]
DTYPES = ["?", "u1", "i2", "u8", "f2", "f4", "f8"]


def patches_of(image: Any, grids: dict[int, AxisGrid], fill: Any = None) -> Any:
    dims = [f"d{axis}" for axis in range(image.ndim)]
    labelled = xr.DataArray(image, dims=dims, attrs={"units": "m"}, name="image")
    return labelled.patches(
        {dims[axis]: grid.size for axis, grid in grids.items()},
        stride={dims[axis]: grid.stride for axis, grid in grids.items()},
        rate={dims[axis]: grid.rate for axis, grid in grids.items()},
        padding={dims[axis]: grid.padding for axis, grid in grids.items()},
        fill_value=fill,
    )


def by_extraction(p: Any, how: str, **kwargs: Any) -> xr.DataArray:
    """Reduce patches that stand in memory, by xarray; arg reductions by NumPy."""
    patches = p.extract()
    dims = [f"{dim}_patch" for dim in p.grid.dims]
    if how.startswith("arg"):
        flat = patches.transpose(..., *dims).values.reshape(
            *(n for dim, n in patches.sizes.items() if dim not in dims), -1
        )
        name = how if kwargs.get("skipna") is False or flat.dtype.kind != "f" else f"nan{how}"
        values = getattr(np, name)(flat, axis=-1)
        result = patches.isel(dict.fromkeys(dims, 0), drop=True).copy(data=values)
    else:
        result = getattr(patches, how)(dims, **kwargs)
    assert isinstance(result, xr.DataArray)
    return result


def check(result: xr.DataArray, expected: xr.DataArray) -> None:
    assert result.dims == expected.dims
    assert result.dtype == expected.dtype
    assert result.coords.keys() == expected.coords.keys()
    rtol = {2: 2e-2, 4: 1e-4}.get(result.dtype.itemsize, 1e-9)
    xr.testing.assert_allclose(result, expected, rtol=rtol, atol=rtol)


def holed(shape: tuple[int, ...], dtype: str, seed: int, holes: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 2 if dtype == "?" else 30, shape).astype(dtype)
    if np.dtype(dtype).kind == "f":
        samples[rng.random(shape) < holes] = np.nan
    return samples


@pytest.mark.parametrize("how", NAMES)
@given(problems(max_spatial=3), st.sampled_from(DTYPES), st.data())
def test_a_reduction_is_that_of_the_extracted_patches(
    how: str, problem: tuple[Array, dict[int, AxisGrid]], dtype: str, data: st.DataObject
) -> None:
    shape, grids = problem[0].shape, problem[1]
    if 0 in shape:
        return
    image = holed(shape, dtype, seed=data.draw(st.integers(0, 99)))
    p = patches_of(image, grids, fill=data.draw(st.sampled_from([None, 1])))
    check(p.reduce(how), by_extraction(p, how))


@pytest.mark.parametrize("how", ["min", "max", "sum", "mean", "var", "std", "count", "median"])
@pytest.mark.parametrize("skipna", [None, True, False])
@given(problems(max_spatial=2), st.sampled_from(["f2", "f4", "f8"]), st.integers(0, 99))
def test_missing_samples_are_skipped_as_xarray_skips_them(
    how: str, skipna: bool | None, problem: tuple[Array, dict[int, AxisGrid]], dtype: str, seed: int
) -> None:
    shape, grids = problem[0].shape, problem[1]
    if 0 in shape:
        return
    p = patches_of(holed(shape, dtype, seed, holes=0.4), grids)
    kwargs = {} if how == "count" else {"skipna": skipna}
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        expected = by_extraction(p, how, **kwargs)
    check(p.reduce(how, **kwargs), expected)


@pytest.mark.parametrize("how", ["argmin", "argmax"])
@given(problems(max_spatial=2), st.integers(0, 99))
def test_the_index_of_an_extreme_is_that_of_the_first_one(
    how: str, problem: tuple[Array, dict[int, AxisGrid]], seed: int
) -> None:
    shape, grids = problem[0].shape, problem[1]
    if 0 in shape:
        return
    image = holed(shape, "f8", seed, holes=0.3)
    image[...] = np.where(image > 20, np.inf, image)
    p = patches_of(image, grids)
    check(p.reduce(how, skipna=False), by_extraction(p, how, skipna=False))
    try:
        expected = by_extraction(p, how)
    except ValueError:
        with pytest.raises(ValueError, match="met a patch of NaN alone; use skipna=False"):
            p.reduce(how)
    else:
        check(p.reduce(how), expected)


@pytest.mark.parametrize("how", ["min", "max", "sum", "mean", "var", "std", "count", "median"])
@given(problems(max_spatial=2), st.sampled_from(["u1", "i2", "f4"]), st.integers(0, 99))
def test_ignored_padding_is_no_sample(
    how: str, problem: tuple[Array, dict[int, AxisGrid]], dtype: str, seed: int
) -> None:
    shape, grids = problem[0].shape, problem[1]
    if 0 in shape:
        return
    image = holed(shape, dtype, seed, holes=0.1)
    p = patches_of(image, grids)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        expected = by_extraction(patches_of(image.astype(float), grids, np.nan), how)
    try:
        result = p.reduce(how, ignore_padding=True)
    except PatchError:
        assert how in ("min", "max")
        assert np.isnan(expected).any()
    else:
        xr.testing.assert_allclose(result.astype(float), expected.astype(float), rtol=1e-4)


@pytest.mark.parametrize("how", ["any", "all"])
def test_ignored_padding_decides_nothing(how: str) -> None:
    p = patches_of(np.array([True, False, True]), {0: AxisGrid("x", 3, 2, 1, padding=(2, 2))})
    expected = {"any": [0, 1, 1, 1, 1, 0], "all": [1, 1, 0, 0, 1, 1]}[how]
    assert p.reduce(how, ignore_padding=True).astype(int).values.tolist() == expected


def test_fewer_samples_than_min_count_give_nan() -> None:
    image = np.array([1.0, np.nan, np.nan, 4.0, 5.0])
    p = patches_of(image, {0: AxisGrid("x", 5, 2, 1)})
    for how in ("min", "max", "sum", "mean", "var"):
        result = p.reduce(how, min_count=2)
        assert np.isnan(result).values.tolist() == [True, True, True, False]
    check(p.reduce("sum", min_count=1), by_extraction(p, "sum", min_count=1))
    integers = patches_of(np.arange(1, 4), {0: AxisGrid("x", 3, 3, 1, padding="same")})
    result = integers.reduce("max", ignore_padding=True, min_count=3)
    assert np.array_equal(result, [np.nan, 3, np.nan], equal_nan=True)
    assert integers.reduce("sum", min_count=3).values.tolist() == [3, 6, 5]  # as xarray


@pytest.mark.parametrize("how", ["max", "mean", "std", "argmax", "count", "median", np.ptp])
@given(problems(max_spatial=2), st.data(), st.integers(2000, 9000))
def test_chunks_and_budgets_make_no_difference(
    how: Any, problem: tuple[Array, dict[int, AxisGrid]], data: st.DataObject, max_bytes: int
) -> None:
    shape, grids = problem[0].shape, problem[1]
    if 0 in shape:
        return
    image = holed(shape, "f4", 3)
    chunks = tuple(data.draw(chunkings(n)) for n in shape)
    expected = patches_of(image, grids).reduce(how)
    lazy = patches_of(da.from_array(image, chunks=chunks), grids)
    try:
        result = lazy.reduce(how, max_bytes=max_bytes)
    except PatchError:
        result = lazy.reduce(how)
    assert result.chunks is not None
    xr.testing.assert_allclose(result.compute(), expected, rtol=1e-5)


def test_a_function_is_given_the_patches_of_a_block_and_their_axes() -> None:
    image = np.arange(60).reshape(5, 6, 2)
    p = patches_of(image, {0: AxisGrid("y", 5, 2, 1), 1: AxisGrid("x", 6, 3, 2)})

    def spread(patches: Array, axis: tuple[int, ...]) -> Any:
        assert axis == (2, 3)
        return np.ptp(patches, axis=axis)

    patches = p.extract()
    expected = patches.max(["d0_patch", "d1_patch"]) - patches.min(["d0_patch", "d1_patch"])
    xr.testing.assert_equal(p.reduce(spread), expected)


def test_a_function_that_keeps_an_axis_is_refused() -> None:
    p = patches_of(np.arange(9), {0: AxisGrid("x", 9, 3, 3)})
    with pytest.raises(PatchError, match=r"how must reduce the axes \(1,\) of an array of shape"):
        p.reduce(lambda patches, axis: patches)


@pytest.mark.parametrize("how", ["max", "mean", "std", "argmax"])
def test_separable_reductions_hold_no_patches(how: str) -> None:
    image = np.random.default_rng(0).random((600, 600), "f4")
    p = patches_of(image, {axis: AxisGrid(axis, 600, 41, 1) for axis in (0, 1)})
    tracemalloc.start()
    p.reduce(how)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < p.nbytes / 50


@pytest.mark.parametrize(("length", "size", "rate"), [(1300, 600, 1), (120, 60, 1), (120, 12, 5)])
@pytest.mark.parametrize("how", ["mean", "std", "argmax"])
def test_no_patches_are_so_large_that_the_scratch_memory_is(
    how: str, length: int, size: int, rate: int
) -> None:
    ndim = 2 if length > 1000 else 3
    image = np.random.default_rng(0).integers(0, 200, (length,) * ndim, "uint8")
    grids = {axis: AxisGrid(axis, length, size, 1, rate, "same") for axis in range(ndim)}
    p = patches_of(image, grids)
    tracemalloc.start()
    result = p.reduce(how, ignore_padding=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < result.nbytes + 100e6
    center = p.isel(dict.fromkeys(result.dims, length // 2)).values
    assert result.values[(length // 2,) * ndim] == pytest.approx(getattr(np, how)(center))


def test_a_long_depth_takes_no_more_scratch_memory() -> None:
    image = xr.DataArray(np.zeros((6, 2_000_000), "f4"), dims=("y", "t"))
    p = image.patches(y=3, stride=1)
    tracemalloc.start()
    result = p.reduce("std")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < result.nbytes + 15e6


@pytest.mark.parametrize("shape", [(0, 10, 10), (10, 10, 0)])
def test_no_samples_give_no_results(shape: tuple[int, ...]) -> None:
    axes = [axis for axis, n in enumerate(shape) if n]
    p = patches_of(np.zeros(shape), {axis: AxisGrid(axis, 10, 4, 4) for axis in axes})
    for how in SEPARABLE:
        assert p.reduce(how).shape == tuple(2 if n else 0 for n in shape)


@pytest.mark.parametrize("how", ["any", "all"])
def test_nan_is_true_as_in_xarray(how: str) -> None:
    p = patches_of(np.array([np.nan, 0, 0, 1]), {0: AxisGrid("x", 4, 1, 1)})
    assert p.reduce(how).equals(getattr(p.extract(), how)("d0_patch"))


def test_the_variance_of_small_deviations_from_a_large_mean_is_exact() -> None:
    image = 1e9 + np.random.default_rng(0).random(1000)
    p = patches_of(image, {0: AxisGrid("x", 1000, 37, 1)})
    expected = np.lib.stride_tricks.sliding_window_view(image - 1e9, 37).var(-1)
    assert np.allclose(p.reduce("var"), expected, rtol=1e-5)


def test_an_infinite_sample_stays_in_its_patches() -> None:
    image = np.array([1.0, np.inf, 2.0, 3.0, 4.0])
    p = patches_of(image, {0: AxisGrid("x", 5, 2, 1)})
    assert p.reduce("sum").values.tolist() == [np.inf, np.inf, 5.0, 7.0]


def test_one_infinite_sample_has_no_variance_beside_missing_ones() -> None:
    image = np.array([np.nan, np.inf, 2.0, np.nan])
    p = patches_of(image, {0: AxisGrid("x", 4, 1, 1)})
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = p.extract().var("d0_patch")
    assert np.array_equal(p.reduce("var"), expected, equal_nan=True)


def large_integers(shape: tuple[int, ...], dtype: str, seed: int, spread: int) -> Array:
    """Integers of any size, or so many around a large one."""
    rng, info = np.random.default_rng(seed), np.iinfo(dtype)
    if not spread:
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    first = int(rng.integers(info.min, info.max - spread, dtype=dtype))
    return rng.integers(first, first + spread, shape, dtype)


@pytest.mark.parametrize("how", ["mean", "var", "std"])
@given(
    problems(max_spatial=2),
    st.sampled_from(["i8", "u8", "i4", "u1", ">i8"]),
    st.integers(0, 99),
    st.sampled_from([0, 1, 2, 100]),
    st.booleans(),
)
def test_means_and_variances_of_integers_are_right_to_float64(
    how: str,
    problem: tuple[Array, dict[int, AxisGrid]],
    dtype: str,
    seed: int,
    spread: int,
    ignore_padding: bool,
) -> None:
    shape, grids = problem[0].shape, problem[1]
    if 0 in shape:
        return
    image = large_integers(shape, np.dtype(dtype).newbyteorder("=").str, seed, spread)
    p = patches_of(image.astype(dtype), grids)
    result = p.reduce(how, ignore_padding=ignore_padding)
    assert result.dtype == np.float64
    behind = max(grids) + 1
    axes = tuple(range(behind, behind + len(grids)))
    patches = np.moveaxis(p.extract().values, axes, range(-len(grids), 0))
    inside = patches_of(np.ones(shape, bool), grids).extract().values
    inside = np.moveaxis(inside, axes, range(-len(grids), 0))
    for place in np.ndindex(*result.shape):
        held = patches[place][inside[place]] if ignore_padding else patches[place].ravel()
        numbers = [Fraction(int(number)) for number in held]
        if not numbers:
            assert np.isnan(result.values[place])
            continue
        mean = sum(numbers) / len(numbers)
        variance = sum((number - mean) ** 2 for number in numbers) / len(numbers)
        expected: Any = {"mean": mean, "var": variance, "std": Fraction(math.sqrt(variance))}[how]
        error = abs(Fraction(float(result.values[place])) - expected)
        units = 2 if how == "mean" else 99 if image.itemsize > 1 else 9999
        assert error <= units * Fraction(2.0**-53) * abs(expected)


def test_means_of_nanoseconds_do_not_wrap() -> None:
    first = 1_710_000_000_000_000_000
    p = patches_of(first + np.arange(40), {0: AxisGrid("x", 40, 20, 20)})
    assert p.reduce("mean").values.tolist() == [float(first + 9), float(first + 29)]
    assert p.reduce("std").values.tolist() == [math.sqrt(33.25)] * 2
    masked = p.reduce("mean", ignore_padding=True, min_count=21)
    assert np.isnan(masked).all()


@given(problems(max_spatial=2), st.sampled_from(["i8", "u8"]), st.integers(0, 99), st.data())
def test_means_of_large_integers_have_the_same_bits_for_every_chunking(
    problem: tuple[Array, dict[int, AxisGrid]], dtype: str, seed: int, data: st.DataObject
) -> None:
    shape, grids = problem[0].shape, problem[1]
    if 0 in shape:
        return
    image = large_integers(shape, dtype, seed, 0)
    image[np.random.default_rng(seed).random(shape) < 0.7] //= 1 << 60  # blocks of small ones
    chunks = tuple(data.draw(chunkings(n)) for n in shape)
    lazy = patches_of(da.from_array(image, chunks=chunks), grids)
    for how in ("mean", "var"):
        expected = patches_of(image, grids).reduce(how).values
        assert same_bits(lazy.reduce(how, max_bytes=2**17).values, expected)


def test_a_dataset_is_reduced_variable_by_variable() -> None:
    ds = xr.Dataset(
        {"a": (("y", "x"), np.ones((6, 6))), "b": ("x", np.arange(6)), "c": ("band", [1, 2])}
    )
    result = ds.patches(y=2, x=3).reduce("sum")
    assert result.sizes == {"y": 3, "x": 2, "band": 2}
    assert (result.a == 6).all()
    assert result.b.values.tolist() == [3, 12]
    assert result.c.values.tolist() == [1, 2]


def test_floats_that_numpy_does_not_have_are_refused() -> None:
    floats = pytest.importorskip("ml_dtypes")
    samples = np.arange(16.0).reshape(4, 4)
    image = xr.DataArray(samples.astype(floats.bfloat16), dims=("y", "x"))
    for how in (*SEPARABLE, "median"):
        with pytest.raises(PatchError, match=rf"how='{how}' is not possible for bfloat16; convert"):
            image.patches(y=2, x=2).reduce(how)
    made = image.patches(y=2, x=2).reduce(lambda of, axis: of.astype("f4").max(axis))
    np.testing.assert_array_equal(made, [[5, 7], [13, 15]])
    np.testing.assert_array_equal(
        image.astype("f4").patches(y=2, x=2).reduce("max"), [[5, 7], [13, 15]]
    )


@given(axis_grids())
def test_integers_are_refused_exactly_where_a_patch_has_no_sample_of_the_image(
    axis: AxisGrid,
) -> None:
    image = xr.DataArray(np.zeros(axis.length, int), dims="x")
    p = image.patches(x=axis.size, stride=axis.stride, rate=axis.rate, padding={"x": axis.padding})
    held = [any(0 <= at < axis.length for at in axis.samples(i)) for i in range(axis.count)]
    if all(held):
        assert not p.reduce("max", ignore_padding=True).any()
    else:
        with pytest.raises(PatchError, match=f"leaves patch {held.index(False)} along 'x' without"):
            p.reduce("max", ignore_padding=True)


def test_a_function_that_fails_is_told_with_what_it_was_given() -> None:
    image = xr.DataArray(np.zeros((4, 6)), dims=("y", "x"))

    def broken(patches: Any, axis: Any) -> Any:
        raise KeyError("y")

    with pytest.raises(MapError, match=r"how failed on patches of shape .*, KeyError: 'y'; it is"):
        image.patches(y=2, x=2).reduce(broken)
