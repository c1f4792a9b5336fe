"""An image that is cut into patches: a Dataset, or the DataArray that one stands for."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import xarray as xr

from xpatches.arguments import as_mapping, check_among, shown
from xpatches.dtypes import Array, as_fill_value
from xpatches.errors import PatchError
from xpatches.geometry.grid import PatchGrid, grid_of
from xpatches.images import labels
from xpatches.images.even_labels import Line
from xpatches.images.packing import default_fill, named_by_links
from xpatches.images.samples import check_dims, check_held, check_variable

T = TypeVar("T", xr.DataArray, xr.Dataset)

_ARRAY = "<this-array>"
"""Name of a DataArray's variable in the Dataset that stands for it."""
_MOST_DIMS = 31
"""Of an image: those of its patches and one more, along which they lie, are twice as many."""
_ADDED = ("patch", "origin")
"""Ends of the names that an extraction adds for every dim."""


@dataclass(frozen=True, eq=False)
class Image(Generic[T]):
    """An image and its patches; all work is done on a Dataset, and given back as what it is."""

    source: T
    """What the user gave."""
    grid: PatchGrid
    dataset: xr.Dataset
    """The source, or what stands for it."""
    fill_values: Mapping[Hashable, Array]
    """For every variable that is cut, by name."""
    fill_reasons: Mapping[Hashable, str]
    """Why they are that."""

    @property
    def is_array(self) -> bool:
        """Whether the source is a DataArray."""
        return isinstance(self.source, xr.DataArray)

    def variables(self) -> Iterator[tuple[Hashable, xr.Variable, Array]]:
        """Iterate over the variables that are cut into patches, with their fill values."""
        for name, fill_value in self.fill_values.items():
            yield name, self.dataset.variables[name], fill_value

    def name_of(self, name: Hashable) -> Hashable:
        """Give the name that the user knows a variable by; None for none."""
        return self.source.name if isinstance(self.source, xr.DataArray) else name

    def stored(self, name: Hashable) -> str:
        """Give the name that a variable has in a store."""
        what = "a variable"
        if self.is_array and name == _ARRAY:
            what, name = "the image", self.name_of(name)
            name = "patches" if name is None else name
        if not isinstance(name, str):
            raise PatchError(
                f"the name of {what} must be a string to be stored, got {shown(name)}; rename it"
            )
        return name

    def named(self, name: Hashable) -> "Image[Any]":
        """Call a DataArray otherwise; None leaves its name."""
        if name is None or not isinstance(self.source, xr.DataArray):
            return self
        return replace(self, source=self.source.rename(name))

    @cached_property
    def lines(self) -> dict[Hashable, Line]:
        """The coords along the grid whose labels are evenly spaced."""
        return labels.lines_of(self.dataset.coords, self.grid.dims)

    def coords(self, label: str) -> xr.Coordinates:
        """Give all patches their coords."""
        return labels.patch_coords(self.dataset.coords, self.grid, label, self.lines)

    def coords_of_reduced(self, label: str) -> xr.Coordinates:
        """Give all patches their coords, without those of samples inside them."""
        coords = self.coords(label).to_dataset()
        return coords.drop_vars([f"{dim}_patch" for dim in self.grid.dims]).coords

    def joined_dims(self) -> dict[Hashable, int]:
        """Dims that flattening joins, with their lengths; the same for every variable."""
        joined = {
            tuple(labels.joined_dims(variable, self.grid).items())
            for _, variable, _ in self.variables()
        }
        dims = dict(joined.pop())
        kept = self.dataset.data_vars.keys() - self.fill_values.keys()
        shared = [name for name in kept if not dims.keys().isdisjoint(self.dataset[name].dims)]
        if joined or shared:
            raise PatchError(
                f"flatten='patch' joins the dims {tuple(dims)}, and the Dataset has variables "
                "without all of them or that are no patches; flatten each variable by itself"
            )
        labels.check_names(self.dataset, [labels.FLAT_DIM])
        return dims

    def with_variables(
        self, variables: Mapping[Hashable, xr.Variable], coords: xr.Coordinates
    ) -> T:
        """Join what was made of variables to the untouched ones, and give what the source is."""
        coords = labels.chunk_alike(coords, variables.values())
        every = {**self.dataset.data_vars.variables, **variables}
        return self.as_source(xr.Dataset(every, coords, self.source.attrs))

    def as_source(self, dataset: xr.Dataset) -> T:
        """Give what the source is: a Dataset, or the array that it stands for."""
        if isinstance(self.source, xr.Dataset):
            return dataset
        array = dataset[_ARRAY]
        array.name = self.source.name
        return array

    def by_variable(self, plans: Mapping[Hashable, dict[str, Any]]) -> dict[Any, Any]:
        """Give what is said of every variable of a Dataset, or of the only one of an array."""
        return plans[_ARRAY] if self.is_array else dict(plans)


def as_image(
    source: T,
    sizes: Mapping[Hashable, int],
    stride: Any,
    rate: Any,
    padding: Any,
    fill_value: Any,
) -> Image[T]:
    """Cut an image, as the accessor documents.

    Raises
    ------
    PatchError
        If an argument does not fit, no patch fits on the image, or samples cannot be copied.
    """
    check_dims("the image", tuple(source.dims))
    source = source.copy(deep=False)  # what is done to the image later changes nothing
    dataset = source.to_dataset(name=_ARRAY) if isinstance(source, xr.DataArray) else source
    dataset = dataset.set_coords(named_by_links(dataset))
    lengths = {dim: dataset.sizes[dim] for dim in source.dims}
    check_among("size", sizes, lengths)
    arrays = []
    for name, variable in dataset.data_vars.variables.items():
        if not sizes.keys().isdisjoint(variable.dims):
            what = "the image" if name == _ARRAY else shown(name)
            check_variable(what, variable)
            if variable.ndim > _MOST_DIMS:
                raise PatchError(
                    f"{what} must have at most {_MOST_DIMS} dims, got {variable.ndim}; patches "
                    "have up to twice as many, and NumPy holds 64: squeeze or stack some"
                )
            arrays.append(variable.dims)
    for name, variable in dataset.coords.variables.items():
        if not sizes.keys().isdisjoint(variable.dims):
            check_held(f"coord {shown(name)}", variable)
    grid = grid_of(lengths, arrays, sizes, stride, rate, padding)
    labels.check_names(dataset, (f"{dim}_{word}" for dim in sizes for word in _ADDED))
    fills = _fills(dataset, grid, fill_value)
    values = {name: value for name, (value, _) in fills.items()}
    return Image(source, grid, dataset, values, {name: why for name, (_, why) in fills.items()})


def _fills(
    dataset: xr.Dataset, grid: PatchGrid, fill_value: Any
) -> dict[Hashable, tuple[Array, str]]:
    """Give every variable that is to be cut its fill value, and why it is that."""
    names = [name for name, v in dataset.data_vars.items() if not set(v.dims).isdisjoint(grid.dims)]
    if not names:
        raise PatchError(f"no variable of the Dataset has any of the dims {grid.dims}; name others")
    given = dict.fromkeys(names, fill_value)
    if isinstance(fill_value, Mapping) and names != [_ARRAY]:
        given = as_mapping("fill_value", fill_value, "from variable to value")
        check_among("fill_value", given, names, "variables")
    values = {}
    for name in names:
        variable = dataset.variables[name]
        argument = "fill_value" if name == _ARRAY else f"fill_value for {name!r}"
        if given.get(name) is None:
            values[name] = default_fill(variable)
        else:
            values[name] = as_fill_value(given[name], variable.dtype, argument), "given"
    return values
