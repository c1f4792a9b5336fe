"""Arrays with units, which pint holds instead of NumPy."""

import numpy as np
import pytest
import xarray as xr

from xpatches import PatchError

pint = pytest.importorskip("pint")


def test_arrays_with_units_are_refused_with_a_word_on_what_to_do() -> None:
    units = pint.UnitRegistry()
    image = xr.DataArray(units.Quantity(np.arange(9.0), "metre"), dims="x")
    with pytest.raises(PatchError, match=r"NumPy or dask data, got pint\.Quantity; convert"):
        image.patches(x=3)


def test_dequantified_arrays_keep_their_units_as_an_attr() -> None:
    pytest.importorskip("pint_xarray")
    image = xr.DataArray(np.arange(9.0), dims="x", attrs={"units": "metre"})
    dequantified = image.pint.quantify().pint.dequantify()
    p = dequantified.patches(x=3)
    assert p.extract().attrs["units"] == "meter"
    assert p.reduce("mean").pint.quantify().pint.units == "meter"
