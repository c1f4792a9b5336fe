"""Where the pixels of a raster lie: the GeoTransform that a coord with the CRS holds."""

from collections.abc import Hashable, Mapping

import xarray as xr

_TRANSFORM = "GeoTransform"
_PLACES = (_TRANSFORM, "gcps")
"""Attrs of a CRS that say where the pixels of the whole image lie."""
_COLUMNS, _ROWS = ("x", "longitude", "lon"), ("y", "latitude", "lat")
"""Names by which rioxarray, too, knows the dims of a raster."""


def moved_transforms(
    coords: xr.Coordinates, moved: Mapping[Hashable, tuple[float, float]]
) -> dict[Hashable, xr.Variable]:
    """Give the coords that hold a GeoTransform one for other samples of the image.

    Parameters
    ----------
    coords
        Any of the image's.
    moved
        Along dims of the image, the position of the first of those samples, and their distance, in
        samples of the image.

    Returns
    -------
    dict
        By name the coords with the attr ``GeoTransform`` of GDAL, six numbers: for the new samples
        where `moved` names the image's rows and columns by the names that rioxarray looks for,
        without it otherwise; and without ground control points, which are of the image's pixels.

    Examples
    --------
    >>> crs = xr.Variable((), 0, {"GeoTransform": "100 10 0 900 0 -10"})
    >>> moved_transforms(xr.Coordinates({"crs": crs}), {"x": (2, 4), "y": (0, 1)})["crs"].attrs
    {'GeoTransform': '105.0 40.0 0.0 900.0 0.0 -10.0'}
    """
    if any(dim in coords and coords[dim].attrs.get("units") == "pixel" for dim in moved):
        return {}  # odc-geo labels rotated rasters by their pixels, to which the transform applies
    names = [next((dim for dim in known if dim in moved), None) for known in (_COLUMNS, _ROWS)]
    places = [moved.get(dim, (0, 1)) for dim in names]
    # A new pixel is as wide as samples are apart, and its corner half of that before its middle.
    corners = [first + 0.5 - step / 2 for first, step in places]
    changed: dict[Hashable, xr.Variable] = {}
    for name, coord in coords.variables.items():
        if coord.attrs.keys().isdisjoint(_PLACES):
            continue
        changed[name] = coord.copy(deep=False)
        changed[name].attrs = {key: v for key, v in coord.attrs.items() if key not in _PLACES}
        numbers = _numbers(coord.attrs.get(_TRANSFORM))
        if len(numbers) == 6 and any(names):
            new = []
            for corner, *slopes in (numbers[:3], numbers[3:]):
                new.append(corner + sum(map(float.__mul__, slopes, corners)))
                new += [slope * step for slope, (_, step) in zip(slopes, places, strict=True)]
            changed[name].attrs[_TRANSFORM] = " ".join(map(repr, new))
    return changed


def _numbers(text: object) -> list[float]:
    """Parse numbers; none where it is not what GDAL writes."""
    try:
        return [float(number) for number in str(text).split()]
    except Exception:  # whatever a type raises that is asked for a text
        return []
