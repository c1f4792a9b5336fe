"""Times of calendars that NumPy has not, from files and made by xarray."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

cftime = pytest.importorskip("cftime")


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "julian"])
def test_days_of_other_calendars_label_patches_and_go_on(calendar: str) -> None:
    days = xr.date_range("2000-02-25", periods=12, calendar=calendar, use_cftime=True)
    image = xr.DataArray(np.arange(12.0), {"time": days})
    p = image.patches(time=3, stride=3, padding=(1, 2))
    day = days[1] - days[0]
    assert p[0].time.values.tolist() == [days[0] - day, days[0], days[1]]
    assert p.extract().time.values.tolist() == [*days[0::3], days[11] + day]
    even = image.patches(time=4).extract().time.values
    assert even.tolist() == [days[1] + day / 2, days[5] + day / 2, days[9] + day / 2]
    assert p.sel(time=str(days[3])[:10]).values.tolist() == [2.0, 3.0, 4.0]


def test_a_job_gives_back_times_of_another_calendar(tmp_path: Path) -> None:
    days = xr.date_range("2000-02-25", periods=12, calendar="noleap", use_cftime=True)
    image = xr.DataArray(np.arange(24.0).reshape(12, 2), {"time": days}, ("time", "x"), "tas")
    image.to_netcdf(tmp_path / "tas.nc", engine="h5netcdf")
    opened = xr.open_dataarray(tmp_path / "tas.nc", engine="h5netcdf")
    for size in (3, 4):
        p = opened.patches(time=size)
        for layout in ("grid", "samples"):
            written = p.to_zarr(MemoryStore(), layout=layout, progress=False)
            assert written.time.values.tolist() == p.extract().time.values.tolist()
    uneven = opened.isel(time=[0, 1, 3, 4, 5, 9]).patches(time=3, padding=(1, 0))
    assert uneven[0].time.values[0] is None
    halves = opened.isel(time=[0, 1, 3, 4]).patches(time=2, stride=1, padding="same").extract()
    assert [None if time is None else time.hour for time in halves.time.values] == [12, 0, 12, None]
