"""What becomes of several patches over a sample: which reduction, taper, dtypes and fill value."""

from collections.abc import Hashable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from xpatches.arguments import as_choice
from xpatches.dtypes import Array, as_fill_value, missing_value
from xpatches.errors import PatchError
from xpatches.geometry.coverage import AxisCover
from xpatches.stitching.kernel import Stitching
from xpatches.stitching.tapers import Taper, as_taper, weights_of

REDUCES = ("mean", "sum", "max", "min", "first", "vote")

_KINDS = {
    "mean": "iufc", "sum": "biufc", "max": "biufmM", "min": "biufmM", "vote": "biufSU",
}  # fmt: skip
"""Kinds of dtypes that can be reduced; "first" takes any."""
_INSTEAD = "convert the patches with .astype(...), or use another reduce"
_LEAST = 1e-30
"""Weights below which, beside the largest, single precision would lose samples."""


def as_reduce(reduce: object, taper: Taper | None = None) -> tuple[str | None, Taper | None]:
    """Normalise a reduction, and the taper that some have a use for."""
    reduce, taper = as_choice("reduce", reduce, (None, *REDUCES)), as_taper(taper)
    flat = taper is None or (isinstance(taper, str) and taper == "flat")
    if reduce not in (None, "mean") and not flat:
        raise PatchError(f"taper is for reduce='mean', got reduce={reduce!r}; leave it out")
    return reduce, taper


def stitching_of(
    covers: Sequence[AxisCover],
    held: np.dtype[Any],
    name: Hashable,
    *,
    reduce: str | None,
    taper: Taper | None,
    fill_value: Any,
    skipna: bool | None,
    dtype: np.dtype[Any] | None = None,
    default: str = "flat",
    lacking: int = 0,
    nodata: Array | None = None,
) -> Stitching:
    """Choose a reduction and weights, dtypes, and what becomes of samples that no patch holds.

    Parameters
    ----------
    covers
        The patches along every spatial dim.
    held, name
        Their dtype, and the name of the variable.
    reduce, taper, fill_value, skipna, dtype
        As in `stitch`.
    default
        The taper of means, unless `taper` says another.
    lacking
        Patches of the grid that there are not.
    nodata
        Value of missing samples, 0-d of the dtype of the patches; of samples that no patch holds
        unless `fill_value` says another.

    Raises
    ------
    PatchError
        If they do not fit, or a mean would be one of labels, as far as the dtype tells.
    """
    if reduce is None and taper is None and held.kind not in "fc":
        if any(cover.overlaps for cover in covers):
            raise PatchError(
                f"reduce must be given for {held}{_of(name)}, for patches overlap, and labels are "
                "not averaged unasked: 'vote' or 'first', or taper='crop', for labels, 'max' for "
                "masks and detections, 'mean' or a taper for measurements"
            )
        reduce = "first" if dtype is None else "mean"
    how, taper = reduce or "mean", default if taper is None else taper
    weights = weights_of(
        taper if how == "mean" else "flat", {cover.dim: cover.size for cover in covers}
    )
    cropped = weights is None
    if not cropped and held.kind not in _KINDS.get(how, held.kind):
        raise PatchError(f"reduce={how!r} is not possible for {held}{_of(name)}; {_INSTEAD}")
    result = dtype_of(held, how) if dtype is None else dtype
    if dtype is not None and (
        how not in ("mean", "sum")
        or cropped
        or dtype.kind not in "fc"
        or (dtype.kind == "f" and held.kind == "c")
    ):
        raise PatchError(
            "dtype must be a floating dtype, for reduce='mean' or 'sum' and no taper='crop', "
            f"got {dtype} for {how!r} of {held}; leave it out, or use .astype(...)"
        )
    can_miss = held.kind in "fcmM" or nodata is not None
    skips = can_miss and (how != "sum" if skipna is None else skipna)
    if fill_value is not None:
        fill = as_fill_value(fill_value, result)
    elif how == "sum":
        fill = np.zeros((), result)
    elif nodata is not None:
        fill = nodata.astype(result)
    elif result.kind in "fcmM":
        fill = missing_value(result)
    else:
        bare = _bare(covers, weights, lacking)
        if bare:
            raise PatchError(
                f"{bare}, and {result} has no missing value; give fill_value, or .astype(float)"
            )
        fill = np.zeros((), result)
    parts = None if weights is None else [along / along.max() for along in weights.values()]
    flat = parts is None or all((along == 1).all() for along in parts)
    return Stitching(
        "crop" if cropped else how,
        result,
        _within(result, how, parts or ()),
        None if flat or parts is None else tuple(parts),
        fill,
        skips,
        nodata if skips else None,
    )


def _of(name: Hashable) -> str:
    return "" if name is None else f" of {name!r}"


def dtype_of(held: np.dtype[Any], how: str | None) -> np.dtype[Any]:
    """Choose the dtype of what is stitched: sums of integers are 64 bits wide."""
    if how == "sum" and held.kind in "biu":
        return np.dtype("u8" if held.kind == "u" else "i8")
    return held


def _within(result: np.dtype[Any], how: str, weights: Sequence[Array]) -> np.dtype[Any]:
    """Choose the dtype in which sums are made."""
    within = np.dtype(float) if result.kind in "iu" and how == "mean" else result
    within = np.dtype("f4") if within.kind == "f" and within.itemsize == 2 else within
    if prod(float(along[along > 0].min()) for along in weights) < _LEAST:
        within = np.result_type(within, "f8")
    return within.newbyteorder("=")


def _bare(
    covers: Sequence[AxisCover], weights: Mapping[Hashable, Array] | None, lacking: int
) -> str:
    """Say how many samples no patch holds, and why; nothing where there are none."""
    if lacking:
        total = prod(cover.count for cover in covers)
        return f"patches are missing, {lacking} of {total}, and samples may be in none"
    covered, reasons = 1, []
    for cover in covers:
        weighty = [*range(cover.size)]
        if weights is not None:
            weighty = np.flatnonzero(weights[cover.dim]).tolist()
        bare = cover.bare(weighty)
        covered *= cover.length - bare
        if bare:
            reasons.append(_reason(cover, len(weighty) == cover.size))
    if not reasons:
        return ""
    whole = prod(cover.length for cover in covers)
    return f"{whole - covered} of {whole} samples are in no patch: {', '.join(reasons)}"


def _reason(cover: AxisCover, all_weigh: bool) -> str:
    """Say why no patch holds some samples along a dim."""
    if cover.stride > cover.effective_size:
        return f"stride {cover.stride} on {cover.dim!r} exceeds the size {cover.effective_size}"
    if cover.origin > 0:
        return f"patches on {cover.dim!r} begin after the image does"
    if not all_weigh:
        return f"samples of patches on {cover.dim!r} have the weight 0"
    if cover.rate > 1:
        return f"rate {cover.rate} on {cover.dim!r} leaves gaps"
    return f"patches on {cover.dim!r} end before the image does"
