"""Labels of an image of another resolution, and of one from its patches."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from models import identity
from xpatches.images.relabel import rebuilt


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


@pytest.mark.parametrize(
    ("at", "values", "length", "expected"),
    [
        # Midpoints are no sample's label, even where there is one of every two.
        (range(1, 9, 2), [0.5, 1.5, 2.5, 3.5], 5, [0.0, 1.0, 2.0, 3.0, 4.0]),
        (range(-1, 9, 2), [-0.5, 0.5, 1.5, 2.5, 3.5], 5, [0.0, 1.0, 2.0, 3.0, 4.0]),
        (range(1, 9, 2), [0.5, 1.5, 3.5, 5.5], 5, None),
        (range(1, 7, 2), np.arange(3).astype("M8[s]"), 4, None),  # half seconds
        (range(0, 8, 4), np.array([0, 6], "M8[s]"), 3, [0, 3, 6]),
        (range(3, 15, 4), [1.5, 3.5, 5.5], 7, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        (range(0, 12, 4), [4, 2, 0], 5, [4, 3, 2, 1, 0]),
        (range(0, 12, 4), np.array([4, 2, 0], "u1"), 6, None),  # -1
        (range(0, 12, 4), [0, 3, 6], 5, None),  # 1.5
        (range(0, 8, 4), [0.0, 2.0], 3, [0.0, 1.0, 2.0]),
        (range(0, 4, 4), [0.0], 3, None),
        (range(0, 12, 4), [0.0, 2.0, 4.001], 5, None),
        (range(0, 12, 4), [0.0, np.nan, 4.0], 5, None),
        (range(-2, 8, 2), [9.0, 0.0, 5.0, 1.0, 9.0], 3, [0.0, 5.0, 1.0]),
        (range(0, 6, 2), ["c", "a", "b"], 3, ["c", "a", "b"]),
        (range(0, 4, 2), ["c", "a"], 3, None),
    ],
)
def test_labels_are_rebuilt_from_where_they_lie_in_half_samples(
    at: range, values: Any, length: int, expected: Any
) -> None:
    made = rebuilt(at, np.asarray(values), length, np.asarray(values).dtype)
    if expected is None:
        assert made is None
    else:
        assert made is not None
        np.testing.assert_array_equal(made, np.asarray(expected).astype(made.dtype))
        assert made.dtype == np.asarray(values).dtype
