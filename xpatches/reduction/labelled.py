"""Reductions of the patches of labelled variables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.arguments import said
from xpatches.dtypes import Array
from xpatches.errors import MapError, PatchError
from xpatches.extraction.kernel import extract_block
from xpatches.extraction.labelled import run
from xpatches.geometry.blocks import Kernel
from xpatches.geometry.boxes import Span, clip
from xpatches.geometry.grid import PatchGrid
from xpatches.images.packing import kept_attrs, kept_encoding, of_another_quantity, of_other_numbers
from xpatches.reduction.kernel import SEPARABLE, Reduction, reduce_block


@dataclass(frozen=True)
class Reducer:
    """What reduces the patches of a variable."""

    reduction: Callable[..., Any] | str
    """Name or function."""
    options: Mapping[str, Any]
    """The arguments `skipna`, `min_count` and `ignore_padding` of `Patches.reduce`."""
    kernel: Kernel
    dtype: np.dtype[Any]
    """Of the result."""
    patch_bytes: int
    """Bytes that a task makes per patch and sample of the depth."""
    attrs: Mapping[Any, Any]
    """Of the result."""


def reduce_variable(
    variable: xr.Variable, grid: PatchGrid, reducer: Reducer, how: Mapping[str, Any]
) -> xr.Variable:
    """Reduce every patch of a variable, as `Patches.reduce` documents.

    Parameters
    ----------
    variable, grid
        As for `extract_variable`.
    reducer
        What reduces them.
    how
        The arguments `engine` and `max_bytes` of `Patches.reduce`.
    """
    grid, kernel, patch_bytes = grid.arrange(variable.dims), reducer.kernel, reducer.patch_bytes
    reduced = run(variable, grid, kernel, reducer.dtype, "reduced", **how, patch_bytes=patch_bytes)
    return xr.Variable(variable.dims, reduced, reducer.attrs, kept_encoding(variable))


def reducer_of(
    variable: xr.Variable,
    grid: PatchGrid,
    fill_value: Array,
    reduction: Callable[..., Any] | str,
    options: Mapping[str, Any],
) -> Reducer:
    """Choose how the patches of a variable are reduced; a function is tried on one of ones.

    Parameters
    ----------
    variable, grid, fill_value
        As for `extract_variable`.
    reduction, options
        As in `Reducer`.
    """
    grid = grid.arrange(variable.dims)
    dtype = variable.dtype
    if not callable(reduction) and (
        dtype.kind == "V"  # ml_dtypes' floats, too
        or (reduction in ("argmin", "argmax") and dtype.kind not in SEPARABLE[reduction])
    ):
        raise PatchError(
            f"how={reduction!r} is not possible for {dtype}; convert the image first, for example "
            "with .astype('float32'), or give a function"
        )
    patch = dtype.itemsize * prod(axis.size for axis in grid.axes)
    if not callable(reduction) and dtype.kind in SEPARABLE.get(reduction, ""):
        made = _reduction(variable, grid, reduction, **options)
        kernel = partial(reduce_block, fill_value=fill_value, reduction=made)
        out, patch = made.dtype, made.dtype.itemsize
    else:
        given = {name: value for name, value in options.items() if value is not None}
        if not given["ignore_padding"]:
            del given["ignore_padding"]
        elif callable(reduction) or dtype.kind not in "biuf" or options["skipna"] is False:
            name = "a function" if callable(reduction) else repr(reduction)
            raise PatchError(
                "ignore_padding is possible for the names of how, numbers and, with 'median', "
                f"skipna; got {name}, {dtype} and skipna={options['skipna']}; "
                "use a fill_value that how can tell apart"
            )
        if callable(reduction) and given:
            raise PatchError(
                f"{next(iter(given))} is for the names of how, got a function; leave it out"
            )
        if "min_count" in given and reduction != "sum":
            raise PatchError(f"min_count is not for how={reduction!r} of {dtype}; leave it out")
        kernel = partial(_reduce_patches, fill_value=fill_value, reduction=reduction, options=given)
        spans = [Span(variable.dims.index(axis.dim), axis, 0, 1) for axis in grid.axes]
        one = [1] * variable.ndim
        for span in spans:
            one[span.axis] = span.grid.effective_size
        out = kernel(np.ones(one, dtype), spans).dtype
        patch += out.itemsize
    attrs = kept_attrs(variable.attrs)
    if callable(reduction) or reduction in ("sum", "mean", "median", "std"):
        attrs = of_other_numbers(attrs)
    elif reduction not in ("min", "max") or out != dtype:
        attrs = of_another_quantity(attrs)
    return Reducer(reduction, options, kernel, out, patch, attrs)


def _reduction(
    variable: xr.Variable,
    grid: PatchGrid,
    name: str,
    skipna: bool | None,
    min_count: int | None,
    ignore_padding: bool,
) -> Reduction:
    """Fill in what xarray would choose for the variable's dtype."""
    dtype = variable.dtype
    skips = dtype.kind in "fc" and name not in ("any", "all") if skipna is None else skipna
    if name in ("argmin", "argmax", "count"):
        out: np.dtype[Any] = np.dtype(np.int64)
    else:
        out = getattr(xr.Variable("x", np.ones(1, dtype)), name)().dtype
    if ignore_padding and name in ("min", "max", "argmin", "argmax"):
        if min_count and out.kind in "biu":
            out = np.dtype(float)
        elif out.kind in "biu":
            _check_samples(grid, name)
    return Reduction(name, out, skips, min_count or 0, ignore_padding)


def _check_samples(grid: PatchGrid, name: str) -> None:
    """Refuse patches that have no sample inside the image, where a result must have one."""
    for axis in grid.axes:
        # They begin before the image, the first one or one of as many as the rate, or behind it.
        before, behind = (-(-n // axis.stride) for n in (axis.before, axis.before + axis.length))
        for patch in (*range(min(before, axis.rate)), behind):
            _, inside, _ = clip(axis.samples(patch), axis.length)
            if patch < axis.count and inside.start == inside.stop:
                raise PatchError(
                    f"ignore_padding leaves patch {patch} along {axis.dim!r} without samples, for "
                    f"which {name!r} has no integer; use less padding, a fill_value, min_count=1, "
                    "or .astype(float) first"
                )


def _reduce_patches(
    block: Array,
    spans: Sequence[Span],
    fill_value: Array,
    reduction: Callable[..., Any] | str,
    options: Mapping[str, Any],
) -> Array:
    """Reduce patches that stand in memory, by a function or as xarray does."""
    kept = dict(options)
    if kept.pop("ignore_padding", False):  # NaN stands for padding, and is skipped
        block = block if block.dtype.kind == "f" else block.astype(float)
        fill_value = np.array(np.nan, block.dtype)
        kept["skipna"] = True
    patches = extract_block(block, spans, fill_value)
    first = spans[-1].axis + 1
    axes = tuple(range(first, first + len(spans)))
    if callable(reduction):
        try:
            reduced = np.asarray(reduction(patches, axis=axes))
        except Exception as error:  # whatever the user's function raises
            raise MapError(
                f"how failed on patches of shape {patches.shape}, {type(error).__name__}: "
                f"{said(error)}; it is called as how(patches, axis={axes})"
            ) from error
        expected = tuple(n for axis, n in enumerate(patches.shape) if axis not in axes)
        if reduced.shape != expected:
            raise PatchError(
                f"how must reduce the axes {axes} of an array of shape {patches.shape} to "
                f"{expected}, got {reduced.shape}; it is called as how(patches, axis={axes})"
            )
        return reduced
    dims = [str(axis) for axis in range(patches.ndim)]
    labelled = xr.Variable(dims, patches)
    try:
        return np.asarray(getattr(labelled, reduction)([dims[axis] for axis in axes], **kept))
    except Exception as error:  # whatever xarray raises for what it cannot reduce so
        given = "".join(f", {name}={value}" for name, value in kept.items())
        raise PatchError(
            f"how={reduction!r}{given} is not possible for {patches.dtype}: {said(error)}; leave "
            "that out, or convert the image with .astype(...)"
        ) from error
