"""NetCDF files that netCDF4 wrote: packed numbers, rotated poles, bounds, dims in another order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import xpatches

netCDF4 = pytest.importorskip("netCDF4")

STORED = np.random.default_rng(0).integers(-90, 90, (4, 12, 15)).astype("int16")
STORED[:, 3:5, 3:5] = -999


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Temperatures on a rotated pole, stored as integers, and a land mask in the other order."""
    path = tmp_path_factory.mktemp("files") / "tas.nc"
    with netCDF4.Dataset(path, "w") as out:
        for dim, n in (("rlon", 15), ("time", None), ("rlat", 12), ("bnds", 2)):
            out.createDimension(dim, n)
        pole = out.createVariable("rotated_pole", "i4")
        pole.grid_mapping_name = "rotated_latitude_longitude"
        pole.grid_north_pole_latitude = 39.25
        for name, values in (("rlat", np.arange(12) * 0.5), ("rlon", np.arange(15) * 0.5 - 3)):
            out.createVariable(name, "f8", (name,))[:] = values
        for name, axis in (("lat", 0), ("lon", 1)):
            values = np.indices((12, 15))[axis] + np.indices((12, 15))[1 - axis] / 100
            out.createVariable(name, "f4", ("rlat", "rlon"))[:] = values
        land = out.createVariable("land", "i1", ("rlon", "rlat"), fill_value=-1)
        land.grid_mapping = "rotated_pole"
        land.coordinates = "lat lon"
        land.set_auto_mask(False)
        land[:] = (STORED[0].T > 0).astype("i1")
        tas = out.createVariable("tas", "i2", ("time", "rlat", "rlon"), fill_value=-999)
        tas.scale_factor, tas.add_offset, tas.units = 0.1, 273.15, "K"
        tas.grid_mapping, tas.coordinates = "rotated_pole", "lat lon"
        tas.set_auto_maskandscale(False)
        tas[:] = STORED
        time = out.createVariable("time", "i4", ("time",))
        time.units, time.calendar, time.bounds = "days since 2000-01-01", "standard", "time_bnds"
        time[:] = np.arange(4)
        out.createVariable("time_bnds", "i4", ("time", "bnds"))[:] = np.stack(
            [np.arange(4), np.arange(4) + 1], axis=1
        )
    return path


KELVIN = np.where(STORED == -999, np.nan, STORED * 0.1 + 273.15)


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_a_file_comes_through_jobs_with_its_labels_and_its_grid(
    file: Path, engine: Any, chunks: Any, layout: str
) -> None:
    ds = xr.open_dataset(file, engine=engine, chunks=chunks, decode_coords="all")
    for source in (ds, ds[["land", "tas"]], ds[["tas", "land"]], ds.tas):
        p = source.patches(rlat=5, rlon=5, stride=2)
        written = p.to_zarr(MemoryStore(), layout=layout, progress=False)
        tas = written if isinstance(source, xr.DataArray) else written.tas
        assert {"rotated_pole", "lat", "lon", "rlat", "rlon"} <= set(written.coords)
        assert tas.encoding["grid_mapping"] == "rotated_pole"
        assert tas.attrs["units"] == "K"
        if layout == "grid":
            xr.testing.assert_identical(written.compute(), p.extract().compute())
        else:
            for number in range(0, len(p), 5):
                row, column = (int(tas[f"{dim}_origin"][number]) for dim in ("rlat", "rlon"))
                expected = KELVIN[:, row : row + 5, column : column + 5]
                values = tas[number].transpose("time", "rlat_patch", "rlon_patch")
                np.testing.assert_allclose(values, expected, rtol=1e-6)
                assert tas.lat[number] == np.float32(row + 2 + (column + 2) / 100)
                assert tas.rlon[number] == (column + 2) * 0.5 - 3
                if isinstance(source, xr.Dataset):
                    land = written.land[number].transpose("rlat_patch", "rlon_patch")
                    stored = STORED[0, row : row + 5, column : column + 5]
                    np.testing.assert_array_equal(land == 1, stored > 0)
        stitched = xpatches.stitch(written, like=source, reduce="first", fill_value=0)
        assert set(stitched.coords) == set(source.coords)


def test_padding_of_a_decoded_file_is_missing_and_of_an_undecoded_one_its_fill_value(
    file: Path,
) -> None:
    decoded = xr.open_dataset(file).patches(rlat=5, rlon=5, padding="same")[0]
    assert np.isnan(decoded.tas[:, 0]).all()
    raw = xr.open_dataset(file, mask_and_scale=False).patches(rlat=5, rlon=5, padding=(1, 4))
    assert (raw[0].tas[:, 0] == -999).all()
    assert (raw[0].land[:, 0] == -1).all()


def test_a_map_of_the_file_says_nothing_of_how_it_was_packed(file: Path, tmp_path: Path) -> None:
    raw = xr.open_dataset(file, mask_and_scale=False, decode_coords="all").tas
    cold = raw.patches(rlat=5, rlon=5, padding="same").map_to_zarr(
        tmp_path / "cold.zarr",
        lambda batch: (batch < 0).astype("int8"),
        output={"dtype": "int8", "name": "cold", "attrs": {"long_name": "colder than 0 C"}},
        progress=False,
    )
    assert cold.attrs == {"long_name": "colder than 0 C"}
    again = xr.open_zarr(tmp_path / "cold.zarr", consolidated=False, decode_coords="all")
    np.testing.assert_array_equal(again.cold, STORED < 0)
    assert again.cold.dtype == np.dtype("int8")
    assert set(again.coords) >= {"rotated_pole", "lat", "lon", "time"}
