"""Images that a model makes, written as jobs; and what it makes of single patches, on the way."""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches import labels, lazy
from xpatches.blocks import Part, Reader
from xpatches.datasets import Source, as_encoding, check_dims, write_dataset
from xpatches.errors import PatchError
from xpatches.gather import plan_gathering, stitched
from xpatches.jobs import Report
from xpatches.kernel import Kernel
from xpatches.layout import (
    BLOCKS,
    CHUNK,
    SAMPLE_DIM,
    SHARD,
    check_not_empty,
    given_lengths,
    given_shards,
)
from xpatches.located import Located
from xpatches.mapping import Mapped, Outline
from xpatches.parts import ImagePart, MadePart
from xpatches.spec import Spec, write_spec
from xpatches.states import check_state
from xpatches.storable import encoding_of
from xpatches.store import Folder, open_folder
from xpatches.variables import region_reader


@dataclass(frozen=True)
class _OfModel:
    """What a model makes of an image, in a store."""

    source: Source
    mapped: Mapping[Hashable, Mapped]
    max_bytes: int | str | None

    def attrs(self, name: Hashable) -> dict[Any, Any]:
        """Give the attrs of a variable."""
        return dict(self.mapped[name].attrs)

    def described(self) -> dict[str, Any]:
        """Describe how every variable is made."""
        about = {self.source.stored(name): self.about(of) for name, of in self.mapped.items()}
        return {"map": about}

    def about(self, mapped: Mapped) -> dict[str, Any]:
        """Describe the patches, the function by its name, and what it returns."""
        model, made = mapped.model, mapped.made
        return {
            "func": _name_of(model.function.func),
            "factory": model.function.factory,
            "labelled": model.labelled,
            "patches": write_spec(model.dims, mapped.grid, model.fill_value, "center", {}),
            "dims": list(made.dims),
            "shape": list(made.shape),
            "dtype": str(made.dtype),
        }

    def encoding(self, name: Hashable, given: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
        """Normalise how a variable is encoded."""
        stored = self.source.stored(name)
        return encoding_of(repr(stored), self.mapped[name].dtype, given.get(stored, {}))


@dataclass(frozen=True)
class Runs(_OfModel):
    """What a model makes of single patches."""

    layout = "runs"

    def parts(self, encoding: Mapping[Any, Mapping[str, Any]]) -> list[Part]:
        """Lay out what is made, in chunks and shards of as many patches as fit."""
        parts: list[Part] = []
        labels.check_names(self.source.dataset, [SAMPLE_DIM])
        for name, mapped in self.mapped.items():
            if mapped.grid.dims != self.source.grid.dims:
                raise PatchError(
                    f"materialize needs variables with all of the dims {self.source.grid.dims}, "
                    f"{name!r} has {mapped.grid.dims}; map it by itself"
                )
            made, variable, budget = mapped.made, mapped.variable, lazy.as_budget(self.max_bytes)
            _check_not_empty(self.source.stored(name), mapped)
            returned = made.dtype.itemsize * prod(made.shape)
            shard = min(SHARD // returned, 4 * budget // mapped.given_bytes)
            shard = max(1, min(shard, -(-mapped.grid.total // BLOCKS)))
            chunk = min(shard, max(1, CHUNK // returned))
            shard = shard // chunk * chunk
            parts.append(
                MadePart(
                    self.source.stored(name),
                    region_reader(variable),
                    mapped.model,
                    tuple(variable.dims.index(dim) for dim in mapped.grid.dims),
                    variable.shape,
                    (chunk, *made.shape),
                    (shard, *made.shape) if shard > chunk else None,
                    self.encoding(name, encoding),
                    variable.dtype.itemsize,
                    budget // 2,
                )
            )
        return parts

    def coords(self) -> xr.Coordinates:
        """Give no coords: the geometry is that of the map."""
        return xr.Coordinates()


@dataclass(frozen=True)
class Painting(_OfModel):
    """The image that a model makes."""

    labels: xr.Coordinates
    """Of the image."""
    chunks: Mapping[Any, int] | None
    shards: Mapping[Any, int] | bool | None
    runs: Mapping[Hashable, Located] | None = None
    """What the model made of single patches, where that is stored."""

    layout = "image"

    def parts(self, encoding: Mapping[Any, Mapping[str, Any]]) -> list[Part]:
        """Choose the blocks of every variable: whole chunks or shards."""
        parts: list[Part] = []
        for name, mapped in self.mapped.items():
            chunks, shards = self.objects(name, gathered=self.runs is not None)
            units = dict(zip(mapped.dims, shards or chunks, strict=True))
            read, plan, kernel, itemsize = self._way(name, mapped, units)
            given = (chunks, shards, self.encoding(name, encoding), itemsize)
            stored = self.source.stored(name)
            parts.append(ImagePart(stored, read, plan, kernel, mapped.dims, mapped.dtype, *given))
        return parts

    def check(self, store: Folder, encoding: Any, resume: bool, overwrite: bool) -> None:
        """Refuse now what would be refused when the model has been run on all patches."""
        known = {*map(self.source.stored, self.source.dataset.data_vars), *self.labels}
        given = as_encoding(encoding, known)
        for name in self.mapped:
            self.objects(name, gathered=True)
            self.encoding(name, given)
        check_state(store, resume, overwrite)

    def coords(self) -> xr.Coordinates:
        """Label the image."""
        return self.labels

    def about(self, mapped: Mapped) -> dict[str, Any]:
        """Describe the stitching, too."""
        stitching = mapped.stitching
        return {
            **super().about(mapped),
            "reduce": stitching.how,
            "taper": stitching.weights and [of.tolist() for of in stitching.weights],
            "fill_value": str(stitching.fill_value),
        }

    def objects(
        self, name: Hashable, gathered: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Choose chunks and shards of a variable."""
        every = [of.dims for of in self.mapped.values()]
        check_dims(every, chunks=self.chunks, shards=self.shards)
        what, budget = repr(self.source.stored(name)), lazy.as_budget(self.max_bytes)
        given = (budget, self.chunks, self.shards)
        return stored_lengths(what, self.mapped[name], gathered, *given)

    def _way(
        self, name: Hashable, mapped: Mapped, units: Mapping[Hashable, int]
    ) -> tuple[Reader, lazy.Blocks, Kernel, int]:
        """Plan how a variable is made: from the image, or from what is stored."""
        if self.runs is None:
            budget = lazy.as_budget(self.max_bytes)
            plan = mapped.plan(budget, units)
            mapped.check(plan, budget)
            read = region_reader(mapped.variable)
            return read, plan, mapped.kernel, mapped.variable.dtype.itemsize
        found = plan_gathering(
            self.runs[name], mapped.stitching, self.max_bytes, mapped.dims, units
        )
        assert found.read is not None
        return found.read, found.plan, found.kernel, mapped.made.dtype.itemsize


def paint(
    source: Source,
    mapped: Mapping[Hashable, Mapped],
    coords: xr.Coordinates,
    *,
    store: Any,
    materialize: Any,
    chunks: Mapping[Any, int] | None,
    shards: Mapping[Any, int] | bool | None,
    encoding: Mapping[Any, Mapping[str, Any]] | None,
    max_bytes: int | str | None,
    report: Callable[[], Report],
    **how: Any,
) -> xr.DataArray | xr.Dataset | dict[Hashable, Any]:
    """Make an image as a job, as `Patches.map` documents.

    Parameters
    ----------
    source, mapped, coords
        The image, what becomes of every variable that is cut, and the labels of the result.
    store, materialize, chunks, shards, encoding, max_bytes
        As in `Patches.map`.
    report
        Makes what is told of the progress of a job.
    **how
        Its arguments `resume`, `overwrite` and `retries`.

    Returns
    -------
    DataArray, Dataset or dict
        What was written to the store, opened; or, without one, the lazy data of every variable.
    """
    painting = Painting(source, mapped, max_bytes, coords, chunks, shards)
    if materialize is not None:
        if store is not None:
            out, kept = open_folder(store), open_folder(materialize)
            if out.overlaps(kept):
                raise PatchError(f"store and materialize must be two places, got {out} and {kept}")
            painting.check(out, encoding, how["resume"], how["overwrite"])
        _check_gathering(mapped, lazy.as_budget(max_bytes))
        made = write_dataset(Runs(source, mapped, max_bytes), materialize, None, report(), **how)
        runs = {}
        for name, of in mapped.items():
            array = made if isinstance(made, xr.DataArray) else made[source.stored(name)]
            runs[name] = _located(array, of)
        if store is None:
            return {
                name: stitched(
                    plan_gathering(runs[name], of.stitching, max_bytes, of.dims), of.dtype
                )
                for name, of in mapped.items()
            }
        painting = replace(painting, runs=runs)
    return write_dataset(painting, store, encoding, report(), **how)


def _check_gathering(mapped: Mapping[Hashable, Mapped], max_bytes: int) -> None:
    """Refuse a budget that what is made of the patches over the smallest block exceeds."""
    for of in mapped.values():
        needed = of.gathered_bytes([cover.stride for cover in of.covers])
        if needed > max_bytes:
            raise PatchError(
                f"max_bytes must be >= {needed}, for what is made of the patches over a block of "
                f"a stride, got {max_bytes}; raise it"
            )


def stored_lengths(
    what: str,
    outline: Outline,
    gathered: bool,
    max_bytes: int,
    chunks_given: Mapping[Any, int] | None,
    shards_given: Mapping[Any, int] | bool | None,
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Choose chunks and shards of an image: squares along spatial dims, all of the others.

    Parameters
    ----------
    what
        Name of the variable, for errors.
    outline
        What is made.
    gathered
        Whether it is made of what is stored for every patch.
    max_bytes
        Budget of a task, of which a block of one object takes half at most.
    chunks_given, shards_given
        Lengths by dim that the user gives.
    """
    _check_not_empty(what, outline)
    dims, shape, itemsize = outline.dims, outline.shape, outline.dtype.itemsize
    cost = outline.gathered_bytes if gathered else outline.nbytes
    spatial = [number for number, dim in enumerate(dims) if dim in outline.grid.dims]

    def grown(units: Sequence[int], fixed: Mapping[int, int], most: int) -> list[int]:
        """Double lengths along the spatial dims, the shortest first, as long as they fit."""
        lengths = [fixed.get(number, unit) for number, unit in enumerate(units)]
        free = [number for number in spatial if number not in fixed]
        while True:
            for number in sorted(free, key=lambda number: lengths[number]):
                larger = list(lengths)
                larger[number] *= 2
                if lengths[number] < shape[number] and fits(larger, most):
                    lengths = larger
                    break
            else:
                return lengths

    def fits(lengths: Sequence[int], most: int) -> bool:
        """Whether a block of one object, but no less than a stride, takes half of the budget."""
        along = [(lengths[dims.index(of.dim)], of.stride) for of in outline.covers]
        within = all(length <= stride for length, stride in along)
        within = within or 2 * cost([max(pair) for pair in along]) <= max_bytes
        return itemsize * prod(lengths) <= most and within

    fixed = given_lengths("chunks", what, chunks_given, dims, shape)
    ones = [1 if number in spatial else n for number, n in enumerate(shape)]
    chunks = grown(ones, fixed, CHUNK)
    chunks = [min(length, max(1, n)) for length, n in zip(chunks, shape, strict=True)]
    if shards_given is False:
        return tuple(chunks), None
    shards = grown(chunks, given_shards(what, shards_given, dims, shape, chunks), SHARD)
    return tuple(chunks), None if shards == chunks else tuple(shards)


def plan_paint(
    source: Source,
    outlines: Mapping[Hashable, Outline],
    max_bytes: int | str | None,
    chunks: Mapping[Any, int] | None,
    shards: Mapping[Any, int] | bool | None,
) -> dict[Hashable, dict[str, Any]]:
    """Say how an image will be made as a job, as `Patches.plan_map` documents, by variable."""
    found = {}
    budget = lazy.as_budget(max_bytes)
    check_dims([of.dims for of in outlines.values()], chunks=chunks, shards=shards)
    for name, outline in outlines.items():
        what, itemsize = repr(source.stored(name)), outline.dtype.itemsize
        objects = stored_lengths(what, outline, False, budget, chunks, shards)
        units = dict(zip(outline.dims, objects[1] or objects[0], strict=True))
        plan = outline.plan(budget, units)
        outline.check(plan, budget)
        # zarr holds an object encoded, and as it was copied for that.
        encoded = 2 * itemsize * prod(units.values())
        found[name] = {
            "patches": outline.grid.total,
            "runs": plan.runs,
            "runs_per_patch": plan.runs_per_patch,
            "bytes": itemsize * prod(outline.shape),
            "dims": dict(zip(outline.dims, outline.shape, strict=True)),
            "chunks": objects[0],
            "shards": objects[1],
            "tasks": prod(map(len, plan.blocks)),
            "bytes_per_task": outline.bytes_per_task(plan) + encoded,
        }
    return found


def _check_not_empty(what: str, outline: Outline) -> None:
    check_not_empty(what, outline.dims, outline.shape)
    check_not_empty(what, outline.variable.dims, outline.variable.shape)


def _located(array: xr.DataArray, mapped: Mapped) -> Located:
    """Lay what was made of all patches over the image."""
    spec = Spec(mapped.dims, mapped.grid, "center", {}, "samples")
    origins = tuple(axis.origins for axis in mapped.grid)
    return Located(array, spec, mapped.covers, origins, np.arange(mapped.grid.total))


def _name_of(func: Any) -> str:
    """Name a function, for those who resume a job: partial ones with their arguments."""
    if isinstance(func, functools.partial):
        given = [*map(repr, func.args), *(f"{key}={of!r}" for key, of in func.keywords.items())]
        return f"{_name_of(func.func)}({', '.join(given)})"
    named = func if hasattr(func, "__qualname__") else type(func)
    return f"{getattr(named, '__module__', None) or 'builtins'}:{named.__qualname__}"
