"""Maps: a model run on the patches of an image, and what it returns stitched into an image."""

from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from math import prod
from typing import Any

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
from xpatches.geometry.search import check_tasks
from xpatches.images import labels
from xpatches.images.labels import SAMPLE_DIM
from xpatches.images.packing import kept_attrs, of_another_quantity
from xpatches.images.relabel import resampled_coords
from xpatches.images.samples import chunk_lazy, in_memory, sliceable
from xpatches.mapping.model import Function, Made, Model, map_block
from xpatches.mapping.plan import MapCosts, MapPlan, block_lengths
from xpatches.stitching.labelled import as_reduction, dtype_of, stitching_of
from xpatches.stitching.overlay import Stitching
from xpatches.stitching.tapers import Taper

_KEYS = ("dims", "sizes", "dtype", "scale", "name", "attrs", "nodata")
"""What `output` may declare."""


@dataclass(frozen=True)
class Answer:
    """What the numbers of a result are."""

    name: Hashable
    """None for the image's."""
    attrs: Mapping[Any, Any]
    nodata: Array | None
    """0-d, of the dtype that the model returns."""


@dataclass(frozen=True)
class Outline:
    """A variable, the patches that are cut of it, and the lengths of what a model makes of them."""

    variable: xr.Variable
    grid: PatchGrid
    covers: tuple[AxisCover, ...]
    """What the model makes, along every spatial dim."""
    made: Made
    dtype: np.dtype[Any]
    """Of the result."""
    batch_size: int
    answer: Answer

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Dims of the result."""
        return self.made.dims

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths."""
        lengths = {cover.dim: cover.length for cover in self.covers}
        made = zip(self.dims, self.made.shape, strict=True)
        return tuple(lengths.get(dim, n) for dim, n in made)

    @property
    def in_memory(self) -> bool:
        """Whether the samples are."""
        return in_memory(self.variable)

    @cached_property
    def chunked(self) -> Any:
        """The samples as a dask array, in the chunks of the storage."""
        return chunk_lazy(self.variable).data

    @property
    def read(self) -> Callable[[tuple[slice, ...]], Array] | None:
        """What reads regions, where the variable was opened and nothing was done to it since."""
        return sliceable(self.variable, self.chunked)

    def plan(self, max_bytes: int, units: Mapping[Hashable, int] | None = None) -> MapPlan:
        """Choose blocks, as multiples of a stride or of these units."""
        steps = [(units or {}).get(cover.dim, cover.stride) for cover in self.covers]
        return self._planned(block_lengths(self._costs, steps, max_bytes))

    def check(self, plan: MapPlan, max_bytes: int) -> None:
        """Refuse a plan whose tasks do not fit the budget.

        Raises
        ------
        PatchError
            It says how much is needed.
        """
        needed = self.nbytes(plan.lengths)
        if needed > max_bytes:
            block = dict(zip(self.grid.dims, plan.lengths, strict=True))
            raise PatchError(
                f"max_bytes must be >= {needed}, for a block of {block} and the patches over it, "
                f"got {max_bytes}; raise it"
            )

    def check_size(self, max_bytes: int | str | None) -> None:
        """Refuse too many tasks, or a result that memory cannot hold, before patches get labels.

        Raises
        ------
        PatchError
            It says what to do.
        MemoryError, ValueError
            What NumPy raises for the result of an image in memory.
        """
        if self.in_memory:
            np.empty(self.shape, self.dtype)
            return
        from xpatches.lazy.sources import as_budget  # dask is loaded for lazy images only

        budget = as_budget(max_bytes)
        plan = self.plan(budget)
        self.check(plan, budget)
        check_tasks(prod(plan.counts))

    def whole(self) -> MapPlan:
        """Plan one block."""
        return self._planned(tuple(cover.length for cover in self.covers))

    def nbytes(self, lengths: Sequence[int]) -> int:
        """Count the bytes of a task with a block of these lengths along the spatial dims."""
        return self._costs.nbytes(lengths)

    def bytes_per_task(self, plan: MapPlan) -> int:
        """Project the peak of a task, without what the model takes for itself."""
        return self._costs.nbytes_with(plan.lengths, self.batch_size, self.given_bytes)

    @property
    def given_bytes(self) -> int:
        """Bytes of a patch of the image."""
        nbytes: int = self.variable.dtype.itemsize * self._others * prod(self.grid.sizes.values())
        return nbytes

    def gathered_bytes(self, lengths: Sequence[int]) -> int:
        """Count the bytes of a task that makes such a block from stored runs."""
        over = (
            cover.size * cover.most_over(n) for cover, n in zip(self.covers, lengths, strict=True)
        )
        # Patches twice: encoded, and put together.
        return 2 * self._costs.made * prod(over) + self._costs.result * prod(lengths)

    @property
    def _others(self) -> int:
        """Samples of the image per sample along the spatial dims."""
        return prod(n for dim, n in self.variable.sizes.items() if dim not in self.grid.dims)

    @cached_property
    def _costs(self) -> MapCosts:
        # What is exchanged is held twice: in parts, and put together.
        copies = 1 if self.in_memory or self.read is not None else 2
        read = copies * self.variable.dtype.itemsize * self._others
        new = prod(self._new.values())
        made, result = self.made.dtype.itemsize * new, self.dtype.itemsize * new
        return MapCosts(self.grid.axes, self.covers, read, made, result)

    @property
    def _new(self) -> dict[Hashable, int]:
        """Lengths of the dims of the result that are not spatial."""
        made = zip(self.dims, self.made.shape, strict=True)
        return {dim: n for dim, n in made if dim not in self.grid.dims}

    def _planned(self, lengths: tuple[int, ...]) -> MapPlan:
        variable = self.variable
        chunks = tuple((n,) for n in variable.shape) if self.in_memory else self.chunked.chunks
        axes = tuple(variable.dims.index(dim) for dim in self.grid.dims)
        return MapPlan(chunks, axes, self.grid.axes, self.covers, self.dims, self._new, lengths)


@dataclass(frozen=True)
class Mapped(Outline):
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
        if self.in_memory:
            plan = self.whole()
            region = tuple(slice(*of[0]) for of in plan.regions)
            runs = [of[0][0][1] for axis, of in enumerate(plan.takes) if axis in plan.axes]
            return self.kernel(self.variable.to_numpy()[region], runs)
        from xpatches.lazy import graphs as lazy  # dask is loaded for lazy images only
        from xpatches.lazy.sources import as_budget  # dask is loaded for lazy images only

        budget = as_budget(max_bytes)
        plan = self.plan(budget)
        self.check(plan, budget)
        read, dtype = self.read, self.stitching.dtype
        if read is None:
            return lazy.exchange(self.chunked, plan, self.kernel, dtype, large=True)
        return lazy.read(read, self.chunked.name, plan, self.kernel, dtype)


def as_mapped(
    name: Hashable,
    outline: Outline,
    coords: xr.Coordinates,
    fill_value: Array,
    function: Function,
    *,
    taper: Taper | None,
    reduce: str | None,
    labelled: bool,
    missing: Any,
    skipna: bool | None,
) -> Mapped:
    """Normalise the arguments of `Patches.map` for one variable.

    Parameters
    ----------
    name
        Of the variable; None for none.
    outline
        The variable, and what the model returns.
    coords
        Of the image.
    fill_value
        The value of padding.
    function
        The model.
    taper, reduce, labelled, missing, skipna
        As in `Patches.map`, where `missing` is `fill_value`.

    Raises
    ------
    PatchError
        If one of them does not fit.
    """
    variable, grid, covers, made = outline.variable, outline.grid, outline.covers, outline.made
    how, taper = as_reduction(reduce, taper, "hann", covers, made.dtype, name)
    nodata = outline.answer.nodata
    stitching = stitching_of(covers, made.dtype, name, taper, how, missing, skipna, nodata=nodata)
    patches = labels.patch_coords(coords, grid, "center").to_dataset()
    fitting = {*variable.dims, *(f"{dim}_patch" for dim in grid.dims)}
    kept = [key for key, of in patches.variables.items() if fitting.issuperset(of.dims)]
    model = Model(
        function, outline.batch_size, labelled, variable.dims, grid, patches[kept].coords,
        name, variable.attrs if labelled else {}, fill_value, made,
    )  # fmt: skip
    parts = (variable, grid, covers, made, stitching.dtype, outline.batch_size, outline.answer)
    return Mapped(*parts, model, stitching)


def as_output(output: object) -> dict[str, Any]:
    """Normalise the words of `output`."""
    given = as_mapping("output", {} if output is None else output, "from word to value")
    check_among("output", given, _KEYS, "words")
    return {word: value for word, value in given.items() if value is not None}


def as_outline(
    variable: xr.Variable,
    grid: PatchGrid,
    coords: Container[Hashable],
    output: Mapping[str, Any],
    batch_size: int,
    reduce: str | None,
) -> Outline:
    """Normalise what a model is given and returns.

    Parameters
    ----------
    variable, grid
        The samples, and the patches along those dims of the grid that it has.
    coords
        Names of the image's.
    output, batch_size, reduce
        As in `Patches.map`.

    Raises
    ------
    PatchError
        If they do not fit.
    """
    dims = variable.dims
    if "dims" in output:
        dims = as_tuple("output dims", output["dims"], "several dims, ('class', 'y', 'x')")
        dims = tuple(
            dim if among(dim, variable.dims) else as_name("each of output dims", dim)
            for dim in dims
        )
    if len(set(dims)) < len(dims) or not set(grid.dims) <= set(dims):
        raise PatchError(
            f"output dims must name each of {grid.dims} once, and others, in the order in which "
            f"func returns them behind the batch, got {shown(dims)}"
        )
    sizes = as_mapping("output sizes", output.get("sizes", {}), "from dim to length")
    check_among("output sizes", sizes, dims)
    scales = by_dim("output scale", output.get("scale"), grid.dims)
    taken = {SAMPLE_DIM, *(f"{dim}_patch" for dim in grid.dims)} - set(variable.dims)
    for dim in dims:
        if dim in taken or (dim not in variable.dims and dim in coords):
            raise PatchError(
                f"output dims names {dim!r}, which is taken by a coord of the image or of patches; "
                "name it otherwise"
            )
    covers = []
    for axis in grid:
        size = sizes.get(axis.dim)
        if size is not None:
            size = as_integer(f"output size on {axis.dim!r}", size, 1)
        scale = as_scale(f"output scale on {axis.dim!r}", scales.get(axis.dim, 1))
        covers.append(cover_of(axis, scale, size))
    shape = []
    for dim in dims:
        cover = next((cover for cover in covers if cover.dim == dim), None)
        if cover is not None:
            shape.append(cover.size)
        elif dim in sizes:
            shape.append(as_integer(f"output size on {dim!r}", sizes[dim], 1))
        elif dim in variable.dims:
            shape.append(variable.sizes[dim])
        else:
            raise PatchError(f"output sizes must hold the new dim {dim!r}, got {dict(sizes)}")
    dtype = as_dtype("output dtype", output.get("dtype", variable.dtype))
    check_dtype("the output", dtype)
    offsets = {
        axis.dim: axis.offsets[(axis.size - cover.size) // 2 :][: cover.size]
        for axis, cover in zip(grid, covers, strict=True)
        if cover.stride == axis.stride
    }
    made = Made(dims, tuple(shape), dtype, offsets)
    result = dtype_of(dtype, reduce)
    answer = _as_answer(output, dtype)
    return Outline(variable, grid, tuple(covers), made, result, batch_size, answer)


def _as_answer(output: Mapping[str, Any], dtype: np.dtype[Any]) -> Answer:
    """Normalise what `output` says of the numbers of a result."""
    name, nodata = output.get("name"), output.get("nodata")
    name = None if name is None else as_name("output name", name)
    attrs = as_mapping("output attrs", output.get("attrs", {}), "from name to value")
    if nodata is None:
        return Answer(name, attrs, None)
    if "_FillValue" in attrs:
        raise PatchError("output nodata becomes the attr '_FillValue', which attrs has too")
    value = as_fill_value(nodata, dtype, "output nodata")
    return Answer(
        name, {**attrs, "_FillValue": value.item() if dtype.kind == "b" else value[()]}, value
    )


def plan_map(outline: Outline, max_bytes: int | str | None) -> dict[str, Any]:
    """Say how a map will work, as `Patches.plan` documents."""
    if outline.in_memory:
        plan = outline.whole()
    else:
        from xpatches.lazy.sources import as_budget  # dask is loaded for lazy images only

        plan = outline.plan(as_budget(max_bytes))
    return {
        "blocks": prod(plan.counts),
        "chunks": dict(zip(outline.dims, map(list, plan.out_chunks), strict=True)),
        "bytes_per_task": outline.bytes_per_task(plan),
        "runs": plan.runs,
        "runs_per_patch": plan.runs_per_patch,
    }


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
        made = Fraction(scale if 0.5 / _LARGEST < about < 2 * _LARGEST else 0)
        made = made.limit_denominator(_LARGEST)
        made = Fraction(int(made.numerator), int(made.denominator))  # NumPy's overflow
    except Exception:  # whatever a type raises that is no number
        made = Fraction(0)
    if not 0 < made <= _LARGEST or 1 not in (made.numerator, made.denominator):
        raise PatchError(
            f"{what} must be an integer or 1 divided by one, samples returned per sample of the "
            f"patch, got {shown(scale)}"
        )
    return made


def mapped_coords(dataset: xr.Dataset, outputs: Mapping[Hashable, Mapped]) -> xr.Coordinates:
    """Label what was made of an image, as far as the image's coords still fit.

    Raises
    ------
    PatchError
        If variables of the result would have different lengths along a dim.
    """
    sizes: dict[Hashable, int] = {}
    for name, variable in dataset.data_vars.variables.items():
        output = outputs.get(name, variable)
        for dim, n in zip(output.dims, output.shape, strict=True):
            if sizes.setdefault(dim, n) != n:
                raise PatchError(
                    f"all variables must have the same length along {dim!r}, got {sizes[dim]} and "
                    f"{n}; rename it in output, or map variables by themselves"
                )
    gone = {dim for variable in dataset.data_vars.values() for dim in variable.dims} - sizes.keys()
    steps = {
        axis.dim: axis.stride / cover.stride
        for mapped in outputs.values()
        for axis, cover in zip(mapped.grid, mapped.covers, strict=True)
        if axis.stride != cover.stride
    }
    return resampled_coords(dataset.coords, {**dict.fromkeys(gone), **sizes}, steps)
