"""The accessor ``.patches`` of images, and of patches."""

from collections.abc import Mapping
from typing import Any, Generic

import numpy as np  # noqa: F401  for the examples
import xarray as xr

from xpatches.arguments import merge
from xpatches.geometry.grid import Padding
from xpatches.images.image import T, as_image
from xpatches.patches import Patches
from xpatches.stitching.labelled import stitch


class PatchesAccessor(Generic[T]):
    """What ``.patches`` is on an image: call it to get its `Patches`."""

    def __init__(self, obj: T) -> None:
        self._obj: T = obj

    def __call__(
        self,
        /,
        size: Mapping[Any, int] | None = None,
        *,
        stride: int | Mapping[Any, int] | None = None,
        rate: int | Mapping[Any, int] = 1,
        padding: Padding | Mapping[Any, Padding] = "valid",
        fill_value: Any = None,
        **sizes: int,
    ) -> Patches[T]:
        """Cut the image into patches; nothing is read or computed.

        Parameters
        ----------
        size, **sizes
            Samples per patch along every spatial dim: ``size={"y": 256, "x": 256}`` or
            ``y=256, x=256``.
        stride
            Distance between consecutive patches: one for all dims, or a mapping from dim to
            stride. The patch's size where left out.
        rate
            Distance between the samples of a patch: one for all dims, or a mapping. 1 where left
            out.
        padding
            ``"valid"`` (patches that lie inside the image), ``"same"`` (one patch per stride,
            the image padded on both sides as in TensorFlow), or ``(before, after)`` in samples:
            one for all dims, or a mapping. "valid" where left out.
        fill_value
            Value of the samples outside the image: one for all, or for a Dataset a mapping from
            variable to value. Where left out it is that of missing samples, if the image declares
            one: integers have that of their attrs or encoding (``_FillValue``, ``missing_value``,
            ``nodata``), floats that were decoded from it NaN; a ``_FillValue`` of NaN on data
            stored as floats declares nothing, for xarray writes it for all. Else it is zero, False,
            "" or NaT. The repr says which and why.

        Returns
        -------
        Patches
            The variables of a Dataset are cut along those of the dims that they have; variables
            with none of them pass through. Patches are numbered along the dims in the order on
            which the variables that are cut agree, where they do not in that of the sizes. What
            other variables name as their ``grid_mapping`` or ``bounds`` is a coord, as where xarray
            decodes with ``decode_coords="all"``.

        Raises
        ------
        PatchError
            If an argument is not of the form above, if no patch fits on the image, or if samples
            are not of a fixed-width dtype.

        Examples
        --------
        >>> image = xr.DataArray(np.zeros((10, 12)), dims=("y", "x"))
        >>> len(image.patches(y=4, x=4))
        6
        >>> image.patches({"y": 4, "x": 4}, stride=2, rate={"x": 3}).grid.counts
        {'y': 4, 'x': 2}
        """
        merged = merge("size", size, sizes)
        return Patches(as_image(self._obj, merged, stride, rate, padding, fill_value))

    def stitch(self, **how: Any) -> T:
        """Put patches together into an image: `xpatches.stitch` of this array or Dataset.

        Parameters
        ----------
        **how
            As for `xpatches.stitch`.

        Examples
        --------
        >>> image = xr.DataArray(np.arange(12).reshape(3, 4), dims=("y", "x"))
        >>> image.patches(y=1, x=2).extract().patches.stitch(like=image).equals(image)
        True
        """
        return stitch(self._obj, **how)


@xr.register_dataarray_accessor("patches")
class _DataArrayPatches(PatchesAccessor[xr.DataArray]):
    __doc__ = PatchesAccessor.__doc__


@xr.register_dataset_accessor("patches")
class _DatasetPatches(PatchesAccessor[xr.Dataset]):
    __doc__ = PatchesAccessor.__doc__
