"""What attrs and encodings say of an image's numbers: what is missing, and how they are stored."""

from collections.abc import Container, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xpatches.dtypes import Array, as_fill_value
from xpatches.errors import PatchError

NODATA = ("_FillValue", "missing_value", "nodata")
"""Attrs and encodings that name the value of missing samples, by CF and GDAL."""
_NUMBERS = {
    *NODATA, "nodatavals", "scale_factor", "add_offset", "scales", "offsets", "_Unsigned",
    "valid_range", "valid_min", "valid_max", "actual_range",
    "flag_values", "flag_masks", "flag_meanings",
}  # fmt: skip
"""Attrs that describe the numbers as they are stored, besides GDAL's statistics."""
_QUANTITY = {"units", "long_name", "standard_name"}
"""Attrs that say what the numbers are of."""
_CRS = "grid_mapping"
_BOUNDS = ("bounds", "climatology")
LINKS = (
    _CRS, *_BOUNDS, "geometry", "node_coordinates", "node_count",
    "part_node_count", "interior_ring", "cell_measures", "formula_terms", "ancillary_variables",
)  # fmt: skip
"""Attrs that name other variables, which xarray moves to the encoding where it decodes them."""


def default_fill(variable: xr.Variable) -> tuple[Array, str]:
    """Choose the value of padding: that of missing samples where it is declared, else zero.

    Returns
    -------
    numpy.ndarray
        0-d, of the variable's dtype.
    str
        Why it is that value.

    Examples
    --------
    >>> default_fill(xr.Variable("x", np.zeros(3, "uint8"), {"_FillValue": 255}))
    (array(255, dtype=uint8), '_FillValue')
    """
    dtype, encoding = variable.dtype, variable.encoding
    zero = as_fill_value(None, dtype)
    if dtype.kind not in "iufc":
        return zero, NOT_DECLARED
    for declared in (variable.attrs, encoding):
        for key in NODATA:
            value = _scalar(declared.get(key))
            if value is None:
                continue
            if dtype.kind in "fc" and declared is encoding:  # it was decoded to NaN
                stored = np.dtype(encoding.get("dtype", dtype))
                if stored.kind in "fc" and value != value:
                    continue  # xarray writes NaN for all floats: it declares nothing
                return np.array(np.nan, dtype), f"missing, {key} {value} of {stored}"
            if value != value:
                continue
            try:
                return as_fill_value(value, dtype), key
            except PatchError:
                return zero, f"{key} {value} does not fit {dtype}"
    return zero, NOT_DECLARED


NOT_DECLARED = "no nodata declared"


def nodata_of(attrs: Mapping[Any, Any], dtype: np.dtype[Any]) -> Array | None:
    """Give the value of missing samples that attrs declare, of numbers as they are stored."""
    for value in (_scalar(attrs.get(key)) for key in NODATA):
        if value is not None and value == value and dtype.kind in "iufc":
            try:
                return as_fill_value(value, dtype)
            except PatchError:  # it was of another dtype
                return None
    return None


def _scalar(value: Any) -> Any:
    """Give the number that an attr holds, the first of several; None for what is no number."""
    try:
        values = np.ravel(np.asarray(value))
    except Exception:  # whatever a type raises that is no array
        return None
    return values[0].item() if values.size and values.dtype.kind in "biuf" else None


def of_other_numbers(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Give attrs of an image to what was computed of it: all but how its numbers are stored."""
    return {
        key: value
        for key, value in attrs.items()
        if not (isinstance(key, str) and (key in _NUMBERS or key.startswith("STATISTICS_")))
    }


def of_another_quantity(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Give attrs of an image to what is no longer of its quantity, either."""
    return {key: value for key, value in of_other_numbers(attrs).items() if key not in _QUANTITY}


def kept_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Keep attrs if xarray is configured to keep them; the link to the CRS in any case."""
    if xr.Variable((), 0, {"kept": True}).max().attrs:
        return dict(attrs)
    return {key: value for key, value in attrs.items() if key == _CRS}


def kept_encoding(variable: xr.Variable) -> dict[str, Any]:
    """Keep the link to the CRS; how the image was packed and chunked does not fit its patches."""
    return {key: value for key, value in variable.encoding.items() if key == _CRS}


def links_of(variable: xr.Variable) -> dict[str, Any]:
    """Give what stands in the encoding and names other variables."""
    return {key: variable.encoding[key] for key in LINKS if key in variable.encoding}


def named_by_links(dataset: xr.Dataset) -> list[Hashable]:
    """List the variables that are no data of their own: CRSs, and bounds of coords."""
    names: set[str] = set()
    for variable in dataset.variables.values():
        for described in (variable.attrs, variable.encoding):
            for key in (_CRS, *_BOUNDS):
                if isinstance(links := described.get(key), str):
                    names.update(links.replace(":", " ").split())
    return [name for name in dataset.data_vars if name in names]


def drop_dangling(variable: xr.Variable, names: Container[Hashable]) -> None:
    """Drop links to bounds that are not there, as where one variable of a Dataset was taken."""
    for key in _BOUNDS:
        if variable.encoding.get(key, "") not in names:
            variable.encoding.pop(key, None)


def relink(variable: xr.Variable, links: Iterable[str]) -> None:
    """Move links from the attrs to the encoding, where they stood."""
    for key in links:
        if key in variable.attrs:
            variable.encoding[key] = variable.attrs.pop(key)
