"""The parity function: TensorFlow's ``tf.image.extract_patches``, bit for bit, in N dims."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from xpatches.arguments import as_choice, as_integer, as_tuple, said, shown
from xpatches.dtypes import as_fill_value, check_dtype, is_dask, kind_of
from xpatches.errors import PatchError
from xpatches.extraction.kernel import extract_flat
from xpatches.extraction.plan import plan_blocks, plan_whole
from xpatches.geometry.grid import AxisGrid, Padding
from xpatches.images.samples import Source
from xpatches.threads import available_threads

_PADDINGS: dict[str, Padding] = {"VALID": "valid", "SAME": "same"}


def extract_patches(
    images: Any,
    sizes: Sequence[int],
    strides: Sequence[int],
    rates: Sequence[int],
    padding: str,
) -> Any:
    """Extract patches with the signature and the answers of ``tf.image.extract_patches``.

    Parameters
    ----------
    images : array_like or dask.array.Array
        Shape ``(batch, *spatial, depth)``, with one or more spatial dims, of any fixed-width dtype.
    sizes, strides, rates
        One integer per dim of `images`: 1 on batch and depth, >= 1 elsewhere.
    padding
        ``"VALID"`` or ``"SAME"``.

    Returns
    -------
    numpy.ndarray or dask.array.Array
        Shape ``(batch, *counts, prod(sizes) * depth)``, of the images' dtype, the depth running
        fastest. Lazy for a dask array, C-contiguous otherwise; padding is 0 (NaT for times).

    Raises
    ------
    PatchError
        For every argument that TensorFlow refuses. As there, "VALID" with patches larger than the
        image gives no patches where ``trunc((n - eff + s) / s)`` is 0 and is refused where it is
        negative. Any number of spatial dims may have rates, and "SAME" never pads by less than 0;
        ``tf.extract_volume_patches`` differs in both.

    Notes
    -----
    Semantics: tensorflow/core/kernels/extract_image_patches_op.cc and
    tensorflow/core/util/padding.h.

    Examples
    --------
    The example of TensorFlow's documentation: 3 x 3 patches of a 10 x 10 image of 1..100.

    >>> images = np.arange(1, 101).reshape(1, 10, 10, 1)
    >>> patches = extract_patches(images, [1, 3, 3, 1], [1, 5, 5, 1], [1, 1, 1, 1], "VALID")
    >>> patches.shape
    (1, 2, 2, 9)
    >>> patches[0, 0, 1]
    array([ 6,  7,  8, 16, 17, 18, 26, 27, 28])
    """
    array = _as_array(images)
    grids = _grids(array.shape, sizes, strides, rates, padding)
    fill_value = as_fill_value(None, array.dtype)
    kernel, itemsize = partial(extract_flat, fill_value=fill_value), array.dtype.itemsize
    if not is_dask(array):
        kernel = partial(kernel, threads=available_threads())
        plan = plan_whole(grids, array.shape, itemsize, "flat")
        return Source(array, plan.chunks).run(plan.blocks, kernel, array.dtype)
    from xpatches.lazy.sources import as_budget, check_chunks  # dask is loaded for its arrays only

    check_chunks("images", array)
    plan = plan_blocks("map_overlap", grids, array.chunks, itemsize, as_budget(None), "flat")
    return Source(array, plan.chunks).run(plan.blocks, kernel, array.dtype)


def _as_array(images: Any) -> Any:
    """Give a NumPy or dask array; refuse what would lose labels or masks on the way."""
    foreign = ("__array_function__", "dims", "chunks")  # other libraries, labels, storage
    masked = isinstance(images, np.ma.MaskedArray)
    known = isinstance(images, np.ndarray) or is_dask(images)
    if masked or (not known and any(hasattr(images, name) for name in foreign)):
        raise PatchError(
            f"images must be a NumPy or dask array, got {kind_of(images)}; "
            "for xarray use its .patches accessor, else convert it first"
        )
    try:
        array = images if is_dask(images) else np.asarray(images)
    except Exception as error:  # whatever a type raises that is no array
        raise PatchError(f"images must be an array, got {shown(images)}: {said(error)}") from error
    check_dtype("images", array.dtype)
    if array.ndim < 3:
        raise PatchError(
            "images must have the dims (batch, *spatial, depth), at least 3, "
            f"got {array.ndim}: shape {array.shape}"
        )
    return array


def _grids(
    shape: tuple[int, ...],
    sizes: Sequence[int],
    strides: Sequence[int],
    rates: Sequence[int],
    padding: str,
) -> dict[int, AxisGrid]:
    padding = as_choice("padding", padding, (*_PADDINGS,))
    given = {"sizes": sizes, "strides": strides, "rates": rates}
    numbers = {name: _integers(name, values, len(shape)) for name, values in given.items()}
    grids = {}
    for axis in range(1, len(shape) - 1):
        size, stride, rate = (values[axis] for values in numbers.values())
        grid = AxisGrid(axis, shape[axis], size, stride, rate, _PADDINGS[padding])
        eff = grid.effective_size
        # TensorFlow divides toward zero: one stride short is no patch, two are an error.
        if padding == "VALID" and shape[axis] - eff + stride <= -stride:
            raise PatchError(
                f"sizes[{axis}] is too large: Computed output size would be negative with "
                f"effective size {eff} and stride {stride} on {shape[axis]} samples; "
                'use smaller sizes or rates, or padding "SAME"'
            )
        grids[axis] = grid
    return grids


def _integers(name: str, values: Sequence[int], ndim: int) -> list[int]:
    given = as_tuple(name, values, f"{ndim} integers, one per dim of images", ndim)
    numbers = [as_integer(f"{name}[{axis}]", value, 1) for axis, value in enumerate(given)]
    for axis in (0, ndim - 1):
        if numbers[axis] != 1:
            raise PatchError(
                f"{name}[{axis}] must be 1 on the {'depth' if axis else 'batch'} dim, "
                f"got {numbers[axis]}"
            )
    return numbers
