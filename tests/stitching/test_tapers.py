from typing import Any

import numpy as np
import pytest
import xarray as xr

from overlaps import extracted
from reference import Array
from xpatches.errors import PatchError
from xpatches.geometry.grid import AxisGrid
from xpatches.stitching.labelled import stitch
from xpatches.stitching.tapers import TAPERS


def test_weights_too_small_for_the_dtype_count_where_there_are_no_others() -> None:
    image = np.random.default_rng(0).random((9, 9)).astype("f4")
    patches = extracted(image, {axis: AxisGrid(f"d{axis}", 9, 3, 2) for axis in (0, 1)})
    back = stitch(patches, taper=[1e-30, 1, 1e-30])
    np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize("taper", [*TAPERS, lambda size: np.arange(1, size + 1), {"x": [1] * 64}])
def test_a_constant_stays_constant_to_the_borders(taper: Any) -> None:
    for value in np.array([1, 1 / 3, 0.1, 7.7, 1e-3, 254.9], np.float32):
        image = xr.DataArray(np.full((150, 190), value), dims=("y", "x"))
        p = image.patches(y=64, x=64, stride=56, padding="same")
        back = stitch(p.extract(), taper=taper)
        assert back.dtype == np.float32
        # Padding belongs to patches, not to the image: it does not count.
        np.testing.assert_array_equal(back, value)


def test_samples_without_weight_do_not_count_whatever_they_hold() -> None:
    image = xr.DataArray(np.arange(12.0), dims="x")
    patches = image.patches(x=4, stride=2).extract().copy()
    patches[:, 0], patches[:, 3] = np.nan, np.inf
    back = stitch(patches, taper=[0, 1, 1, 0])
    np.testing.assert_array_equal(back, [np.nan, *range(1, 11), np.nan])
    with pytest.raises(PatchError, match="samples of patches on 'x' have the weight 0"):
        stitch(image.astype("i8").patches(x=4, stride=2).extract(), taper=[0, 1, 1, 0])


def test_weights_of_any_size_leave_a_constant_constant() -> None:
    def narrow(size: int) -> Array:
        return np.asarray(np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 32)) ** 2))

    image = xr.DataArray(np.full((32, 32), 7, "f4"), dims=("y", "x"))
    patches = image.patches(y=16, x=16, stride=8).extract()
    for taper in (narrow, [1e30] * 16, [1e-300] * 16):
        back = stitch(patches, taper=taper)
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, image)
    large = xr.DataArray(np.full(64, 40000, ">f2"), dims="x").patches(x=16, stride=4).extract()
    assert (stitch(large) == 40000).all()
