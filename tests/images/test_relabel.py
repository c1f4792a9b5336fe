"""Labels of an image of another resolution."""

import numpy as np
import xarray as xr

from models import identity


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
