"""Numbers, labels and pairs depend on what the user wrote, not on how a Dataset lists its parts."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

import xpatches
from xpatches.geometry.grid import grid_of

SAMPLES = np.random.default_rng(0).integers(1, 10_000, (20, 29))
Y, X = np.arange(20.0)[::-1] * 3, np.arange(29.0) * 10


def scenes(names: Any = ("image", "mask")) -> Iterator[xr.Dataset]:
    """An image and its mask in the other order of dims, with everything listed in every order."""
    for order, coords in itertools.product(itertools.permutations(names), ("yx", "xy")):
        variables = {"image": (("y", "x"), SAMPLES), "mask": (("x", "y"), 2 * SAMPLES.T)}
        labels = {"y": Y, "x": X}
        yield xr.Dataset(
            {name: variables[name] for name in order}, {dim: labels[dim] for dim in coords}
        )


def check(patch: xr.DataArray, factor: int, dims: tuple[str, str] = ("y_patch", "x_patch")) -> None:
    """Compare one patch with the image, at the place that its coords say."""
    y, x = int(patch.y_origin), int(patch.x_origin)
    expected = factor * SAMPLES[y : y + 5, x : x + 7]
    np.testing.assert_array_equal(patch.transpose(*dims).values, expected)
    assert float(patch.y) == Y[y + 2]
    assert float(patch.x) == X[x + 3]


SIZES = [{"y": 5, "x": 7}, {"x": 7, "y": 5}]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("chunks", [None, {"y": 6, "x": 9}])
@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_every_patch_lies_where_its_labels_say(layout: str, chunks: Any, sizes: Any) -> None:
    for scene in scenes():
        ds = scene if chunks is None else scene.chunk(chunks)
        p = ds.patches(sizes, stride=4)
        assert p.grid.dims == tuple(sizes)
        written = p.to_zarr(MemoryStore(), layout=layout, progress=False).compute()
        if layout == "grid":
            xr.testing.assert_identical(p.extract().compute(), written)
            written = written.stack(sample=tuple(sizes)).reset_index("sample")
        assert written.sizes["sample"] == len(p) == 4 * 6
        for number in range(len(p)):
            at = written.isel(sample=number)
            check(at.image, 1)
            check(at.mask, 2)
            patch = p[number]
            assert patch.y_index.values[0] == at.y_origin
            assert patch.x_index.values[0] == at.x_origin
            for name in ("image", "mask"):
                stored = at[name].transpose("y_patch", "x_patch").values
                np.testing.assert_array_equal(patch[name].transpose("y", "x"), stored)
        for patch, number in zip(p, range(len(p)), strict=True):
            xr.testing.assert_identical(patch, p[number])


@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_stitching_puts_variables_of_other_orders_back(layout: str) -> None:
    for scene, sizes in itertools.product(scenes(), SIZES):
        p = scene.patches(sizes, stride=3, padding="same")
        for lazily in (False, True):
            stored = p.to_zarr(MemoryStore(), layout=layout, progress=False)
            patches = stored if lazily else stored.compute()
            for reduce in ("first", "max"):
                stitched = xpatches.stitch(patches, like=scene, reduce=reduce).compute()
                xr.testing.assert_equal(stitched, scene)
                assert stitched.mask.dims == ("x", "y")


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("chunks", [None, {"y": 6, "x": 9}])
@pytest.mark.parametrize("stored", [False, True])
def test_models_get_patches_of_every_variable_under_their_labels(
    stored: bool, chunks: Any, sizes: Any
) -> None:
    def halved(batch: xr.DataArray) -> Any:
        for number in range(batch.sizes["sample"]):
            check(batch.isel(sample=number), 1 if batch.name == "image" else 2)
        return batch.values / 2

    for scene in scenes():
        ds = scene if chunks is None else scene.chunk(chunks)
        p, stores = ds.patches(sizes, stride=4), {}
        if stored:
            stores = {"store": MemoryStore(), "materialize": MemoryStore(), "progress": False}
        how: dict[str, Any] = {"labelled": True, "batch_size": 5, "output": {"dtype": "float64"}}
        mapped = (p.map_to_zarr if stored else p.map)(func=halved, **how, **stores)
        inside = {"y": slice(17), "x": slice(27)}
        for name in ("image", "mask"):
            np.testing.assert_allclose(mapped[name].isel(inside), ds[name].isel(inside) / 2)
            np.testing.assert_array_equal(mapped[name].x, X)


def test_materialized_samples_of_all_variables_are_numbered_alike() -> None:
    for scene, sizes in itertools.product(scenes(), SIZES):
        kept = MemoryStore()
        p = scene.patches(sizes)
        p.map_to_zarr(
            None,
            lambda batch: batch,
            reduce="first",
            fill_value=0,
            materialize=kept,
            progress=False,
        )
        runs = xpatches.open_patches(kept).compute()
        mask = runs.mask.transpose("sample", "y_patch", "x_patch")
        np.testing.assert_array_equal(mask, 2 * runs.image)
        np.testing.assert_array_equal(runs.image[1], p[1].image)


@pytest.mark.parametrize("verb", ["max", "argmax", "mean", np.sum])
def test_reductions_of_variables_in_other_orders_are_those_of_each_alone(verb: Any) -> None:
    for scene, sizes in itertools.product(scenes(), SIZES):
        reduced = scene.patches(sizes, stride=4).reduce(verb)
        for name in ("image", "mask"):
            xr.testing.assert_equal(
                reduced[name], scene[name].patches(sizes, stride=4).reduce(verb)
            )


def test_a_reordered_store_numbers_patches_as_before() -> None:
    firsts = set()
    for scene in scenes():
        store = MemoryStore()
        scene.to_zarr(store, consolidated=False)
        opened = xr.open_zarr(store, consolidated=False)
        for order in itertools.permutations(opened.variables):
            listed = xr.Dataset({name: opened[name] for name in order})
            patch = listed.patches(y=5, x=7)[1]
            firsts.add((int(patch.y_index[0]), int(patch.x_index[0])))
    assert firsts == {(0, 7)}


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ([("y", "x")], "yx"),
        ([("x", "b", "y"), ("x", "y")], "xy"),
        ([("y", "x"), ("x", "y")], "xy"),  # they do not agree: as named
        ([("y",), ("x",)], "xy"),  # they do not say
        ([("y", "b"), ("b", "x")], "xy"),
    ],
)
def test_numbers_follow_the_order_on_which_arrays_agree(arrays: Any, expected: str) -> None:
    grid = grid_of({"b": 2, "y": 9, "x": 9}, arrays, {"x": 3, "y": 3}, 1, 1, "valid")
    assert "".join(map(str, grid.dims)) == expected


@given(st.data())
def test_numbers_depend_on_no_order_but_that_of_dims_and_sizes(data: st.DataObject) -> None:
    named = data.draw(st.permutations(["a", "b", "c"]))
    shape = {"a": 4, "b": 5, "c": 6, "d": 2}
    dims = st.lists(st.sampled_from([*shape]), min_size=1, max_size=4, unique=True)
    arrays = data.draw(st.lists(dims, min_size=1, max_size=3))
    variables = {
        f"v{number}": (names, np.zeros([shape[dim] for dim in names]))
        for number, names in enumerate([*arrays, ["a"], ["b"], ["c"]])
    }
    sizes = dict.fromkeys(named, 2)
    expected = xr.Dataset(variables).patches(sizes).grid
    order = data.draw(st.permutations([*variables]))
    coords = {dim: np.arange(shape[dim]) for dim in data.draw(st.permutations([*shape]))}
    listed = xr.Dataset({name: variables[name] for name in order}, coords)
    assert listed.patches(sizes).grid == expected
    for first, second in itertools.combinations(expected.dims, 2):
        both = [names for names in arrays if first in names and second in names]
        agreed = bool(both) and all(names.index(second) < names.index(first) for names in both)
        assert not agreed or expected.dims == tuple(named)
