"""Images that a model makes, written as jobs; and what it makes of single patches, on the way."""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.datasets.encoding import encoding_of
from xpatches.datasets.layout import (
    BLOCKS,
    CHUNK,
    SHARD,
    check_not_empty,
    given_lengths,
    given_shards,
)
from xpatches.datasets.outputs import ImagePart, MadePart
from xpatches.datasets.write import Source, check_dataset, check_dims, write_dataset
from xpatches.errors import PatchError
from xpatches.geometry.blocks import BlockPlan, Kernel
from xpatches.geometry.search import check_tasks, grow
from xpatches.images import labels
from xpatches.images.labels import SAMPLE_DIM
from xpatches.images.samples import region_reader
from xpatches.images.spec import Spec, write_spec
from xpatches.jobs.blocks import Part, Reader
from xpatches.jobs.folder import open_folder
from xpatches.jobs.job import Report
from xpatches.lazy.sources import as_budget, promised
from xpatches.mapping.labelled import Mapped, Outline
from xpatches.redaction import redacted
from xpatches.stitching.gather import Gathering, plan_gathering, stitched
from xpatches.stitching.locate import Located


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
            "func": redacted(_name_of(model.function.func)),
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
            if len(mapped.grid.dims) < len(self.source.grid.dims):
                raise PatchError(
                    f"materialize needs variables with all of the dims {self.source.grid.dims}, "
                    f"{name!r} has {mapped.grid.dims}; map it by itself"
                )
            made, variable, budget = mapped.made, mapped.variable, as_budget(self.max_bytes)
            _check_not_empty(repr(self.source.stored(name)), mapped)
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

    def promised(self) -> dict[Hashable, Located]:
        """Give what will be stored, to plan with."""
        for part in self.parts({}):
            check_tasks(len(part), "what materialize stores")
        return self.located(
            {
                part.name: xr.DataArray(
                    promised(part.shape, part.dtype, part.shards or part.chunks),
                    dims=part.dims,
                )
                for part in self.parts({})
            }
        )

    def located(self, arrays: Mapping[Any, xr.DataArray]) -> dict[Hashable, Located]:
        """Lay what is stored over the image."""
        found = {}
        for name, mapped in self.mapped.items():
            spec = Spec(mapped.dims, mapped.grid, "center", {}, "samples")
            origins = tuple(axis.origins for axis in mapped.grid)
            every = np.arange(mapped.grid.total)
            array = arrays[self.source.stored(name)]
            found[name] = Located(array, spec, mapped.covers, origins, every)
        return found


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
        check_dims([of.dims for of in self.mapped.values()], chunks=self.chunks, shards=self.shards)
        objects = (self.runs is not None, as_budget(self.max_bytes), self.chunks, self.shards)
        for name, mapped in self.mapped.items():
            stored = self.source.stored(name)
            chunks, shards = stored_lengths(repr(stored), mapped, *objects)
            units = dict(zip(mapped.dims, shards or chunks, strict=True))
            read, blocks, kernel, itemsize = self._way(name, mapped, units)
            given = (chunks, shards, self.encoding(name, encoding), itemsize)
            parts.append(ImagePart(stored, read, blocks, kernel, mapped.dims, mapped.dtype, *given))
        return parts

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
            "skipna": stitching.skipna,
        }

    def _way(
        self, name: Hashable, mapped: Mapped, units: Mapping[Hashable, int]
    ) -> tuple[Reader, BlockPlan, Kernel, int]:
        """Plan how a variable is made: from the image, or from what is stored."""
        if self.runs is None:
            budget = as_budget(self.max_bytes)
            plan = mapped.plan(budget, units)
            mapped.check(plan, budget)
            read = region_reader(mapped.variable)
            return read, plan.blocks, mapped.kernel, mapped.variable.dtype.itemsize
        found = self._gathering(name, mapped, units)
        assert found.read is not None
        return found.read, found.plan.blocks, found.kernel, mapped.made.dtype.itemsize

    def lazily(self) -> dict[Hashable, Any]:
        """Stitch what is stored lazily, by variable."""
        return {
            name: stitched(self._gathering(name, of, {}), of.dtype)
            for name, of in self.mapped.items()
        }

    def _gathering(
        self, name: Hashable, mapped: Mapped, units: Mapping[Hashable, int]
    ) -> Gathering:
        assert self.runs is not None
        return plan_gathering(self.runs[name], mapped.stitching, self.max_bytes, mapped.dims, units)


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
        Its arguments `checksums`, `resume`, `overwrite`, `retries`, `lock` and `fsync`.

    Returns
    -------
    DataArray, Dataset or dict
        What was written to the store, opened; or, without one, the lazy data of every variable.
    """
    painting = Painting(source, mapped, max_bytes, coords, chunks, shards)
    if materialize is not None:
        # What is not cut is copied once, beside the result.
        runs = Runs(replace(source, dataset=source.dataset[[*mapped]]), mapped, max_bytes)
        # What cannot be made of them is refused before the model is run.
        promised = replace(painting, runs=runs.promised())
        if store is None:
            promised.lazily()
        else:
            out, kept = open_folder(store), open_folder(materialize)
            if out.overlaps(kept):
                raise PatchError(f"store and materialize must be two places, got {out} and {kept}")
            begin = {argument: how[argument] for argument in ("checksums", "resume", "overwrite")}
            check_dataset(promised, out, encoding, **begin)
        made = write_dataset(runs, materialize, None, report(), **how)
        arrays = made if isinstance(made, xr.Dataset) else {source.stored(*mapped): made}
        painting = replace(painting, runs=runs.located(arrays))
        if store is None:
            return painting.lazily()
    return write_dataset(painting, store, encoding, report(), **how)


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
        return grow(
            lengths,
            lambda lengths: sorted(free, key=lambda number: lengths[number]),
            lambda number, length: 2 * length if length < shape[number] else length,
            lambda lengths: fits(lengths, most),
        )

    def fits(lengths: Sequence[int], most: int) -> bool:
        """Whether a block of one object, but no less than a stride, takes half of the budget."""
        along = [(lengths[dims.index(of.dim)], of.stride) for of in outline.covers]
        within = all(length <= stride for length, stride in along)
        within = within or 2 * cost([max(pair) for pair in along]) <= max_bytes
        return itemsize * prod(lengths) <= most and within

    fixed = given_lengths(chunks_given, dims, shape)
    ones = [1 if number in spatial else n for number, n in enumerate(shape)]
    chunks = grown(ones, fixed, CHUNK)
    chunks = [min(length, max(1, n)) for length, n in zip(chunks, shape, strict=True)]
    if shards_given is False:
        return tuple(chunks), None
    shards = grown(chunks, given_shards(shards_given, dims, shape, chunks), SHARD)
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
    budget = as_budget(max_bytes)
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
            "tasks": prod(plan.counts),
            "bytes_per_task": outline.bytes_per_task(plan) + encoded,
        }
    return found


def _check_not_empty(what: str, outline: Outline) -> None:
    check_not_empty(what, outline.dims, outline.shape)
    check_not_empty(what, outline.variable.dims, outline.variable.shape)


def _name_of(func: Any) -> str:
    """Name a function, for those who resume a job: partial ones with their arguments."""
    if isinstance(func, functools.partial):
        given = [*map(repr, func.args), *(f"{key}={of!r}" for key, of in func.keywords.items())]
        return f"{_name_of(func.func)}({', '.join(given)})"
    named = func if hasattr(func, "__qualname__") else type(func)
    return f"{getattr(named, '__module__', None) or 'builtins'}:{named.__qualname__}"
