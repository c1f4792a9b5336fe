"""The command on files that other libraries wrote, as people have them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

import xpatches
from xpatches.cli.main import main


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def opened(store: Path) -> xr.DataArray:
    array = xpatches.open_patches(store)
    assert isinstance(array, xr.DataArray)
    return array


SAMPLES = np.random.default_rng(0).integers(0, 255, (3, 40, 60), dtype="u1")
SIZE = ("--size", "y=16,x=20", "--stride", "y=8,x=20", "--quiet")


def tiles(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cut what SIZE says, by slicing."""
    rows = range(0, samples.shape[-2] - 15, 8)
    columns = range(0, samples.shape[-1] - 19, 20)
    return np.stack(
        [np.stack([samples[:, y : y + 16, x : x + 20] for x in columns], 1) for y in rows], 1
    )


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A GeoTIFF of uint8 with nodata, as GDAL writes it."""
    rasterio = pytest.importorskip("rasterio")
    pytest.importorskip("rioxarray")
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=60, height=40, count=3, dtype="uint8", nodata=255,
        crs="EPSG:32633", transform=rasterio.transform.from_origin(5e5, 5.3e6, 10, 10),
        tiled=True, blockxsize=16, blockysize=16,
    ) as file:  # fmt: skip
        file.write(SAMPLES)
    return path


@pytest.mark.parametrize("workers", [(), ("--workers", 1)])
def test_a_geotiff_keeps_its_integers(scene: Path, tmp_path: Path, workers: Any) -> None:
    result = run("extract", scene, tmp_path / "out", *SIZE, *workers)
    assert result.exit_code == 0, result.output
    patches = opened(tmp_path / "out")
    assert patches.dtype == "uint8"
    np.testing.assert_array_equal(patches, tiles(SAMPLES))
    np.testing.assert_allclose(patches.y_origin, [0, 8, 16, 24])
    assert patches.rio.crs.to_epsg() == 32633


def test_what_is_mapped_lies_where_the_geotiff_does(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rioxarray = pytest.importorskip("rioxarray")
    monkeypatch.chdir(tmp_path)
    given = ("--func", "copy:copy", "--reduce", "first", "--padding", "same")
    result = run("map", scene, tmp_path / "out.zarr", *SIZE, *given)
    assert result.exit_code == 0, result.output
    made = opened(tmp_path / "out.zarr")
    image = rioxarray.open_rasterio(scene)
    assert made.dtype == image.dtype
    np.testing.assert_array_equal(made, SAMPLES)
    assert made.rio.crs == image.rio.crs
    assert made.rio.transform() == image.rio.transform()


def test_a_geotiff_is_decoded_where_that_is_asked_for(scene: Path, tmp_path: Path) -> None:
    result = run("extract", scene, tmp_path / "out", *SIZE, "--decode")
    assert result.exit_code == 0, result.output
    assert opened(tmp_path / "out").dtype == "float32"


def test_a_geotiff_holds_no_groups(scene: Path) -> None:
    result = run("info", scene, "--group", "red")
    assert result.exit_code == 2
    assert "--group names what zarr, netCDF and HDF5 hold" in result.stderr


def test_no_geotiff_is_written(scene: Path, tmp_path: Path) -> None:
    result = run("map", scene, tmp_path / "out.tif", "--func", "numpy:copy", *SIZE)
    assert result.exit_code == 2
    assert "OUT is written as zarr" in result.stderr
    assert not (tmp_path / "out.tif").exists()


def omezarr(path: Path, version: str) -> str:
    """Write an image of several levels as ome-zarr-py does; give its first level."""
    writer = pytest.importorskip("ome_zarr.writer")
    formats = pytest.importorskip("ome_zarr.format")
    writer.write_image(SAMPLES, str(path), axes="cyx", fmt=formats.format_from_version(version))
    names = sorted(child.name for child in path.iterdir() if child.is_dir())
    return names[0]


def ngff(path: Path, version: str) -> str:
    """Write it as ngff-zarr does."""
    ngff_zarr = pytest.importorskip("ngff_zarr")
    image = ngff_zarr.to_ngff_image(SAMPLES, dims=["c", "y", "x"])
    levels = ngff_zarr.to_multiscales(image, scale_factors=[2], chunks=16)
    ngff_zarr.to_ngff_zarr(str(path), levels, version=version)
    return "scale0/image"


@pytest.mark.filterwarnings("ignore")  # of the libraries that write
@pytest.mark.parametrize("write", [omezarr, ngff])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_level_of_ome_zarr_is_an_image(tmp_path: Path, write: Any, version: str) -> None:
    path = tmp_path / "image.ome.zarr"
    level = write(path, version)
    whole = run("extract", path, tmp_path / "out", *SIZE)
    assert whole.exit_code == 2
    assert f"is an OME-Zarr image of the levels {level}, " in whole.stderr
    assert whole.stderr.count("\n") == 1
    for number, place in enumerate([(path, "--group", level), (path / level,)]):
        out = tmp_path / f"out{number}"
        result = run("extract", place[0], out, *place[1:], *SIZE)
        assert result.exit_code == 0, result.output
        patches = opened(out)
        assert patches.dims == ("c", "y", "x", "y_patch", "x_patch")
        np.testing.assert_array_equal(patches, tiles(SAMPLES))
