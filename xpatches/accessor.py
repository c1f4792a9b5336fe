"""The accessor ``.patches`` of images, and of patches."""

from collections.abc import Hashable, Mapping
from typing import Any, Generic

import numpy as np  # noqa: F401  for the examples
import xarray as xr

from xpatches.arguments import as_mapping, check_among, merge, shown
from xpatches.dtypes import Array, as_fill_value
from xpatches.errors import PatchError
from xpatches.geometry.grid import Padding, PatchGrid, grid_of
from xpatches.images import labels, packing
from xpatches.images.packing import default_fill
from xpatches.images.samples import check_dims, check_held, check_variable
from xpatches.patches import ARRAY, Patches, T
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
        check_dims("the image", tuple(self._obj.dims))
        source = self._obj.copy(deep=False)  # what is done to the image later changes nothing
        merged = merge("size", size, sizes)
        dataset = source.to_dataset(name=ARRAY) if isinstance(source, xr.DataArray) else source
        dataset = dataset.set_coords(packing.named_by_links(dataset))
        lengths = {dim: dataset.sizes[dim] for dim in source.dims}
        check_among("size", merged, lengths)
        arrays = []
        for name, variable in dataset.data_vars.variables.items():
            if not merged.keys().isdisjoint(variable.dims):
                what = "the image" if name == ARRAY else shown(name)
                check_variable(what, variable)
                if variable.ndim > _MOST_DIMS:
                    raise PatchError(
                        f"{what} must have at most {_MOST_DIMS} dims, got {variable.ndim}; patches "
                        "have up to twice as many, and NumPy holds 64: squeeze or stack some"
                    )
                arrays.append(variable.dims)
        for name, variable in dataset.coords.variables.items():
            if not merged.keys().isdisjoint(variable.dims):
                check_held(f"coord {shown(name)}", variable)
        grid = grid_of(lengths, arrays, merged, stride, rate, padding)
        labels.check_names(dataset, (f"{dim}_{word}" for dim in merged for word in _ADDED))
        fills = _fill_values(dataset, grid, fill_value)
        values = {name: value for name, (value, _) in fills.items()}
        return Patches(
            source, grid, dataset, values, {name: why for name, (_, why) in fills.items()}
        )

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


_MOST_DIMS = 31
"""Of an image: those of its patches and one more, along which they lie, are twice as many."""
_ADDED = ("patch", "origin")
"""Ends of the names that an extraction adds for every dim."""


def _fill_values(
    dataset: xr.Dataset, grid: PatchGrid, fill_value: Any
) -> dict[Hashable, tuple[Array, str]]:
    """Give every variable that is to be cut its fill value, and why it is that.

    Raises
    ------
    PatchError
        If a dtype does not hold the value that is given.
    """
    names = [name for name, v in dataset.data_vars.items() if not set(v.dims).isdisjoint(grid.dims)]
    if not names:
        raise PatchError(f"no variable of the Dataset has any of the dims {grid.dims}; name others")
    per_name = isinstance(fill_value, Mapping) and names != [ARRAY]
    given = dict.fromkeys(names, fill_value)
    if per_name:
        given = as_mapping("fill_value", fill_value, "from variable to value")
        check_among("fill_value", given, names, "variables")
    values = {}
    for name in names:
        variable, whole = dataset.variables[name], name == ARRAY
        argument = "fill_value" if whole else f"fill_value for {name!r}"
        if given.get(name) is None:
            values[name] = default_fill(variable)
        else:
            values[name] = as_fill_value(given[name], variable.dtype, argument), "given"
    return values
