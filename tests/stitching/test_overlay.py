"""The sum against TensorFlow's gradients and torch's fold, and back from every chunking."""

import json
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from overlaps import HOWS, extracted
from reference import Array, same_bits
from strategies import chunkings, image_of, problems
from xpatches.geometry.coverage import AxisCover
from xpatches.geometry.grid import AxisGrid
from xpatches.stitching.labelled import stitch
from xpatches.stitching.tapers import TAPERS

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


def test_what_one_block_holds_changes_no_other() -> None:
    large = float(np.finfo("f8").max)
    patches = extracted(np.zeros(40, "c16"), {0: AxisGrid("d0", 40, 3, 1)})
    patches[2], patches[3], patches[30, 1] = large, -large, np.inf
    whole = stitch(patches, taper="triangular")
    assert np.isfinite(whole[:30]).all()
    chunked = stitch(patches.chunk(d0=1), taper="triangular", max_bytes=1200)
    assert chunked.data.npartitions > 9
    assert same_bits(chunked.to_numpy(), whole.to_numpy())


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
