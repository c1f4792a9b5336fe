"""The patches of an image as a sequence, of which single ones are taken."""

import sys
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Generic

import numpy as np
import xarray as xr

from xpatches.arguments import as_choice, merge, shown
from xpatches.display import text
from xpatches.dtypes import is_dask
from xpatches.errors import PatchError, PatchOverflowError
from xpatches.extraction import single
from xpatches.geometry.grid import PatchGrid
from xpatches.images import labels
from xpatches.images.image import Image, T
from xpatches.images.samples import checked_lazy
from xpatches.private_names import held


@dataclass(frozen=True, eq=False, repr=False)
class PatchSequence(Generic[T]):
    """What `Patches` is as a sequence."""

    _image: Image[T]

    @property
    def source(self) -> T:
        """The image."""
        return self._image.source

    @property
    def grid(self) -> PatchGrid:
        """The patches per dim, in the order in which they are numbered: the last runs fastest."""
        return self._image.grid

    @property
    def sizes(self) -> dict[Hashable, int]:
        """Samples per patch per dim."""
        return self.grid.sizes

    @property
    def nbytes(self) -> int:
        """Bytes of all patches, as `extract` gives them."""
        counts = self.grid.counts
        return sum(
            variable.dtype.itemsize
            * prod(counts.get(dim, length) for dim, length in variable.sizes.items())
            * prod(self.sizes[dim] for dim in variable.dims if dim in counts)
            for _, variable, _ in self._image.variables()
        )

    @property
    def total(self) -> int:
        """Number of patches: as ``len(p)``, which Python allows up to 2**63 - 1 of them only."""
        return self.grid.total

    def __len__(self) -> int:
        if self.total > sys.maxsize:
            raise PatchOverflowError(
                f"len(p) must be <= {sys.maxsize}, as for all sequences of Python, and there are "
                f"{self.total} patches; use p.total"
            )
        return self.total

    def __bool__(self) -> bool:
        return True  # no grid is empty, and len may be too large

    def __iter__(self) -> Iterator[T]:
        for part, indices in single.read_ahead(self._indexed, self._image.fill_values, self.grid):
            for index in indices:
                yield self._take(index, part)

    def __getitem__(self, index: int | tuple[int, ...]) -> T:
        if not isinstance(index, tuple):
            return self._take(self.grid.unravel(index))
        if len(index) != len(self.grid.axes):
            raise PatchError(
                f"index must have one integer for each of the dims {self.grid.dims}, got "
                f"{shown(index)}"
            )
        return self._take(self.grid.index(dict(zip(self.grid.dims, index, strict=True))))

    def isel(self, /, indexers: Mapping[Any, int] | None = None, **kwargs: int) -> T:
        """Take one patch by its index along every dim of the grid.

        Parameters
        ----------
        indexers, **kwargs
            An integer for every dim; a negative one counts from the end.

        Returns
        -------
        DataArray or Dataset
            On the image's own dims, with its labels, and ``{dim}_index`` (int64), the source index
            of every sample. Outside the image the samples are `fill_value`, and labels go on where
            those of the dim are evenly spaced; others are missing (NaN, NaT, None). Lazy if the
            image is a dask array, in memory otherwise; only the chunks under the patch are read.

        Raises
        ------
        PatchError
            If a dim is unknown or left out, or an index is not an integer.
        PatchIndexError
            If an index lies outside the grid.
        """
        return self._take(self.grid.index(self._one_each("isel", indexers, kwargs)))

    def sel(
        self,
        /,
        indexers: Mapping[Any, Any] | None = None,
        method: str | None = None,
        tolerance: Any = None,
        **kwargs: Any,
    ) -> T:
        """Take patches by the labels of their centers along every dim of the grid.

        Parameters
        ----------
        indexers, **kwargs
            A label for every dim, or several: an array takes patches along the dim, DataArrays that
            share a dim take them pointwise, as in xarray.
        method, tolerance
            As in `xarray.DataArray.sel`; ``method="nearest"`` takes the patch whose center is the
            nearest to the label. A label outside the image must then lie within `tolerance`, half a
            stride if there is none.

        Returns
        -------
        DataArray or Dataset
            As `isel` for one patch; as ``extract().sel(...)`` for several, of which no others are
            taken.

        Raises
        ------
        PatchError
            If a dim is unknown, left out or has no coord, or if a label is not that of exactly one
            patch.

        Examples
        --------
        >>> image = xr.DataArray(np.arange(9), {"x": np.arange(9) / 2})
        >>> p = image.patches(x=3)
        >>> p.sel(x=2.0).values
        array([3, 4, 5])
        >>> p.sel(x=[3.5, 0.5]).values
        array([[6, 7, 8],
               [0, 1, 2]])
        """
        method = as_choice("method", method, single.METHODS)
        at = {
            dim: single.find(
                self._image.dataset.coords,
                self.grid[dim],
                self._image.lines,
                label,
                method,
                tolerance,
            )
            for dim, label in self._one_each("sel", indexers, kwargs).items()
        }
        if any(numbers.ndim for numbers in at.values()):
            return self._take_several(at)
        return self._take(self.grid.index({dim: int(number) for dim, number in at.items()}))

    def __repr__(self) -> str:
        return text.text(self.source, self.grid, self._fills(), self.nbytes)

    def _repr_html_(self) -> str:
        return text.html(self.source, self.grid, self._fills(), self.nbytes)

    def _fills(self) -> dict[Hashable, str]:
        """Say by variable which value padding has, and why."""
        return {
            name: f"{value} ({self._image.fill_reasons[name]})"
            for name, value in self._image.fill_values.items()
        }

    @cached_property
    def _indexed(self) -> xr.Dataset:
        """The image with room for ``{dim}_index`` (int64): a coord that holds one number."""
        names = [f"{dim}_index" for dim in self.grid.dims]
        labels.check_names(self._image.dataset, names)
        dataset = self._image.dataset
        for name, variable, _ in self._image.variables():
            if is_dask(held(variable)):
                dataset = dataset.assign({name: checked_lazy(variable)})
        room = (
            xr.Variable((axis.dim,), np.broadcast_to(np.int64(0), axis.length))
            for axis in self.grid
        )
        return dataset.assign_coords(dict(zip(names, room, strict=True)))

    def _take(self, index: tuple[int, ...], part: single.Part | None = None) -> T:
        part = part or (self._indexed, dict.fromkeys(self.grid.dims, 0))
        samples = {axis.dim: axis.samples(i) for axis, i in zip(self.grid.axes, index, strict=True)}
        ends = ((axis.length, samples[axis.dim]) for axis in self.grid)
        inside = all(of[0] >= 0 and of[-1] < length for length, of in ends)
        known = {} if inside else self._image.lines  # which looks at every label of the image
        return self._image.as_source(
            single.take_patch(part, self._image.fill_values, samples, known)
        )

    def _take_several(self, at: Mapping[Hashable, xr.Variable]) -> T:
        coords = self._image.coords("center").to_dataset().isel(at).coords
        made = {
            name: single.take_patches(
                self._indexed, name, fill_value, self.grid, self._image.lines, at
            )
            for name, fill_value in self._image.fill_values.items()
        }
        return self._image.with_variables(made, coords)

    def _one_each(
        self, method: str, indexers: Mapping[Any, Any] | None, kwargs: Mapping[str, Any]
    ) -> dict[Hashable, Any]:
        merged: dict[Hashable, Any] = merge(method, indexers, kwargs)
        if set(merged) != set(self.grid.dims):
            raise PatchError(
                f"{method} must name each of the dims {self.grid.dims} once, got "
                f"{shown((*merged,))}"
            )
        return merged
