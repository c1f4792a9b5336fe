"""Maps: a model run on the patches of an image, and what it returns stitched into an image."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import xarray as xr

from xpatches.dtypes import Array
from xpatches.errors import PatchError
from xpatches.images import labels
from xpatches.images.packing import kept_attrs, of_another_quantity
from xpatches.images.relabel import resampled_coords
from xpatches.mapping.kernel import map_block
from xpatches.mapping.model import Function, Model
from xpatches.mapping.output import OutputPlan
from xpatches.stitching.choose import stitching_of
from xpatches.stitching.kernel import Stitching
from xpatches.stitching.tapers import Taper


@dataclass(frozen=True)
class Mapped(OutputPlan):
    """A variable, and the model that is mapped over its patches."""

    model: Model
    stitching: Stitching

    @property
    def attrs(self) -> Mapping[Any, Any]:
        """Attrs of the result: of the image's those that fit it, and what `output` says."""
        return {**of_another_quantity(kept_attrs(self.variable.attrs)), **self.answer.attrs}

    @property
    def kernel(self) -> Callable[[Array, Sequence[Any]], Array]:
        """What makes a block."""
        return partial(map_block, model=self.model, stitching=self.stitching)

    def compute(self, max_bytes: int | str | None) -> Any:
        """Make the image: at once where the samples are in memory, else lazily."""
        return self.source.run(self.map_plan(max_bytes).blocks, self.kernel, self.dtype)


@dataclass(frozen=True)
class MapOptions:
    """Arguments of `Patches.map` that are the same for all variables."""

    function: Function
    labelled: bool
    taper: Taper | None
    reduce: str | None
    fill_value: Any
    """Of samples that no patch holds."""
    skipna: bool | None


def as_mapped(
    name: Hashable,
    plan: OutputPlan,
    coords: xr.Coordinates,
    fill_value: Array,
    options: MapOptions,
) -> Mapped:
    """Normalise the arguments of `Patches.map` for one variable.

    Parameters
    ----------
    name
        Of the variable; None for none.
    plan
        The variable, and what the model returns.
    coords
        Of the image.
    fill_value
        The value of padding.
    options
        What is the same for all variables.

    Raises
    ------
    PatchError
        If one of them does not fit.
    """
    variable, grid, output, nodata = plan.variable, plan.grid, plan.output, plan.answer.nodata
    patches = (output.covers, output.dtype, name)
    stitching = stitching_of(
        *patches, reduce=options.reduce, taper=options.taper, fill_value=options.fill_value,
        skipna=options.skipna, default="hann", nodata=nodata,
    )  # fmt: skip
    labelled = labels.patch_coords(coords, grid, "center").to_dataset()
    dims = {*variable.dims, *(f"{dim}_patch" for dim in grid.dims)}
    kept = [key for key, coord in labelled.variables.items() if dims.issuperset(coord.dims)]
    model = Model(
        options.function, plan.batch_size, options.labelled, variable.dims, grid,
        labelled[kept].coords, name, variable.attrs if options.labelled else {}, fill_value, output,
    )  # fmt: skip
    return Mapped(
        variable, grid, output, plan.dtype, plan.batch_size, plan.answer, model, stitching
    )


def mapped_coords(dataset: xr.Dataset, outputs: Mapping[Hashable, Mapped]) -> xr.Coordinates:
    """Label what was made of an image, as far as the image's coords still fit.

    Raises
    ------
    PatchError
        If variables of the result would have different lengths along a dim.
    """
    sizes: dict[Hashable, int] = {}
    for name, variable in dataset.data_vars.variables.items():
        result = outputs.get(name, variable)
        for dim, n in zip(result.dims, result.shape, strict=True):
            if sizes.setdefault(dim, n) != n:
                raise PatchError(
                    f"all variables must have the same length along {dim!r}, got {sizes[dim]} and "
                    f"{n}; rename it in output, or map variables by themselves"
                )
    gone = {dim for variable in dataset.data_vars.values() for dim in variable.dims} - sizes.keys()
    steps = {
        axis.dim: axis.stride / cover.stride
        for mapped in outputs.values()
        for axis, cover in zip(mapped.grid, mapped.output.covers, strict=True)
        if axis.stride != cover.stride
    }
    return resampled_coords(dataset.coords, {**dict.fromkeys(gone), **sizes}, steps)
