from typing import Any

import numpy as np
import pytest
import xarray as xr

import xpatches
from overlaps import labelled, patches_of
from reference import Array
from xpatches.errors import PatchError
from xpatches.stitching.labelled import stitch


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


def test_two_labels_determine_nothing() -> None:
    image = xr.DataArray(np.arange(8.0), {"x": np.arange(8.0) ** 2}, "x")
    assert "x" not in stitch(image.patches(x=4).extract()).coords
