"""A model on every patch: as if all patches were extracted, run and stitched, without that."""

import pickle
import threading
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models import CUT, IMAGE, FailsOn, above_least, identity, opened
from reference import Array, same_bits
from stores import CountingStore
from strategies import DTYPES, axis_grids, chunkings, image_of, problems
from xpatches import MapError, PatchError, stitch
from xpatches.geometry.coverage import cover_of
from xpatches.geometry.grid import AxisGrid
from xpatches.mapping.model import Function
from xpatches.mapping.plan import MapCosts, block_lengths


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


@given(axis_grids(60), st.integers(1, 40), st.integers(1, 9), st.integers(1, 4000))
def test_blocks_cost_what_is_projected_at_most(
    grid: AxisGrid, unit: int, batch: int, most: int
) -> None:
    cover = cover_of(grid, Fraction(1), None)
    costs = MapCosts([grid], [cover], region=2, made=3, result=5)
    (length,) = block_lengths(costs, [unit], most)
    assert length % unit == 0
    assert length >= min(cover.stride, cover.length)
    assert length < cover.stride + unit or costs.nbytes([length]) <= most
    for start in range(0, cover.length, length):
        stop = min(start + length, cover.length)
        over = cover.over(start, stop)
        first, last, _ = grid.region(over.start, len(over))
        band = cover.stride * batch
        rows = max(
            len(cover.over(at, min(at + band, stop))) for at in range(start, max(stop, 1), band)
        )
        held = 2 * (last - first) + 3 * cover.size * rows + 5 * (stop - start)
        assert held + batch * 9 <= costs.nbytes_with([length], batch, given=9)
        assert costs.nbytes([length]) <= costs.nbytes_with([length], batch, given=0)


class Counting:
    """The identity, and how often it was given which patch."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[int, int]] = Counter()
        self.batches: list[int] = []
        self._lock = threading.Lock()

    def __call__(self, batch: xr.DataArray) -> xr.DataArray:
        with self._lock:
            self.batches.append(batch.sizes["sample"])
            for origin in zip(batch.y_origin.values, batch.x_origin.values, strict=True):
                self.runs[(int(origin[0]), int(origin[1]))] += 1
        return batch


def test_an_image_in_memory_runs_every_patch_once_in_full_batches() -> None:
    p, count = IMAGE.patches(**CUT), Counting()
    p.map(count, labelled=True, batch_size=5)
    origins = product(p.grid["y"].origins, p.grid["x"].origins)
    assert count.runs == dict.fromkeys(origins, 1)
    assert max(count.batches) == 5
    assert len(count.batches) <= 1.25 * len(p) / 5
    assert p.plan()["map"]["runs_per_patch"] == 1.0


@pytest.mark.parametrize("chunked", [False, True])
def test_the_plan_says_how_often_patches_are_run(tmp_path: Path, chunked: bool) -> None:
    image = opened(IMAGE.chunk(y=32, x=32), tmp_path / "a")
    p = (IMAGE.chunk(y=32, x=32) if chunked else image).patches(**CUT)
    count = Counting()
    made = p.map(count, labelled=True, max_bytes=60_000)
    plan = p.plan(max_bytes=60_000)["map"]
    assert plan["chunks"] == dict(zip("yx", map(list, made.chunks), strict=True))
    assert plan["blocks"] == made.data.npartitions > 1
    made.compute()
    assert sum(count.runs.values()) == plan["runs"]
    assert plan["runs_per_patch"] == plan["runs"] / len(p)
    assert plan["runs_per_patch"] > 1
    assert plan["bytes_per_task"] <= 60_000 + 6 * 32 * 16 * 16 * 8


def test_blocks_grow_until_few_patches_are_run_again() -> None:
    image = xr.DataArray(dask.array.zeros((16384, 16384), chunks=1024), dims=("y", "x"))
    plan = image.patches(y=256, x=256, stride=128).plan(output={"dtype": "float32"})["map"]
    assert plan["runs_per_patch"] < 1.25
    assert plan["blocks"] < 100


def test_building_a_map_reads_and_runs_nothing(
    tmp_path: Path, counting_store: type[CountingStore], no_compute: None
) -> None:
    IMAGE.chunk(y=32, x=32).to_dataset().to_zarr(tmp_path, consolidated=False, compute=False)
    image = xr.open_zarr(counting_store(tmp_path), chunks=None, consolidated=False).image
    counting_store.reads.clear()

    def refuse(batch: Any) -> Any:
        raise AssertionError("ran a model")

    made = image.patches(**CUT).map(refuse)
    assert made.shape == IMAGE.shape
    assert not counting_store.chunk_reads("image")


def test_a_task_holds_what_the_plan_says(tmp_path: Path) -> None:
    image = opened(
        xr.DataArray(np.ones((1024, 1024, 3), "u1"), dims=("y", "x", "band")), tmp_path / "a"
    )
    output = {"dims": ("class", "y", "x"), "sizes": {"class": 4}, "dtype": "float32"}

    def model(batch: Array) -> Array:
        return np.broadcast_to(batch[:, None, :, :, 0], (len(batch), 4, 64, 64))

    p = image.patches(y=64, x=64, stride=32)
    most = 1 << 23
    made = p.map(model, output=output, batch_size=8, max_bytes=most, fill_value=0)
    plan = p.plan(output=output, batch_size=8, max_bytes=most)["map"]
    block = made.data.blocks[0, 0, 0]
    block.compute()  # what is loaded once
    tracemalloc.start()
    block.compute()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.data.npartitions > 1
    # The stitching takes a few rows of its own, and zarr a chunk that it decodes.
    assert peak <= plan["bytes_per_task"] + (1 << 22)
    assert peak > plan["bytes_per_task"] / 2


OUTPUTS: dict[str, tuple[dict[str, Any], Callable[[Array], Array], Callable[[Any], Any]]] = {
    "new dim": (
        {"dims": ("of", "y", "x"), "sizes": {"of": 2}},
        lambda batch: np.stack([batch, batch + 1], axis=1),
        lambda image: xr.concat([image, image + 1], "of"),
    ),
    "order of dims": (
        {"dims": ("x", "y")},
        lambda batch: batch.transpose(0, 2, 1),
        lambda image: image.transpose("x", "y"),
    ),
    "dtype": (
        {"dtype": "int16"},
        lambda batch: (batch * 100).astype("i2"),
        lambda image: (image * 100).astype("i2"),
    ),
    "same kind": (
        {"dtype": "float32"},
        lambda batch: batch,
        lambda image: image.astype("f4"),
    ),
    "cropped": (
        {"sizes": {"y": 12, "x": 10}},
        lambda batch: batch[:, 2:-2, 3:-3],
        lambda image: image,
    ),
    "finer": (
        {"scale": {"y": 2, "x": 3}},
        lambda batch: batch.repeat(2, axis=1).repeat(3, axis=2),
        lambda image: image.data.repeat(2, axis=0).repeat(3, axis=1),
    ),
    "coarser": (
        {"scale": 1 / 4},
        lambda batch: batch.reshape(-1, 4, 4, 4, 4).mean(axis=(2, 4)),
        lambda image: image.coarsen(y=4, x=4).mean(),
    ),
    "coarser and cropped": (
        {"scale": Fraction(1, 2), "sizes": {"y": 4, "x": 6}},
        lambda batch: batch.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4))[:, 2:-2, 1:-1],
        lambda image: image.coarsen(y=2, x=2).mean(),
    ),
}


@pytest.mark.parametrize("what", OUTPUTS)
@pytest.mark.parametrize("lazy", [False, True])
def test_what_a_model_returns_is_laid_where_it_belongs(what: str, lazy: bool) -> None:
    output, func, expected_of = OUTPUTS[what]
    image = IMAGE.chunk(y=40, x=56) if lazy else IMAGE
    p = image.patches(y=16, x=16, stride=8, padding=(8, 8))
    made = p.map(func, output=output, taper="flat", max_bytes=150_000).compute()
    expected = expected_of(IMAGE)
    np.testing.assert_array_max_ulp(made.to_numpy(), np.asarray(expected), 2)
    dims = output.get("dims", ("y", "x"))
    assert made.dims == dims
    assert made.dtype == output.get("dtype", "f8")
    if isinstance(expected, xr.DataArray):
        for dim in "yx":
            np.testing.assert_allclose(made[dim], expected[dim])
    else:  # the middle of the samples that one was made into is its label
        np.testing.assert_allclose(made.y.values.reshape(-1, 2).mean(1), IMAGE.y)
        np.testing.assert_allclose(made.x.values[1::3], IMAGE.x)


def test_dims_of_the_image_may_be_dropped_and_others_pass() -> None:
    image = IMAGE.expand_dims(band=["r", "g", "b"], axis=2).assign_coords(
        lat=(("y", "x"), np.ones(IMAGE.shape)), time=3, wave=("band", [1, 2, 3])
    )
    made = image.patches(**CUT).map(lambda batch: batch.mean(axis=3), output={"dims": ("y", "x")})
    assert set(made.coords) == {"y", "x", "lat", "time"}
    np.testing.assert_allclose(made, IMAGE)


def test_times_are_interpolated_and_what_is_no_number_is_left_out() -> None:
    image = xr.DataArray(
        np.arange(8.0),
        {
            "t": np.datetime64("2020-01-01", "s") + np.arange(8) * np.timedelta64(4, "h"),
            "name": ("t", list("abcdefgh")),
        },
        ["t"],
    )
    output = {"scale": 1 / 2}
    made = image.patches(t=4).map(lambda batch: batch[:, ::2], output=output)
    assert set(made.coords) == {"t"}
    expected = np.datetime64("2020-01-01T02", "s") + np.arange(4) * np.timedelta64(8, "h")
    assert (made.t.values == expected).all()


def test_a_labelled_batch_is_what_extract_would_give() -> None:
    image = IMAGE.assign_coords(
        lat=(("y", "x"), np.arange(96.0 * 128).reshape(96, 128)), time=3
    ).assign_attrs(unit="m")
    seen: list[xr.DataArray] = []

    def model(batch: xr.DataArray) -> xr.DataArray:
        seen.append(batch)
        return batch.transpose("x_patch", "sample", "y_patch")  # by name, in any order

    p = image.patches(**CUT)
    made = p.map(model, labelled=True, batch_size=7)
    xr.testing.assert_allclose(made, image)
    joined = xr.concat(seen, "sample", coords="minimal", compat="override", join="outer")
    stacked = p.extract().stack(sample=("y", "x"), create_index=False).transpose("sample", ...)
    stacked = stacked.sortby(["y_origin", "x_origin"])
    joined = joined.sortby(["y_origin", "x_origin"])
    assert set(joined.coords) == set(stacked.coords)
    assert joined.name == "image"
    assert joined.attrs == {"unit": "m"}
    assert joined.dims == stacked.dims == ("sample", "y_patch", "x_patch")
    np.testing.assert_array_equal(joined, stacked)
    for name, coord in stacked.coords.items():
        np.testing.assert_array_equal(joined[name], coord)


def test_lazy_coords_of_a_labelled_batch_are_computed(tmp_path: Path) -> None:
    lat = xr.DataArray(dask.array.ones((96, 128), chunks=50), dims=("y", "x"))
    image = IMAGE.chunk(y=40).assign_coords(lat=lat)

    def model(batch: xr.DataArray) -> xr.DataArray:
        assert batch.lat.dims == ("sample",)
        assert batch.lat.chunks is None
        scaled: xr.DataArray = batch * batch.lat
        return scaled

    made = image.patches(y=16, x=16, stride=8).map(model, labelled=True)
    np.testing.assert_allclose(made[:, :-8], IMAGE[:, :-8])


class Slow:
    """A model that counts how often it is made and copied."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    def __call__(self, batch: Array) -> Array:
        return batch


def test_a_factory_is_called_once() -> None:
    Slow.made = 0
    image = IMAGE.chunk(y=32, x=32)
    made = image.patches(**CUT).map(Slow, factory=True, max_bytes=60_000)
    assert Slow.made == 0
    with dask.config.set(scheduler="threads", num_workers=4):
        np.testing.assert_allclose(made, IMAGE)
    assert made.data.npartitions > 4
    assert Slow.made == 1


def test_what_is_sent_to_a_process_that_has_it_is_what_is_there() -> None:
    function = Function(Slow, factory=True)
    assert pickle.loads(pickle.dumps(function)) is function
    sent = pickle.dumps(function)
    del function
    first = pickle.loads(sent)
    model = weakref.ref(first.get())
    assert pickle.loads(sent) is first
    del first  # between two tasks nobody has it
    assert pickle.loads(sent).get() is model()
    pickle.loads(pickle.dumps(Function(Slow, factory=True)))
    assert model() is None


def fails() -> Any:
    raise OSError("no weights")


def test_a_factory_that_fails_is_named() -> None:
    p = IMAGE.patches(**CUT)
    with pytest.raises(MapError, match="func, a factory, failed: OSError: no weights"):
        p.map(fails, factory=True)
    with pytest.raises(MapError, match="func, a factory, must give a function, got 3"):
        p.map(lambda: 3, factory=True)


@pytest.mark.parametrize("chunks", [None, {"y": 32}])
def test_keys_are_deterministic_and_tell_maps_apart(tmp_path: Path, chunks: Any) -> None:
    stored = opened(IMAGE.chunk(y=32, x=32), tmp_path / "a")
    image = IMAGE.chunk(chunks) if chunks else stored
    with dask.config.set({"tokenize.ensure-deterministic": bool(chunks)}):
        made = [image.patches(**CUT).map(above_least).data.name for _ in range(2)]
        assert made[0] == made[1]
        others = [
            image.patches(**CUT).map(identity),
            image.patches(**CUT).map(above_least, taper="flat"),
            image.patches(**CUT).map(above_least, labelled=True),
            image.patches(**CUT).map(above_least, batch_size=3),
            image.patches(**CUT).map(above_least, skipna=False),
        ]
    assert len({made[0], *(of.data.name for of in others)}) == 6


def fails_at_seven(batch: Array) -> Array:
    if (batch == 7).any():
        raise ValueError("seven")
    return batch


@pytest.mark.parametrize("chunks", [None, {"y": 10}])
def test_an_error_names_the_patch_by_its_origin_and_its_labels(chunks: Any) -> None:
    image = xr.DataArray(np.zeros((40, 60)), {"y": np.arange(40) * 0.5, "x": np.arange(60)})
    image[21, 34] = 7
    p = (image.chunk(chunks) if chunks else image).patches(y=10, x=10, padding="same")
    message = (
        r"func failed on the patch with origin y=20, x=30 \(center y=12.25, x=34.5\): "
        "ValueError: seven"
    )
    with pytest.raises(MapError, match=message) as caught:
        p.map(fails_at_seven).compute()
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_of_a_batch_says_so_and_needs_no_labels() -> None:
    def refuse(batch: Array) -> Array:
        if len(batch) > 1:
            raise MemoryError("too much")
        return batch

    message = r"on a batch of 6 patches, the first with origin y=0, x=0: MemoryError: too much"
    with pytest.raises(MapError, match=message):
        xr.DataArray(np.zeros((4, 6)), dims=("y", "x")).patches(y=2, x=2).map(refuse)


@pytest.mark.parametrize(
    ("func", "message"),
    [
        (
            lambda batch: batch[..., :1],
            r"must return the shape \(6, 2, 2\) for 6 .*, got \(6, 2, 1\)",
        ),
        (lambda batch: batch[:3], r"got \(3, 2, 2\)"),
        (lambda batch: batch * 0.5, r"must return int64, got float64; declare output={'dtype'"),
        (lambda batch: xr.DataArray(batch), r"must return the dims \('sample', 'y_patch', "),
    ],
)
def test_what_is_not_as_declared_is_refused(func: Any, message: str) -> None:
    image = xr.DataArray(np.zeros((4, 6), int), dims=("y", "x"))
    with pytest.raises(MapError, match=message):
        image.patches(y=2, x=2).map(func)


def test_a_dataset_is_mapped_variable_by_variable() -> None:
    dataset = xr.Dataset({"a": IMAGE, "b": IMAGE.isel(x=0, drop=True), "c": ("z", [1, 2])})
    made = dataset.chunk(y=32).patches(y=16, x=16, stride=8, padding="same").map(lambda b: 2 * b)
    expected = xr.Dataset({"a": 2 * IMAGE, "b": 2 * IMAGE.isel(x=0, drop=True), "c": dataset.c})
    xr.testing.assert_allclose(made.compute(), expected)


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


def test_labels_are_interpolated_in_floats_and_times_in_nanoseconds() -> None:
    seconds = np.datetime64("2020-01-01", "s") + np.arange(4).astype("m8[s]")
    image = xr.DataArray(
        np.zeros((4, 4)), {"y": np.array([30, 20, 10, 0], "u1"), "t": seconds}, ("y", "t")
    )
    made = image.patches(y=2, t=2).map(
        lambda batch: batch.repeat(2, 1).repeat(2, 2), output={"scale": 2}
    )
    assert made.y.values.tolist() == [32.5, 27.5, 22.5, 17.5, 12.5, 7.5, 2.5, -2.5]
    assert (np.diff(made.t.values) == np.timedelta64(500, "ms")).all()


def test_a_map_with_a_scale_leaves_the_image_as_it_is() -> None:
    crs = xr.Variable((), 0, {"GeoTransform": "0 1 0 0 0 1"})
    image = xr.DataArray(np.zeros((8, 8)), {"spatial_ref": crs}, ("y", "x"))
    p = image.patches(y=4, x=4)
    scaled = p.map(lambda batch: batch.repeat(2, 1).repeat(2, 2), output={"scale": 2})
    assert scaled.spatial_ref.attrs == {"GeoTransform": "0.0 0.5 0.0 0.0 0.0 0.5"}
    assert p.map(identity).spatial_ref.attrs == image.spatial_ref.attrs == crs.attrs


def test_a_factory_makes_one_model_for_all_variables() -> None:
    Slow.made = 0
    dataset = xr.Dataset({"a": IMAGE, "b": 2 * IMAGE, "c": IMAGE.isel(x=0, drop=True)})
    xr.testing.assert_allclose(dataset.patches(**CUT).map(Slow, factory=True), dataset)
    assert Slow.made == 1


@pytest.mark.parametrize(
    ("dataset", "given", "message"),
    [
        ({"a": IMAGE, "b": IMAGE[:, 0]}, {"materialize": "m"}, "needs variables with all of the"),
        ({"a": IMAGE.expand_dims(sample=2)}, {"materialize": "m"}, "already has a dim.* 'sample'"),
        ({"a": IMAGE.expand_dims(sample=2)}, {"labelled": True}, "already has a dim.* 'sample'"),
        (
            {"a": IMAGE, "b": ("class", [1, 2, 3])},
            {"output": {"dims": ("class", "y", "x"), "sizes": {"class": 2}}},
            "all variables must have the same length along 'class', got 2 and 3",
        ),
        (
            {"a": IMAGE.assign_coords(time=3)},
            {"output": {"dims": ("time", "y", "x"), "sizes": {"time": 2}}},
            "output dims names 'time', which is taken",
        ),
        ({"a": IMAGE}, {"output": {"scale": {"Y": 2}}}, "output scale names 'Y'"),
        ({"a": IMAGE}, {"output": {"dims": 5}}, "output dims must be several dims"),
        ({"a": IMAGE}, {"output": {"sizes": 5}}, "output sizes must be a mapping"),
        ({"a": IMAGE}, {"output": {"scale": 10**30}}, "output scale on 'y' must be an integer or"),
        ({"a": IMAGE}, {"chunks": {"y": 3}}, "chunks, shards and encoding are for store"),
        ({"a": IMAGE[:0].pad(y=(9, 9)).expand_dims(b=0)}, {"store": "s"}, "must have samples"),
    ],
)
def test_bad_input_is_refused_before_anything_is_run(
    tmp_path: Path, dataset: Any, given: dict[str, Any], message: str
) -> None:
    how = {**given, **{k: tmp_path / v for k, v in given.items() if k in ("materialize", "store")}}
    ran: list[Array] = []

    def model(batch: Array) -> Array:
        ran.append(batch)
        return batch

    with pytest.raises(PatchError, match=message):
        xr.Dataset(dataset).patches(y=8, x=8, padding="same").map(model, **how, progress=False)
    assert not ran
    assert not any(tmp_path.iterdir())


def test_dims_of_no_length_are_mapped() -> None:
    image = xr.DataArray(np.zeros((0, 8, 8)), dims=("b", "y", "x"))
    assert image.patches(y=4, x=4).map(identity).shape == (0, 8, 8)


@pytest.mark.parametrize(
    ("image", "func", "given", "message"),
    [
        (IMAGE, lambda b: b.isel(y_patch=slice(4), x_patch=slice(4)), {"sizes": {"y": 4, "x": 4}},
         "must return 'y_patch' as"),
        (IMAGE, lambda b: b.sortby("x_origin"), {}, "must return 'y_origin' as"),
        (IMAGE, lambda b: np.ma.masked_array(b), {}, "got a masked one; fill it in func"),
        (IMAGE, lambda b: [[1], [2, 3]], {}, "must return an array, got list"),
        (IMAGE.astype("i8") + 70000, lambda b: b, {"dtype": "i2"}, "values that int16 can hold"),
    ],
)  # fmt: skip
def test_what_would_be_changed_or_misplaced_in_silence_is_refused(
    image: Any, func: Any, given: Any, message: str
) -> None:
    labelled = "must return '" in message
    with pytest.raises(MapError, match=message):
        image.patches(**CUT).map(func, output=given, labelled=labelled, fill_value=0, taper="hann")


def test_labels_that_overlap_are_not_averaged_unasked() -> None:
    image = IMAGE.rename("classes")
    labels = {"dtype": "int64"}

    def classes(batch: Array) -> Array:
        return np.where(batch > 0, 400, 10)

    p = image.patches(**CUT)
    message = "reduce must be given for int64 of 'classes', for patches overlap, and labels are not"
    with pytest.raises(PatchError, match=message):
        p.map(classes, output=labels)
    with pytest.raises(PatchError, match="reduce must be given for bool"):
        p.map(lambda batch: batch > 0, output={"dtype": bool})
    expected = np.where(image > 0, 400, 10)
    for how in ({"reduce": "vote"}, {"reduce": "first"}, {"taper": "crop"}, {"reduce": "mean"}):
        asked: dict[str, Any] = how
        np.testing.assert_array_equal(p.map(classes, output=labels, **asked), expected)
    halves = p.map(lambda batch: np.indices(batch.shape)[2] // 8, output=labels, taper="flat")
    assert set(np.unique(halves)) <= {0, 1}  # of 0 and 1, rounded half to even
    # Where no sample is in two patches there is nothing to ask.
    apart = image.patches(y=16, x=16)
    np.testing.assert_array_equal(apart.map(classes, output=labels), expected)
    cropped = image.patches(y=16, x=16, stride=8, padding=(4, 4)).map(
        lambda batch: classes(batch[:, 4:-4, 4:-4]), output={**labels, "sizes": {"y": 8, "x": 8}}
    )
    np.testing.assert_array_equal(cropped, expected)
    assert apart.map(lambda batch: batch > 0, output={"dtype": bool}).dtype == bool
    assert p.map(identity).dtype == image.dtype  # floats are averaged


def test_means_are_tapered_by_hann_unless_another_is_given() -> None:
    p = IMAGE.patches(**CUT)
    made = p.map(above_least)
    for asked in ({"reduce": "mean"}, {"taper": "hann"}, {"reduce": "mean", "taper": "hann"}):
        how: dict[str, Any] = asked
        assert same_bits(p.map(above_least, **how).values, made.values)
    assert not same_bits(p.map(above_least, taper="flat").values, made.values)
    with pytest.raises(PatchError, match="taper is for reduce='mean', got reduce='max'"):
        p.map(above_least, reduce="max", taper="hann")


def test_a_labelled_batch_may_be_cut_on_both_sides() -> None:
    def model(batch: xr.DataArray) -> xr.DataArray:
        return batch.isel(y_patch=slice(2, -2), x_patch=slice(3, -3))

    made = IMAGE.patches(**CUT).map(
        model, output={"sizes": {"y": 12, "x": 10}}, labelled=True, taper="flat", fill_value=0
    )
    xr.testing.assert_allclose(made, IMAGE)


def test_sources_with_a_lock_are_read_one_at_a_time() -> None:
    lock, image = threading.Lock(), np.ones((64, 64))
    array = dask.array.from_array(image, chunks=8, lock=lock)
    made = xr.DataArray(array, dims=("y", "x")).patches(y=16, x=16).map(identity)
    with lock, dask.config.set(scheduler="threads"):
        done = threading.Thread(target=made.compute, daemon=True)
        done.start()
        done.join(0.3)
        assert done.is_alive()
    done.join(30)
    assert not done.is_alive()


@pytest.mark.parametrize("bad", [0, 1, 20, 31])
def test_the_patch_that_fails_is_found_by_halving_its_batch(bad: int) -> None:
    image = xr.DataArray(np.repeat(np.arange(64.0), 4), dims="x", name="image")
    func, p = FailsOn(bad), image.patches(x=4)
    with pytest.raises(MapError, match=rf"on the patch with origin x={4 * bad}: ValueError: bad"):
        p.map(func, taper="flat")
    assert len(func.batches) <= 1 + 6
    assert sum(map(len, func.batches)) <= 2 * 32


def test_of_several_patches_that_fail_the_first_is_named() -> None:
    image = xr.DataArray(np.repeat(np.arange(64.0), 4), dims="x", name="image")
    func = FailsOn(*range(5, 64))
    with pytest.raises(MapError, match=r"on the patch with origin x=20: ValueError: bad 5"):
        image.patches(x=4).map(func, taper="flat")
    assert len(func.batches) <= 1 + 6
