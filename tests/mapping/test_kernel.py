"""A map is as if all patches were extracted, run and stitched."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models import above_least, identity
from reference import Array, same_bits
from strategies import DTYPES, chunkings, image_of, problems
from xpatches import PatchError, stitch
from xpatches.geometry.grid import AxisGrid


def patches_of(labelled: xr.DataArray, grids: dict[int, AxisGrid], **given: Any) -> Any:
    return labelled.patches(
        {g.dim: g.size for g in grids.values()},
        stride={g.dim: g.stride for g in grids.values()},
        rate={g.dim: g.rate for g in grids.values()},
        padding={g.dim: g.padding for g in grids.values()},
        **given,
    )


HOWS: list[dict[str, Any]] = [
    {"taper": "flat"}, {"taper": "hann"}, {"taper": "crop"},
    {"reduce": "sum"}, {"reduce": "max"}, {"reduce": "first"},
]  # fmt: skip


@given(problems(), st.sampled_from(HOWS), st.sampled_from(["i4", "f4", "f8"]), st.data())
def test_a_map_is_a_stitch_of_what_the_model_makes_of_all_patches(
    problem: tuple[Array, dict[int, AxisGrid]], how: dict[str, Any], dtype: str, data: st.DataObject
) -> None:
    image, grids = problem
    assume(image.size)
    numbers = np.random.default_rng(0).normal(0, 99, (*image.shape, 1))[..., 0]
    labelled = xr.DataArray(numbers.astype(dtype), dims=[f"d{n}" for n in range(image.ndim)])
    extracted = patches_of(labelled, grids).extract()
    cut = {g.dim for g in grids.values()}
    within = [dim for dim in extracted.dims if dim not in cut]
    expected = stitch(extracted - extracted.min(within), fill_value=0, **how).to_numpy()

    batch, most = data.draw(st.integers(1, 9)), data.draw(st.integers(30, 9000))
    given = {"batch_size": batch, "fill_value": 0, **how}
    whole = patches_of(labelled, grids).map(above_least, **given)
    np.testing.assert_array_equal(whole.to_numpy(), expected)
    chunks = {dim: data.draw(chunkings(n)) for dim, n in labelled.sizes.items()}
    p = patches_of(labelled.chunk(chunks), grids)
    try:
        lazy = p.map(above_least, max_bytes=most, **given)
    except PatchError as error:
        assume("max_bytes must be >=" not in str(error))
        raise
    assert same_bits(lazy.to_numpy(), whole.to_numpy())


@pytest.mark.parametrize("dtype", ["i1", "i4", "i8", "u1", "u8", "f2", "f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("taper", ["flat", "hann"])
@settings(max_examples=30)
@given(st.data())
def test_mapping_the_identity_gives_the_image_back(
    dtype: str, taper: str, data: st.DataObject
) -> None:
    image = image_of((13, 17), dtype, data.draw(st.integers(0, 9)))
    if image.dtype.kind in "fc":
        image[~np.isfinite(image)] = 3
        image = (image / np.maximum(1, abs(image))).astype(dtype)  # sums are finite
    if taper == "hann" and image.dtype.kind in "iu":
        image = image % np.array(99, image.dtype)  # in float64 these are exact
    chunks = {"y": data.draw(chunkings(13)), "x": data.draw(chunkings(17))}
    labelled = xr.DataArray(
        image, {"y": np.arange(13) * 0.5, "t": ("x", image[0].real)}, ("y", "x"), "a", {"unit": "m"}
    )
    p = labelled.chunk(chunks).patches(y=4, x=5, stride={"y": 3, "x": 2}, padding="same")
    back = p.map(identity, taper=taper, max_bytes=data.draw(st.integers(8_000, 90_000)))
    xr.testing.assert_identical(back.compute(), labelled)
    assert back.dtype == image.dtype


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=10)
@given(st.data())
def test_the_first_patch_of_any_dtype_gives_the_image_back_bit_for_bit(
    dtype: str, data: st.DataObject
) -> None:
    image = image_of((13, 17), dtype, 0)
    chunks = {"y": data.draw(chunkings(13)), "x": data.draw(chunkings(17))}
    labelled = xr.DataArray(image, dims=("y", "x"))
    p = labelled.chunk(chunks).patches(y=4, x=5, stride={"y": 3, "x": 2}, padding="same")
    back = p.map(identity, reduce="first", max_bytes=data.draw(st.integers(20_000, 90_000)))
    assert same_bits(back.to_numpy(), labelled.to_numpy())


def blurred(image: Array, size: int) -> Array:
    """Average every sample with those around it, along the last two axes."""
    for axis in (-2, -1):
        windows = np.lib.stride_tricks.sliding_window_view(image, size, axis)
        image = windows.mean(axis=-1)
    return image


@pytest.mark.parametrize("taper", ["flat", "hann", "crop"])
def test_a_filter_whose_support_fits_the_margin_leaves_no_seams(taper: str) -> None:
    y, x = np.mgrid[:200, :300]
    smooth = np.sin(y / 17) * np.cos(x / 23) + np.sin((x + y) / 40)
    image = xr.DataArray(smooth, dims=("y", "x")).chunk(y=64, x=80)
    p = image.patches(y=40, x=40, stride=8, padding=(16, 16))
    made = p.map(
        lambda batch: blurred(batch, 9), output={"sizes": {"y": 32, "x": 32}},
        taper=taper, max_bytes="1 MB",
    )  # fmt: skip
    assert made.data.npartitions > 3
    np.testing.assert_allclose(made[4:-4, 4:-4], blurred(smooth, 9), rtol=0, atol=1e-14)


def test_a_constant_stays_constant_up_to_every_border() -> None:
    constant = np.full((200, 200), np.float32(0.1))
    image = xr.DataArray(constant, dims=("y", "x")).chunk(y=50, x=70)
    p = image.patches(y=64, x=64, stride=56, padding=(20, 60))

    def model(batch: Array) -> Array:
        return np.where(batch == 0, np.float32(0.1), batch)  # padding, too

    made = p.map(model, taper="hann")
    np.testing.assert_array_max_ulp(made.to_numpy(), constant, 2)
