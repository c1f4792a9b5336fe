"""What a model is told of patches, what it may return, and how it fails."""

import pickle
import weakref
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

from models import CUT, IMAGE, FailsOn
from reference import Array
from xpatches import MapError
from xpatches.mapping.model import Function


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


def test_a_factory_makes_one_model_for_all_variables() -> None:
    Slow.made = 0
    dataset = xr.Dataset({"a": IMAGE, "b": 2 * IMAGE, "c": IMAGE.isel(x=0, drop=True)})
    xr.testing.assert_allclose(dataset.patches(**CUT).map(Slow, factory=True), dataset)
    assert Slow.made == 1


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


def test_a_labelled_batch_may_be_cut_on_both_sides() -> None:
    def model(batch: xr.DataArray) -> xr.DataArray:
        return batch.isel(y_patch=slice(2, -2), x_patch=slice(3, -3))

    made = IMAGE.patches(**CUT).map(
        model, output={"sizes": {"y": 12, "x": 10}}, labelled=True, taper="flat", fill_value=0
    )
    xr.testing.assert_allclose(made, IMAGE)


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
