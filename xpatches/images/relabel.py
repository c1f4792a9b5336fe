"""Labels of an image from those of another: of its patches, or of a finer or coarser one."""

from collections.abc import Hashable, Mapping

import numpy as np
import xarray as xr

from xpatches.geometry.grid import PatchGrid
from xpatches.images import lines
from xpatches.images.geotransform import moved_transforms
from xpatches.images.labels import assign


def image_transforms(coords: xr.Coordinates, grid: PatchGrid, label: str) -> xr.Coordinates:
    """Turn the GeoTransform that `patch_coords` gave patches into that of the image again."""
    moved = {}
    for axis in grid:
        first = -axis.before + (axis.effective_size - 1) / 2 * (label == "center")
        moved[axis.dim] = -first / axis.stride, 1 / axis.stride
    return assign(coords, moved_transforms(coords, moved))


def resampled_coords(
    coords: xr.Coordinates,
    sizes: Mapping[Hashable, int | None],
    steps: Mapping[Hashable, float],
) -> xr.Coordinates:
    """Label an image of other dims and another resolution, as far as coords still fit.

    Parameters
    ----------
    coords
        Of the image as it was.
    sizes
        New lengths along dims, None where a dim is gone; those left out are as they were.
    steps
        Along the dims whose resolution is another, the distance of new samples, in samples of the
        image as it was. Coords along one of them are interpolated at the middle of every sample if
        they are numbers or times; others are left out.

    Examples
    --------
    >>> coords = xr.Coordinates({"x": [5, 15, 25, 35], "band": [1, 2]})
    >>> resampled_coords(coords, {"x": 2, "band": 3}, {"x": 2.0})["x"].values
    array([10., 30.])
    """
    kept = [
        name
        for name, coord in coords.items()
        if steps.keys().isdisjoint(coord.dims)
        and all(sizes.get(dim, n) == n for dim, n in coord.sizes.items())
    ]
    labelled = coords.to_dataset()[kept]
    for name, coord in coords.items():
        if coord.ndim == 1 and coord.dims[0] in steps and coord.size > 1:
            labels, (dim,) = coord.to_numpy(), coord.dims
            if lines.is_quantity(labels):
                middles = (np.arange(sizes[dim] or 0) + 0.5) * steps[dim] - 0.5
                values = lines.interpolated(labels, middles)
                labelled = labelled.assign_coords({name: (dim, values, coord.attrs)})
    if not steps:
        return labelled.coords
    moved = {dim: (0.5 * step - 0.5, step) for dim, step in steps.items()}
    return assign(labelled.coords, moved_transforms(labelled.coords, moved))
