"""The way back: patches, or what was made of them, put together into a labelled image."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from xpatches.arguments import as_choice, as_optional_flag
from xpatches.display.text import readable
from xpatches.dtypes import Array, as_dtype, as_fill_value, missing_value
from xpatches.errors import PatchError
from xpatches.geometry.boxes import clip
from xpatches.geometry.coverage import AxisCover
from xpatches.images import labels
from xpatches.images.labels import SAMPLE_DIM
from xpatches.images.lines import rounding
from xpatches.images.packing import kept_encoding, nodata_of, of_other_numbers
from xpatches.images.relabel import image_transforms
from xpatches.images.samples import as_budget, check_variable
from xpatches.images.spec import SPEC_ATTR
from xpatches.stitching.gather import gather
from xpatches.stitching.kernel import Stitching
from xpatches.stitching.locate import Located, locate
from xpatches.stitching.tapers import Taper, as_taper, weights_of

T = TypeVar("T", xr.DataArray, xr.Dataset)

REDUCES = ("mean", "sum", "max", "min", "first", "vote")

_LEAST = 1e-30
"""Weights below which, beside the largest, single precision would lose samples."""

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
    skipna = as_optional_flag("skipna", skipna)
    if dtype is not None:
        dtype = as_dtype("dtype", dtype)
    if not (like is None or isinstance(like, xr.DataArray | xr.Dataset)):
        raise PatchError(
            f"like must be the image that was cut, a DataArray or a Dataset, got "
            f"{type(like).__name__}"
        )
    how: dict[str, Any] = {
        "taper": taper, "reduce": reduce, "fill_value": fill_value, "dtype": dtype,
        "skipna": skipna, "max_bytes": as_budget(max_bytes),
    }  # fmt: skip
    if isinstance(patches, xr.DataArray):
        return _stitch_array(patches, _part(like, patches.name), how)
    if not isinstance(patches, xr.Dataset):
        raise PatchError(
            f"patches must be a DataArray or a Dataset, got {type(patches).__name__}; "
            "xpatches.stitch takes what extract() gave"
        )
    cut: list[Hashable] = [key for key, of in patches.data_vars.items() if SPEC_ATTR in of.attrs]
    if not cut:
        raise PatchError("patches must hold variables from extract(), got none with its spec")
    every: dict[Hashable, xr.DataArray] = {}
    for name, of in patches.data_vars.items():
        every[name] = _stitch_array(of, _part(like, name), how) if name in cut else of
    _check_others(every, cut)
    # What variables share is taken from the first, without a look at its values.
    coords: dict[Hashable, Any] = {}
    gone = {dim for name in cut for dim in patches[name].dims if dim not in every[name].dims}
    changed = gone | {dim for name in cut for dim in every[name].dims}
    for array in (*every.values(), patches):
        for key, coord in array.coords.items():
            if array is not patches or changed.isdisjoint(coord.dims):
                coords.setdefault(key, coord)
    sizes = {dim: n for array in every.values() for dim, n in array.sizes.items()}
    for key, coord in like.coords.items() if isinstance(like, xr.Dataset) else ():
        # No variable has its dims, as with bounds of times.
        if all(sizes.get(dim, n) == n for dim, n in coord.sizes.items()):
            coords.setdefault(key, coord)
    made = {name: array.variable for name, array in every.items()}
    attrs = like.attrs if isinstance(like, xr.Dataset) else patches.attrs
    return xr.Dataset(made, coords, attrs)


def as_reduce(reduce: object, taper: Taper | None = None) -> tuple[str | None, Taper | None]:
    """Normalise a reduction, and the taper that some have a use for."""
    reduce, taper = as_choice("reduce", reduce, (None, *REDUCES)), as_taper(taper)
    flat = taper is None or (isinstance(taper, str) and taper == "flat")
    if reduce not in (None, "mean") and not flat:
        raise PatchError(f"taper is for reduce='mean', got reduce={reduce!r}; leave it out")
    return reduce, taper


def as_reduction(
    reduce: str | None,
    taper: Taper | None,
    default: str,
    covers: Sequence[AxisCover],
    dtype: np.dtype[Any],
    name: Hashable,
    averaged: bool = False,
) -> tuple[str, Taper]:
    """Choose a reduction and a taper where none is given.

    Parameters
    ----------
    reduce, taper
        As in `stitch`.
    default
        The taper of means.
    covers, dtype, name
        The patches, their dtype, and the name of the variable.
    averaged
        Whether something else says that it is averaged.

    Raises
    ------
    PatchError
        If a mean would be one of labels, as far as the dtype tells.
    """
    if reduce is None and taper is None and dtype.kind not in "fc":
        if any(cover.overlaps for cover in covers):
            what = "" if name is None else f" of {name!r}"
            raise PatchError(
                f"reduce must be given for {dtype}{what}, for patches overlap, and labels are not "
                "averaged unasked: 'vote' or 'first', or taper='crop', for labels, 'max' for masks "
                "and detections, 'mean' or a taper for measurements"
            )
        reduce = "mean" if averaged else "first"
    if reduce in (None, "mean"):
        return "mean", default if taper is None else taper
    return str(reduce), "flat"


def _check_others(every: Mapping[Hashable, xr.DataArray], cut: Sequence[Hashable]) -> None:
    """Refuse variables that lie along the grid, but are no patches."""
    made = {dim: n for name in cut for dim, n in every[name].sizes.items()}
    for name, array in every.items():
        if any(made.get(dim, n) != n for dim, n in array.sizes.items()):
            raise PatchError(
                f"{name!r} is no patches, but lies along dims of the grid, {array.dims}; drop it, "
                "or stitch without it"
            )


def _part(like: Any, name: Hashable) -> Any:
    """Give the variable of the image that patches were cut from, if there is one."""
    return like[name] if isinstance(like, xr.Dataset) and name in like.data_vars else like


def _stitch_array(array: xr.DataArray, like: Any, how: Mapping[str, Any]) -> xr.DataArray:
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
    patches = (located.covers, array.dtype, array.name)
    reduce, taper = as_reduction(
        how["reduce"], how["taper"], "flat", *patches, averaged=how["dtype"] is not None
    )
    stitching = stitching_of(
        *patches, taper, reduce, how["fill_value"], how["skipna"], how["dtype"], located.lacking,
        nodata_of(array.attrs, array.dtype),
    )  # fmt: skip
    data = gather(located, stitching, how["max_bytes"])
    dims = located.result_dims
    sizes = dict(zip(dims, data.shape, strict=True))
    given = like if isinstance(like, xr.DataArray) else array
    attrs = {k: v for k, v in given.attrs.items() if k != SPEC_ATTR}
    attrs = attrs if data.dtype == given.dtype else of_other_numbers(attrs)
    if located.spec.outer is not None:
        attrs[SPEC_ATTR] = located.spec.outer
    name: Any = array.name
    if name is None and isinstance(like, xr.DataArray):
        name = like.name
    made = xr.DataArray(data, _coords(located, like, sizes), dims, name, attrs)
    made.encoding = kept_encoding(given.variable)
    return made


_KINDS = {
    "mean": "iufc", "sum": "biufc", "max": "biufmM", "min": "biufmM", "vote": "biufSU",
}  # fmt: skip
"""Kinds of dtypes that can be reduced; "first" takes any."""
_INSTEAD = "convert the patches with .astype(...), or use another reduce"


def stitching_of(
    covers: Sequence[AxisCover],
    given: np.dtype[Any],
    name: Hashable,
    taper: Taper,
    how: str,
    fill_value: Any,
    skipna: bool | None,
    dtype: np.dtype[Any] | None = None,
    lacking: int = 0,
    nodata: Array | None = None,
) -> Stitching:
    """Choose dtypes and weights, and what becomes of samples that no patch holds.

    Parameters
    ----------
    covers
        The patches along every spatial dim.
    given, name
        Their dtype, and the name of the variable.
    taper, how, fill_value, skipna, dtype
        As in `stitch`, where `how` is `reduce`.
    lacking
        Patches of the grid that there are not.
    nodata
        Value of missing samples, 0-d of the dtype of the patches; of samples that no patch holds
        unless `fill_value` says another.

    Raises
    ------
    PatchError
        If they do not fit.
    """
    sizes = {cover.dim: cover.size for cover in covers}
    weights = weights_of(taper, sizes)
    cropped = weights is None
    if not cropped and given.kind not in _KINDS.get(how, given.kind):
        what = "" if name is None else f" of {name!r}"
        raise PatchError(f"reduce={how!r} is not possible for {given}{what}; {_INSTEAD}")
    held: dict[Hashable, Any] = {}
    if weights is not None:
        held = {dim: np.flatnonzero(of).tolist() for dim, of in weights.items()}
    flat = weights is None or all((of == of[0]).all() for of in weights.values())
    result = dtype_of(given, how)
    if dtype is not None:
        result = dtype
        if (
            how not in ("mean", "sum")
            or cropped
            or result.kind not in "fc"
            or (result.kind == "f" and given.kind == "c")
        ):
            raise PatchError(
                "dtype must be a floating dtype, for reduce='mean' or 'sum' and no taper='crop', "
                f"got {result} for {how!r} of {given}; leave it out, or use .astype(...)"
            )
    within = np.dtype(float) if result.kind in "iu" and how == "mean" else result
    within = np.dtype("f4") if within.kind == "f" and within.itemsize == 2 else within
    within = within.newbyteorder("=")
    if weights is not None:
        weights = {dim: of / of.max() for dim, of in weights.items()}
        least = prod(float(of[of > 0].min()) for of in weights.values())
        if least < _LEAST:
            within = np.result_type(within, "f8")
    missing = _bare(covers, held, lacking)
    if fill_value is not None:
        fill = as_fill_value(fill_value, result)
    elif nodata is not None and how != "sum":
        fill = nodata.astype(result)
    elif result.kind in "fcmM" and how != "sum":
        fill = missing_value(result)
    elif missing and how != "sum":
        raise PatchError(
            f"{missing}, and {result} has no missing value; give fill_value, or .astype(float)"
        )
    else:
        fill = np.zeros((), result)
    can_miss = given.kind in "fcmM" or nodata is not None
    skips = can_miss and (how != "sum" if skipna is None else skipna)
    return Stitching(
        "crop" if cropped else how,
        result,
        within,
        None if flat or weights is None else tuple(weights.values()),
        fill,
        skips,
        nodata if skips else None,
    )


def dtype_of(given: np.dtype[Any], how: str | None) -> np.dtype[Any]:
    """Choose the dtype of what is stitched: sums of integers are 64 bits wide."""
    if how == "sum" and given.kind in "biu":
        return np.dtype("u8" if given.kind == "u" else "i8")
    return given


def _bare(covers: Sequence[AxisCover], held: Mapping[Hashable, Sequence[int]], lacking: int) -> str:
    """Say how many samples no patch holds, and why; nothing where there are none."""
    if lacking:
        total = prod(cover.count for cover in covers)
        return f"patches are missing, {lacking} of {total}, and samples may be in none"
    whole = prod(cover.length for cover in covers)
    covered, reasons = whole, []
    for cover in covers:
        bare = cover.bare(held.get(cover.dim))
        covered = covered // cover.length * (cover.length - bare)
        eff = cover.effective_size
        if bare and cover.stride > eff:
            reasons.append(f"stride {cover.stride} on {cover.dim!r} exceeds the size {eff}")
        elif bare and cover.origin > 0:
            reasons.append(f"patches on {cover.dim!r} begin after the image does")
        elif bare and len(held.get(cover.dim, ())) < cover.size:
            reasons.append(f"samples of patches on {cover.dim!r} have the weight 0")
        elif bare and cover.rate > 1:
            reasons.append(f"rate {cover.rate} on {cover.dim!r} leaves gaps")
        elif bare:
            reasons.append(f"patches on {cover.dim!r} end before the image does")
    if covered == whole:
        return ""
    return f"{whole - covered} of {whole} samples are in no patch: {', '.join(reasons)}"


def _coords(
    located: Located, like: xr.DataArray | xr.Dataset | None, sizes: Mapping[Hashable, int]
) -> xr.Coordinates:
    """Label the image: as `like` is, or as the patches' labels determine."""
    spatial = set(located.spec.grid.dims)
    gone = spatial | {f"{dim}_{word}" for dim in spatial for word in ("patch", "origin")}
    gone |= {SAMPLE_DIM} if located.samples is not None else set()
    given = located.array.coords
    kept = given.to_dataset().drop_vars(
        [name for name, of in given.items() if gone & {name, *of.dims}]
    )
    if like is not None:
        others = set(sizes) - spatial
        fitting = {
            name: of
            for name, of in like.coords.items()
            if all(sizes.get(dim) == n for dim, n in of.sizes.items())
            and not (name in kept and of.dims and others.issuperset(of.dims))
        }
        kept = kept.drop_vars([name for name in fitting if name in kept])
        return kept.assign_coords(like.coords.to_dataset()[[*fitting]].coords).coords
    made = {}
    for dim, (at, values) in located.labels.items():
        labelled = rebuilt(at, values, sizes[dim], located.spec.even.get(dim))
        if labelled is not None:
            made[dim] = (dim, labelled, located.array.coords[dim].attrs)
    spec = located.spec
    return image_transforms(kept.assign_coords(made).coords, spec.grid, spec.label)


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
    for dim, (at, values) in located.labels.items():
        if dim not in like.coords or like.coords[dim].dims != (dim,):
            continue
        own = like.coords[dim].to_dataset(name=_OWN).drop_vars(_OWN).coords
        places = range(at.start // 2, at.stop // 2, at.step // 2)
        taken = labels.take_labels(own, {dim: places}, [dim] if at.start % 2 else ())[dim]
        expected = taken.to_numpy()
        known = taken.notnull().to_numpy() & xr.Variable(dim, values).notnull().to_numpy()
        expected, values = expected[known], values[known]
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


_OWN = "<own>"


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
    numbers = known.view("i8") if known.dtype.kind in "mM" else known
    line = _line_of_integers(at, numbers, length)
    return None if line is None else line.view(known.dtype)


def _line_of_floats(at: range, known: Array, length: int) -> Array | None:
    """Lay a line through labels that are on one, but for rounding."""
    numbers = known.astype(float)
    slope = (numbers[-1] - numbers[0]) / (at[-1] - at[0])
    away = numbers[0] + (np.array(at) - at.start) * slope - numbers
    if not (np.abs(away) <= rounding(known, 2 * slope)).all():
        return None
    line = numbers[0] + (2 * np.arange(length) - at.start) * slope
    made = np.asarray(line, known.dtype)
    if at.start % 2 == 0:  # and so are all others: a stride is a whole number of samples
        made[at.start // 2 : at[-1] // 2 + 1 : at.step // 2] = known
    return made


def _line_of_integers(at: range, known: Array, length: int) -> Array | None:
    """Lay a line through integers that are on one, if it meets integers at every sample."""
    numbers = known.tolist()
    step = numbers[1] - numbers[0]
    if any(b - a != step for a, b in pairwise(numbers)):
        return None
    each, rest = divmod(2 * step, at.step)
    first, other = divmod(numbers[0] * at.step - at.start * step, at.step)
    info, last = np.iinfo(known.dtype), first + (length - 1) * each
    if rest or other or min(first, last) < info.min or max(first, last) > info.max:
        return None
    return np.array([first + number * each for number in range(length)], known.dtype)
