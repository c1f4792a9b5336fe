"""What a model returns for a patch, as the user declares it, and the image that is made of that."""

from collections.abc import Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import Any, TypedDict

import numpy as np
import xarray as xr

from xpatches.arguments import (
    among,
    as_integer,
    as_mapping,
    as_name,
    as_tuple,
    by_dim,
    check_among,
    shown,
)
from xpatches.dtypes import Array, as_dtype, as_fill_value, check_dtype
from xpatches.errors import PatchError
from xpatches.geometry.coverage import AxisCover, cover_of
from xpatches.geometry.grid import PatchGrid
from xpatches.geometry.lengths import check_tasks
from xpatches.images.labels import SAMPLE_DIM
from xpatches.images.samples import Source, source_of
from xpatches.mapping.plan import MapCosts, MapPlan, block_lengths
from xpatches.stitching.choose import dtype_of


class Output(TypedDict, total=False):
    """What a model returns for a patch, where that differs from the patch.

    Parameters
    ----------
    dims
        Behind the batch, in order: all dims along which patches are cut, and others, new ones or
        the image's.
    sizes
        Lengths by dim: of new dims, and of patches that come back smaller, as many samples cut off
        on both sides.
    scale
        Samples returned per sample of the patch, an integer or 1 divided by one, for all dims or a
        mapping.
    dtype
        That of the image if it is left out.
    name
        Of the result, for a DataArray.
    attrs
        Of the result. Of the image's attrs it keeps those that say nothing of the numbers: no
        units, names and flags, and nothing of how they are stored.
    nodata
        Its value of missing samples, which becomes the attr ``_FillValue`` and the `fill_value`.
    """

    dims: Sequence[Hashable]
    sizes: Mapping[Any, int]
    dtype: Any
    scale: Any
    name: str
    attrs: Mapping[Any, Any]
    nodata: Any


@dataclass(frozen=True)
class ModelOutput:
    """What a model returns for a patch."""

    dims: tuple[Hashable, ...]
    """Dims, in order; the spatial ones are the image's."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    covers: tuple[AxisCover, ...]
    """Where that lies in the image that is made, along every spatial dim."""

    @property
    def sizes(self) -> dict[Hashable, int]:
        """Lengths by dim."""
        return dict(zip(self.dims, self.shape, strict=True))

    @property
    def others(self) -> dict[Hashable, int]:
        """Lengths of the dims that are not spatial."""
        spatial = {cover.dim for cover in self.covers}
        return {dim: n for dim, n in self.sizes.items() if dim not in spatial}


@dataclass(frozen=True)
class Answer:
    """What the numbers of a result are."""

    name: Hashable
    """None for the image's."""
    attrs: Mapping[Any, Any]
    nodata: Array | None
    """0-d, of the dtype that the model returns."""


@dataclass(frozen=True)
class OutputPlan:
    """An image that is to be made of what a model returns for the patches of a variable."""

    variable: xr.Variable
    grid: PatchGrid
    """The patches that are cut of it."""
    output: ModelOutput
    dtype: np.dtype[Any]
    """Of the image that is made."""
    batch_size: int
    answer: Answer

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Dims of the image that is made."""
        return self.output.dims

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths."""
        lengths = {cover.dim: cover.length for cover in self.output.covers}
        return tuple((self.output.sizes | lengths).values())

    @cached_property
    def source(self) -> Source:
        """Where the samples are."""
        return source_of(self.variable)

    @cached_property
    def costs(self) -> MapCosts:
        """Bytes of a task."""
        others = prod(n for dim, n in self.variable.sizes.items() if dim not in self.grid.dims)
        sample = self.variable.dtype.itemsize * others
        # What is exchanged is held twice: in parts, and put together.
        copies = 1 if self.source.in_memory or self.source.read is not None else 2
        new = prod(self.output.others.values())
        return MapCosts(
            self.grid.axes,
            self.output.covers,
            copies * sample,
            self.output.dtype.itemsize * new,
            self.dtype.itemsize * new,
            sample * prod(self.grid.sizes.values()),
        )

    def map_plan(
        self,
        max_bytes: int | str | None,
        units: Mapping[Hashable, int] = MappingProxyType({}),
        *,
        fits: bool = True,
    ) -> MapPlan:
        """Choose blocks, as multiples of a stride or of these units.

        One block, for an image in memory without units.

        Raises
        ------
        PatchError
            If a task must fit the budget, and does not: it says how much is needed.
        """
        variable, output, grids = self.variable, self.output, self.grid.axes
        lengths = tuple(cover.length for cover in output.covers)
        if units or not self.source.in_memory:
            from xpatches.lazy.sources import as_budget  # dask is loaded for lazy images only

            budget = as_budget(max_bytes)
            steps = [units.get(cover.dim, cover.stride) for cover in output.covers]
            lengths = block_lengths(self.costs, steps, budget)
            needed = self.costs.nbytes(lengths)
            if fits and needed > budget:
                block = dict(zip(self.grid.dims, lengths, strict=True))
                raise PatchError(
                    f"max_bytes must be >= {needed}, for a block of {block} and the patches over "
                    f"it, got {budget}; raise it"
                )
        chunks = self.source.chunks
        axes = tuple(map(variable.dims.index, self.grid.dims))
        return MapPlan(chunks, axes, grids, output.covers, output.dims, output.others, lengths)

    def check_size(self, max_bytes: int | str | None) -> None:
        """Refuse too many tasks, or a result that memory cannot hold, before patches get labels.

        Raises
        ------
        PatchError
            It says what to do.
        MemoryError, ValueError
            What NumPy raises for the result of an image in memory.
        """
        if self.source.in_memory:
            np.empty(self.shape, self.dtype)
        else:
            check_tasks(prod(self.map_plan(max_bytes).counts))

    def bytes_per_task(self, plan: MapPlan) -> int:
        """Project the peak of a task, without what the model takes for itself."""
        return self.costs.nbytes_with(plan.lengths, self.batch_size)


def plan_map(plan: OutputPlan, max_bytes: int | str | None) -> dict[str, Any]:
    """Say how a map will work, as `Patches.plan` documents."""
    chosen = plan.map_plan(max_bytes, fits=False)
    return {
        "blocks": prod(chosen.counts),
        "chunks": dict(zip(plan.dims, map(list, chosen.blocks.out_chunks), strict=True)),
        "bytes_per_task": plan.bytes_per_task(chosen),
        "runs": chosen.runs,
        "runs_per_patch": chosen.runs_per_patch,
    }


def as_output(output: object) -> dict[str, Any]:
    """Normalise the words of `output`."""
    words = as_mapping("output", {} if output is None else output, "from word to value")
    check_among("output", words, Output.__annotations__, "words")
    return {word: value for word, value in words.items() if value is not None}


def as_output_plan(
    variable: xr.Variable,
    grid: PatchGrid,
    coords: Container[Hashable],
    words: Mapping[str, Any],
    batch_size: int,
    reduce: str | None,
) -> OutputPlan:
    """Normalise what a model is given and returns.

    Parameters
    ----------
    variable, grid
        The samples, and the patches along those dims of the grid that it has.
    coords
        Names of the image's.
    words, batch_size, reduce
        As in `Patches.map`, where `words` is `output`.

    Raises
    ------
    PatchError
        If they do not fit.
    """
    dims = _as_dims(words.get("dims", variable.dims), variable, grid, coords)
    sizes = as_mapping("output sizes", words.get("sizes", {}), "from dim to length")
    check_among("output sizes", sizes, dims)
    lengths = {
        dim: as_integer(f"output size on {dim!r}", n, 1)
        for dim, n in sizes.items()
        if n is not None
    }
    scales = by_dim("output scale", words.get("scale"), grid.dims)
    covers = []
    for axis in grid:
        scale = as_scale(f"output scale on {axis.dim!r}", scales.get(axis.dim, 1))
        covers.append(cover_of(axis, scale, lengths.get(axis.dim)))
    lengths = {**variable.sizes, **lengths, **{cover.dim: cover.size for cover in covers}}
    for dim in dims:
        if dim not in lengths:
            raise PatchError(f"output sizes must hold the new dim {dim!r}, got {sizes}")
    dtype = as_dtype("output dtype", words.get("dtype", variable.dtype))
    check_dtype("the output", dtype)
    shape = tuple(lengths[dim] for dim in dims)
    output, answer = ModelOutput(dims, shape, dtype, tuple(covers)), _as_answer(words, dtype)
    return OutputPlan(variable, grid, output, dtype_of(dtype, reduce), batch_size, answer)


def _as_dims(
    dims: object, variable: xr.Variable, grid: PatchGrid, coords: Container[Hashable]
) -> tuple[Hashable, ...]:
    """Normalise the dims that a model returns."""
    names = tuple(
        dim if among(dim, variable.dims) else as_name("each of output dims", dim)
        for dim in as_tuple("output dims", dims, "several dims, ('class', 'y', 'x')")
    )
    if len(set(names)) < len(names) or not set(grid.dims) <= set(names):
        raise PatchError(
            f"output dims must name each of {grid.dims} once, and others, in the order in which "
            f"func returns them behind the batch, got {shown(names)}"
        )
    taken = {SAMPLE_DIM, *(f"{dim}_patch" for dim in grid.dims)}
    for dim in names:
        if dim not in variable.dims and (dim in taken or dim in coords):
            raise PatchError(
                f"output dims names {dim!r}, which is taken by a coord of the image or of patches; "
                "name it otherwise"
            )
    return names


def _as_answer(words: Mapping[str, Any], dtype: np.dtype[Any]) -> Answer:
    """Normalise what `output` says of the numbers of a result."""
    name, nodata = words.get("name"), words.get("nodata")
    name = None if name is None else as_name("output name", name)
    attrs = as_mapping("output attrs", words.get("attrs", {}), "from name to value")
    if nodata is None:
        return Answer(name, attrs, None)
    if "_FillValue" in attrs:
        raise PatchError("output nodata becomes the attr '_FillValue', which attrs has too")
    value = as_fill_value(nodata, dtype, "output nodata")
    attrs["_FillValue"] = value.item() if dtype.kind == "b" else value[()]
    return Answer(name, attrs, value)


_LARGEST = 1 << 16
"""Scale, or what 1 is divided by."""


def as_scale(what: str, scale: Any) -> Fraction:
    """Normalise a scale: an integer, or 1 divided by one; a text says it as "2" or "1/2".

    Raises
    ------
    PatchError
        If it is something else.

    Examples
    --------
    >>> as_scale("scale", "1/4"), as_scale("scale", 0.25), as_scale("scale", 2)
    (Fraction(1, 4), Fraction(1, 4), Fraction(2, 1))
    """
    try:
        # Fractions of large exponents take minutes, floats do not; a text with "/" has none.
        about = 1.0 if isinstance(scale, str) and "/" in scale else float(scale)
        number = Fraction(scale if 0.5 / _LARGEST < about < 2 * _LARGEST else 0)
        number = number.limit_denominator(_LARGEST)
        number = Fraction(int(number.numerator), int(number.denominator))  # NumPy's overflow
    except Exception:  # whatever a type raises that is no number
        number = Fraction(0)
    if not 0 < number <= _LARGEST or 1 not in (number.numerator, number.denominator):
        raise PatchError(
            f"{what} must be an integer or 1 divided by one, samples returned per sample of the "
            f"patch, got {shown(scale)}"
        )
    return number
