"""The way back: patches, or what was made of them, put together into a labelled image."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from xpatches.arguments import as_flag
from xpatches.display.text import readable
from xpatches.dtypes import as_dtype
from xpatches.errors import PatchError
from xpatches.images import labels
from xpatches.images.labels import SAMPLE_DIM
from xpatches.images.packing import kept_encoding, nodata_of, of_other_numbers
from xpatches.images.relabel import image_transforms, rebuilt
from xpatches.images.samples import as_budget, check_variable
from xpatches.images.spec import SPEC_ATTR
from xpatches.stitching.choose import as_reduce, stitching_of
from xpatches.stitching.gather import gather
from xpatches.stitching.kernel import Stitching
from xpatches.stitching.locate import Located, locate
from xpatches.stitching.tapers import Taper

T = TypeVar("T", xr.DataArray, xr.Dataset)

_ALONE = 1 << 30
"""Bytes of an image of which the spec may say alone that it is so large."""
_SPARSE = 1 << 10
"""Or as many for every byte of its patches."""


def stitch(
    patches: T,
    *,
    like: xr.DataArray | xr.Dataset | None = None,
    taper: Taper | None = None,
    reduce: str | None = None,
    fill_value: Any = None,
    dtype: Any = None,
    skipna: bool | None = None,
    max_bytes: int | str | None = None,
) -> T:
    """Put patches together into an image.

    Every block of the image is made from all patches that reach into it, in a fixed order: its
    values do not depend on chunks or on the scheduler, and it is written once.

    Parameters
    ----------
    patches
        What `Patches.extract` gave or `open_patches` opened, in either layout, or an array with the
        same dims along the grid and the patches: other dims, the dtype, and the values may have
        changed. Patches may be missing or in another order, and margins of patches may be cut off,
        where the coords ``{dim}_origin`` and ``{dim}_patch`` say what is left. The geometry is in
        the attr ``xpatches``.
    like
        The image that was cut: gives its coords, its attrs and its CRS. Without it, coords along
        the dims are rebuilt where patches have the labels of all samples, or where the image's were
        evenly spaced, as the attr says: what lies between is rounded. Others are not known and left
        out.
    taper
        For "mean", the weights of a patch's samples: ``"flat"`` (ones, the default), ``"hann"``,
        ``"triangular"``, ``"gaussian"`` (sigma an eighth of the size), ``"crop"`` (every sample is
        taken from the patch whose center is nearest), weights (1-D, for every dim or a mapping from
        dim), or a function from a size to weights. The weights of a sample are the product of those
        along the dims, and are divided by their sum over all patches that hold the sample.
    reduce
        What becomes of several patches over a sample. None, with no taper, is the mean of numbers
        that are floating; others may be labels, and are not averaged unasked: where patches of them
        overlap, say which. One of ``"mean"``, ``"sum"`` (the adjoint of the
        extraction), ``"max"``, ``"min"``, ``"first"`` (the patch with the lowest number), or
        ``"vote"`` (the label that most patches have, the least of several).
    fill_value
        Value of samples that no patch holds. Without it they are NaN (NaT) where the dtype has
        that, 0 for "sum", and otherwise an error.
    dtype
        For "mean" and "sum", of the result, and of the sums on the way where it is floating. By
        default that of the patches for "mean"; integers are averaged exactly, or in float64 with a
        taper (those of 64 bits by how far they are from each other), and rounded half to even. Sums
        of integers are 64 bits wide, as in NumPy. Half precision is summed in float32.
    skipna
        Whether missing samples of patches, NaN and NaT, do not count where others are: their weight
        is 0, they are no extreme, no label and not the first. Where all are missing the result is,
        too. None is True, but for "sum": the adjoint adds what there is. Sums that skip are 0
        where all is missing, as in xarray.
    max_bytes
        Budget of a task, for its input and its output together; as for `Patches.extract`.

    Returns
    -------
    DataArray or Dataset
        The dims of the patches, in their order, without those of the samples of a patch; in the
        image's order, new dims last, for patches along the dim ``sample``. Lazy if the patches are.
        Variables of a Dataset that are no patches pass through.

    Raises
    ------
    PatchError
        If the geometry is lost, `like` is another image, an argument does not fit, samples that no
        patch holds have no value, or neither `reduce` nor `taper` says what becomes of integers,
        say, of which patches overlap.

    Examples
    --------
    >>> image = xr.DataArray(np.arange(36.0).reshape(6, 6), {"y": range(6)}, ("y", "x"))
    >>> p = image.patches(y=3, x=3, stride=1, padding="same")
    >>> stitch(p.extract(), like=image).equals(image)
    True
    >>> stitch(p.extract().isel(x=[0, 5]), taper="hann")[0].values
    array([ 0.,  1., nan, nan,  4.,  5.])
    """
    reduce, taper = as_reduce(reduce, taper)
    skipna = as_flag("skipna", skipna, None)
    if dtype is not None:
        dtype = as_dtype("dtype", dtype)
    if not (like is None or isinstance(like, xr.DataArray | xr.Dataset)):
        raise PatchError(
            f"like must be the image that was cut, a DataArray or a Dataset, got "
            f"{type(like).__name__}"
        )
    choose = partial(
        stitching_of, reduce=reduce, taper=taper, fill_value=fill_value, skipna=skipna, dtype=dtype
    )
    budget = as_budget(max_bytes)
    if isinstance(patches, xr.DataArray):
        return _stitch_array(patches, _variable_of(like, patches.name), choose, budget)
    if not isinstance(patches, xr.Dataset):
        raise PatchError(
            f"patches must be a DataArray or a Dataset, got {type(patches).__name__}; "
            "xpatches.stitch takes what extract() gave"
        )
    cut: list[Hashable] = [
        name for name, array in patches.data_vars.items() if SPEC_ATTR in array.attrs
    ]
    if not cut:
        raise PatchError("patches must hold variables from extract(), got none with its spec")
    arrays: dict[Hashable, xr.DataArray] = dict(patches.data_vars)
    changed: set[Hashable] = set()
    for name in cut:
        arrays[name] = _stitch_array(arrays[name], _variable_of(like, name), choose, budget)
        changed.update(patches[name].dims, arrays[name].dims)
    _check_others(arrays, cut)
    # What variables share is taken from the first, without a look at its values.
    coords: dict[Hashable, Any] = {}
    for array in (*arrays.values(), patches):
        for key, coord in array.coords.items():
            if array is not patches or changed.isdisjoint(coord.dims):
                coords.setdefault(key, coord)
    image = like if isinstance(like, xr.Dataset) else xr.Dataset(attrs=patches.attrs)
    sizes = {dim: n for array in arrays.values() for dim, n in array.sizes.items()}
    for key, coord in image.coords.items():  # of which no variable may have the dims: times' bounds
        if all(sizes.get(dim, n) == n for dim, n in coord.sizes.items()):
            coords.setdefault(key, coord)
    return xr.Dataset({name: array.variable for name, array in arrays.items()}, coords, image.attrs)


def _check_others(arrays: Mapping[Hashable, xr.DataArray], cut: Sequence[Hashable]) -> None:
    """Refuse variables that lie along the grid, but are no patches."""
    stitched = {dim: n for name in cut for dim, n in arrays[name].sizes.items()}
    for name, array in arrays.items():
        if any(stitched.get(dim, n) != n for dim, n in array.sizes.items()):
            raise PatchError(
                f"{name!r} is no patches, but lies along dims of the grid, {array.dims}; drop it, "
                "or stitch without it"
            )


def _variable_of(like: Any, name: Hashable) -> Any:
    """Give the variable of the image that patches were cut from, if there is one."""
    return like[name] if isinstance(like, xr.Dataset) and name in like.data_vars else like


def _stitch_array(
    array: xr.DataArray, like: Any, choose: Callable[..., Stitching], max_bytes: int | None
) -> xr.DataArray:
    check_variable("patches", array.variable)
    located = locate(array)
    for cover in located.covers:
        if like is not None and like.sizes.get(cover.dim) != cover.length:
            raise PatchError(
                f"like must have {cover.length} samples along {cover.dim!r}, as the image that was "
                f"cut, got {like.sizes.get(cover.dim)}; give that image"
            )
    if like is None:
        _check_length(located)
    else:
        _check_labels(located, like)
    stitching = choose(
        located.covers, array.dtype, array.name, lacking=located.lacking,
        nodata=nodata_of(array.attrs, array.dtype),
    )  # fmt: skip
    data = gather(located, stitching, max_bytes)
    dims = located.result_dims
    source = like if isinstance(like, xr.DataArray) else array
    attrs = {key: value for key, value in source.attrs.items() if key != SPEC_ATTR}
    attrs = attrs if data.dtype == source.dtype else of_other_numbers(attrs)
    if located.spec.outer is not None:
        attrs[SPEC_ATTR] = located.spec.outer
    coords = _coords(located, like, dict(zip(dims, data.shape, strict=True)))
    name: Any = array.name
    if name is None and isinstance(like, xr.DataArray):
        name = like.name
    image = xr.DataArray(data, coords, dims, name, attrs)
    image.encoding = kept_encoding(source.variable)
    return image


def _coords(
    located: Located, like: xr.DataArray | xr.Dataset | None, sizes: Mapping[Hashable, int]
) -> xr.Coordinates:
    """Label the image: as `like` is, or as the patches' labels determine."""
    spec, coords = located.spec, located.array.coords
    spatial = set(spec.grid.dims)
    gone = spatial | {f"{dim}_{word}" for dim in spatial for word in ("patch", "origin")}
    gone |= {SAMPLE_DIM} if located.samples is not None else set()
    kept = coords.to_dataset().drop_vars(
        [name for name, coord in coords.items() if gone & {name, *coord.dims}]
    )
    if like is not None:
        others = set(sizes) - spatial
        fitting = [
            name
            for name, coord in like.coords.items()
            if all(sizes.get(dim) == n for dim, n in coord.sizes.items())
            and not (name in kept and coord.dims and others.issuperset(coord.dims))
        ]
        kept = kept.drop_vars(fitting, errors="ignore")
        return kept.assign_coords(like.coords.to_dataset()[fitting].coords).coords
    rebuilt_coords = {}
    for dim, (places, values) in located.read_labels().items():
        along = rebuilt(places, values, sizes[dim], spec.even.get(dim))
        if along is not None:
            rebuilt_coords[dim] = (dim, along, coords[dim].attrs)
    return image_transforms(kept.assign_coords(rebuilt_coords).coords, spec.grid, spec.label)


def _check_length(located: Located) -> None:
    """Refuse an image so much larger than its patches that a wrong spec is all it may come from."""
    array = located.array
    spatial = {cover.dim: cover.length for cover in located.covers}
    lengths = (spatial.get(dim) or array.sizes[dim] for dim in located.result_dims)
    size, most = array.dtype.itemsize * prod(lengths), max(_ALONE, _SPARSE * array.nbytes)
    if size > most:
        raise PatchError(
            f"like must be given for an image of {readable(size)} from patches of "
            f"{readable(array.nbytes)}: the attr {SPEC_ATTR!r} alone says that it has the lengths "
            f"{spatial}; give the image that was cut"
        )


def _check_labels(located: Located, like: xr.DataArray | xr.Dataset) -> None:
    """Refuse an image whose labels are not those that the patches were cut with."""
    for dim, (at, values) in located.read_labels().items():
        if dim not in like.coords or like.coords[dim].dims != (dim,):
            continue
        own = like.coords.to_dataset()[[dim]].coords
        places = range(at.start // 2, at.stop // 2, at.step // 2)
        taken = labels.take_labels(own, {dim: places}, [dim] if at.start % 2 else ())[dim]
        known = taken.notnull().to_numpy() & xr.Variable(dim, values).notnull().to_numpy()
        expected, values = taken.to_numpy()[known], values[known]
        if expected.dtype.kind in "iuf" and values.dtype.kind in "iuf":
            with np.errstate(over="ignore", invalid="ignore"):  # of infinite ones
                steps = np.diff(expected) if len(expected) > 1 else expected
                step = np.abs(steps).max(initial=0)
                alike = np.abs(expected - values.astype(float)) <= 1e-3 * step
            alike |= expected == values
        else:
            alike = expected == values
        if not np.all(alike):
            first = int(np.argmin(alike))
            raise PatchError(
                f"like must have the labels along {dim!r} that the patches were cut with, got "
                f"{expected[first]} where these have {values[first]}; give that image, or drop the "
                "coord of one of them"
            )
