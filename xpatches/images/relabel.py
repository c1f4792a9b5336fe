"""Labels of an image from those of another: of its patches, or of a finer or coarser one."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xpatches.dtypes import Array
from xpatches.geometry.boxes import clip
from xpatches.geometry.grid import AxisGrid, PatchGrid
from xpatches.images import even_labels
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
            if even_labels.is_quantity(labels):
                middles = (np.arange(sizes[dim] or 0) + 0.5) * steps[dim] - 0.5
                values = even_labels.interpolated(labels, middles)
                labelled = labelled.assign_coords({name: (dim, values, coord.attrs)})
    if not steps:
        return labelled.coords
    moved = {dim: (0.5 * step - 0.5, step) for dim, step in steps.items()}
    return assign(labelled.coords, moved_transforms(labelled.coords, moved))


def label_positions(axis: AxisGrid, origins: range, label: str, kind: str) -> range:
    """Find where labels of patches lie, in half samples of the image.

    The middle of a patch of an even effective size is between two samples, and so are labels that
    are numbers or times; others are those of the sample before.

    Examples
    --------
    >>> axis = AxisGrid("x", length=9, size=4, stride=2)
    >>> [label_positions(axis, axis.origins, "center", kind) for kind in "fU"]
    [range(3, 15, 4), range(2, 14, 4)]
    """
    shift = axis.effective_size - 1 if label == "center" else 0
    if kind not in "iufcmM":
        shift -= shift % 2
    return range(2 * origins.start + shift, 2 * origins.stop + shift, 2 * origins.step)


def rebuilt(at: range, values: Array, length: int, even: np.dtype[Any] | None) -> Array | None:
    """Label every sample along a dim from the labels of patches, if these determine them.

    They do where they are those of all samples, of any kind, or where the image's were evenly
    spaced and those of two patches at least still are. What else lies between is not known:
    business days of which every fifth is labelled are a week apart.

    Parameters
    ----------
    at
        Where the labels lie, ascending, in half samples; those outside the image do not count.
    values
        The labels.
    length
        Samples of the image.
    even
        Dtype of the labels of the image if they were evenly spaced, by the spec of the extraction.

    Examples
    --------
    >>> rebuilt(range(2, 14, 4), np.array([10.0, 14.0, 18.0]), 6, np.dtype(float))
    array([ 8., 10., 12., 14., 16., 18.])
    >>> rebuilt(range(1, 7, 2), np.array([0.5, 1.5, 2.5]), 4, np.dtype(int))
    array([0, 1, 2, 3])
    >>> rebuilt(range(0, 6, 2), np.array(["a", "b", "c"]), 3, None)
    array(['a', 'b', 'c'], dtype='<U1')
    >>> rebuilt(range(0, 18, 6), np.array([1.0, 2.0, 3.0]), 9, None) is None
    True
    """
    before, inside, _ = clip(at, 2 * length - 1)
    at = range(2 * length - 1)[inside]
    known = values[before : before + len(at)]
    if at == range(0, 2 * length - 1, 2):
        return known
    if even is None or len(at) < 2 or known.dtype.kind not in "iufmM":
        return None
    if known.dtype.kind == "f":
        line = _line_of_floats(at, known, length)
        # Integers, too, have floats halfway between them.
        return line if line is None or even.kind not in "iu" else np.rint(line).astype(even)
    return _line_of_integers(at, known, length)


def _line_of_floats(at: range, known: Array, length: int) -> Array | None:
    """Lay a line through labels that are on one, but for rounding."""
    numbers = known.astype(float)
    slope = (numbers[-1] - numbers[0]) / (at[-1] - at[0])
    away = numbers[0] + (np.array(at) - at.start) * slope - numbers
    if not (np.abs(away) <= even_labels.rounding(known, 2 * slope)).all():
        return None
    line = numbers[0] + (2 * np.arange(length) - at.start) * slope
    labels = np.asarray(line, known.dtype)
    if at.start % 2 == 0:  # and so are all others: a stride is a whole number of samples
        labels[at.start // 2 : at[-1] // 2 + 1 : at.step // 2] = known
    return labels


def _line_of_integers(at: range, known: Array, length: int) -> Array | None:
    """Lay a line through integers or times that are on one, if it meets whole ones everywhere."""
    line = even_labels.line_of(known)
    if line is None:
        return None
    each, rest = divmod(2 * line.step, at.step)
    first, other = divmod(line.first * at.step - at.start * line.step, at.step)
    stored = np.dtype("i8") if known.dtype.kind in "mM" else known.dtype
    info, last = np.iinfo(stored), first + (length - 1) * each
    if rest or other or min(first, last) < info.min or max(first, last) > info.max:
        return None
    return np.array([first + number * each for number in range(length)], stored).view(known.dtype)
