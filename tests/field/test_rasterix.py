"""Coords that an index makes from a transform, as rasterix has them."""

import numpy as np
import pytest
import xarray as xr

rasterix = pytest.importorskip("rasterix")


def test_labels_of_a_raster_index_go_on_beyond_it_and_between_pixels() -> None:
    crs = xr.Variable((), 0, {"GeoTransform": "500000 10 0 5000000 0 -10"})
    plain = xr.DataArray(np.arange(48 * 64).reshape(48, 64), {"spatial_ref": crs}, ("y", "x"))
    image = rasterix.assign_index(plain)
    x, y = 500_005 + 10 * np.arange(64), 4_999_995 - 10 * np.arange(48)
    p = image.patches(y=8, x=8, stride=4, padding="same")
    edge = p[0]
    np.testing.assert_array_equal(edge.x, [x[0] - 20, x[0] - 10, *x[:6]])
    np.testing.assert_array_equal(edge.y, [y[0] + 20, y[0] + 10, *y[:6]])
    np.testing.assert_array_equal(p[20].x, x[14:22])
    whole = p.extract()
    np.testing.assert_array_equal(whole.x, x[1] + 5 + 40 * np.arange(16))
    np.testing.assert_array_equal(whole.y, y[1] - 5 - 40 * np.arange(12))
    odd = image.patches(y=5, x=5, stride=4).extract()
    np.testing.assert_array_equal(odd.x, x[2:-2:4])
    mapped = p.map(lambda batch: batch * 1.0, output={"dtype": "float64"})
    np.testing.assert_array_equal(mapped.x, x)
    np.testing.assert_array_equal(mapped, plain)
    taken = p.sel(x=x[14] + 35, y=y[14] - 35)
    np.testing.assert_array_equal(taken, plain[14:22, 14:22])
