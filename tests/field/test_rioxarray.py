"""GeoTIFFs that rasterio wrote, read by rioxarray and rasterio's engine, and written back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import xpatches

rioxarray = pytest.importorskip("rioxarray")
rasterio = pytest.importorskip("rasterio")

STEP, LEFT, TOP = 10.0, 500_000.0, 5_000_000.0
NODATA = 255
SAMPLES = np.random.default_rng(0).integers(0, 200, (2, 48, 64)).astype("uint8")
SAMPLES[:, 20:30, 5:12] = NODATA


@pytest.fixture(scope="module")
def tiff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bands of 48 x 64 pixels, with nodata, in tiles."""
    path = tmp_path_factory.mktemp("rasters") / "scene.tif"
    profile = {
        "driver": "GTiff", "width": 64, "height": 48, "count": 2, "dtype": "uint8",
        "crs": "EPSG:32633", "nodata": NODATA, "tiled": True, "blockxsize": 16, "blockysize": 16,
        "transform": rasterio.transform.from_origin(LEFT, TOP, STEP, STEP),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(SAMPLES)
    return path


def opened(tiff: Path) -> dict[str, xr.DataArray | xr.Dataset]:
    """The image as users open it."""
    return {
        "plain": rioxarray.open_rasterio(tiff),
        "masked": rioxarray.open_rasterio(tiff, masked=True),
        "dask": rioxarray.open_rasterio(tiff, chunks={"y": 16, "x": 16}),
        "variables": rioxarray.open_rasterio(tiff, band_as_variable=True),
        "engine": xr.open_dataset(tiff, engine="rasterio"),
        "engine raw": xr.open_dataset(tiff, engine="rasterio", mask_and_scale=False, chunks={}),
    }


def array_of(result: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """The image, or the first variable that is one."""
    if isinstance(result, xr.DataArray):
        return result
    return result[next(name for name in sorted(map(str, result.data_vars)) if result[name].ndim)]


def verbs(p: Any, like: Any) -> dict[str, Any]:
    """What every verb gives, lazily and as a job."""

    def half(batch: Any) -> Any:
        return batch.astype("float32") / 2

    job: Any = {"progress": False}
    floats = {"dtype": "float32"}
    return {
        "extract": p.extract(),
        "patch": p[0],
        "inner patch": p[20],
        "reduce": p.reduce("max"),
        "map": p.map(half, output=floats),
        "grid": p.to_zarr(MemoryStore(), **job),
        "samples": p.to_zarr(MemoryStore(), layout="samples", **job),
        "map job": p.map_to_zarr(MemoryStore(), half, output=floats, **job),
        "stitch": xpatches.stitch(p.extract(), like=like, reduce="first"),
        "stitch a store": xpatches.stitch(
            p.to_zarr(MemoryStore(), layout="samples", **job), like=like, reduce="first"
        ),
    }


@pytest.mark.parametrize("source", ["plain", "masked", "dask", "variables", "engine", "engine raw"])
def test_every_verb_keeps_the_crs_and_has_its_own_transform(tiff: Path, source: str) -> None:
    image = opened(tiff)[source]
    p = image.patches(y=8, x=8, stride=4, padding="same")
    whole, inner = (STEP, 0, LEFT, 0, -STEP, TOP), (40.0, 0, LEFT, 0, -40.0, TOP)
    expected = {
        "extract": inner, "reduce": inner, "grid": inner,
        # Patch 0 begins two pixels outside, patch 20 is the fifth of the second row of 16.
        "patch": (STEP, 0, LEFT - 20, 0, -STEP, TOP + 20),
        "inner patch": (STEP, 0, LEFT + 140, 0, -STEP, TOP - 20),
    }  # fmt: skip
    for verb, result in verbs(p, image).items():
        array = array_of(result)
        assert array.rio.crs.to_epsg() == 32633, verb
        assert array.encoding["grid_mapping"] == "spatial_ref", verb
        assert "spatial_ref" in result.coords, verb
        if verb != "samples":
            for recalculated in (False, True):
                transform = array.rio.transform(recalc=recalculated)[:6]
                np.testing.assert_allclose(transform, expected.get(verb, whole), err_msg=verb)


@pytest.mark.parametrize("source", ["plain", "dask", "masked"])
def test_a_padded_patch_is_a_raster_that_knows_its_nodata(
    tiff: Path, source: str, tmp_path: Path
) -> None:
    image = opened(tiff)[source]
    patch = image.patches(y=8, x=8, padding=(2, 6))[0]
    patch.rio.to_raster(tmp_path / "patch.tif")
    with rasterio.open(tmp_path / "patch.tif") as file:
        assert file.crs.to_epsg() == 32633
        assert tuple(file.transform)[:6] == (STEP, 0, LEFT - 20, 0, -STEP, TOP + 20)
        assert file.nodata == (None if source == "masked" else NODATA)
        written = file.read()
    if source == "masked":  # floats, in which NaN says it
        assert np.isnan(written[:, :2]).all()
        return
    assert (written[:, :2] == NODATA).all()
    np.testing.assert_array_equal(written[:, 2:, 2:], SAMPLES[:, :6, :6])


def test_pixels_between_two_patches_have_one_place_in_a_reduced_raster(
    tiff: Path, tmp_path: Path
) -> None:
    image = opened(tiff)["plain"].astype("float64")
    reduced = image.patches(y=4, x=4).reduce("mean").drop_vars(["y_origin", "x_origin"])
    scaled = image.patches(y=16, x=16).map(
        lambda batch: batch.reshape(-1, 2, 4, 4, 4, 4).mean((3, 5)), output={"scale": 1 / 4}
    )
    assert reduced.x.values[0] == LEFT + 20
    xr.testing.assert_equal(reduced, scaled)
    assert (reduced - scaled).sizes == reduced.sizes
    reduced.rio.to_raster(tmp_path / "reduced.tif")
    with rasterio.open(tmp_path / "reduced.tif") as file:
        assert file.bounds == (LEFT, TOP - 480, LEFT + 640, TOP)


@pytest.mark.parametrize("stored", [False, True])
def test_classes_of_a_packed_image_come_out_as_they_are(
    tiff: Path, tmp_path: Path, stored: bool
) -> None:
    image = opened(tiff)["plain"]
    assert image.attrs["_FillValue"] == NODATA
    image.attrs |= {"_FillValue": np.uint8(0), "scale_factor": 0.1, "add_offset": -0.1}
    p, store = image.patches(y=8, x=8), tmp_path / "classes.zarr"
    how: dict[str, Any] = {
        "func": lambda batch: (batch[:, 0] > 100).astype("uint8"),
        "output": {"dims": ("y", "x"), "dtype": "uint8", "name": "bright", "nodata": 9},
    }
    classes = p.map_to_zarr(store, **how, progress=False) if stored else p.map(**how)
    expected = (SAMPLES[0] > 100).astype("uint8")
    np.testing.assert_array_equal(classes, expected)
    assert classes.rio.nodata == 9
    classes.rio.to_raster(tmp_path / "classes.tif")
    again = rioxarray.open_rasterio(tmp_path / "classes.tif", masked=True)
    np.testing.assert_array_equal(again[0], expected)
    if stored:
        decoded = xr.open_zarr(store, consolidated=False, decode_coords="all")
        np.testing.assert_array_equal(decoded.bright, expected)
        assert decoded.bright.rio.crs.to_epsg() == 32633


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_ground_control_points_of_the_image_are_not_those_of_a_patch(tmp_path: Path) -> None:
    points = [
        rasterio.control.GroundControlPoint(row, column, 10 + column / 10, 50 - row / 10)
        for row in (0, 19)
        for column in (0, 29)
    ]
    profile: Any = {"driver": "GTiff", "height": 20, "width": 30, "count": 1, "dtype": "int16"}
    with rasterio.open(tmp_path / "points.tif", "w", **profile) as file:
        file.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    p = rioxarray.open_rasterio(tmp_path / "points.tif").patches(y=8, x=8)
    for result in (p[4], p.extract(), p.reduce("max")):
        assert result.rio.get_gcps() is None
    assert len(p.map(lambda batch: batch, fill_value=0).rio.get_gcps()) == 4


def test_a_reduction_counts_no_nodata_where_it_is_decoded(tiff: Path) -> None:
    image = opened(tiff)["masked"]
    means = image.patches(y=8, x=8, padding=(4, 4)).reduce("mean")
    inside = np.where(SAMPLES == NODATA, np.nan, SAMPLES)
    padded = np.pad(inside, ((0, 0), (4, 4), (4, 4)), constant_values=np.nan)
    blocks = padded.reshape(2, 7, 8, 9, 8)
    np.testing.assert_allclose(means, np.nanmean(blocks, axis=(2, 4)), rtol=1e-6)
