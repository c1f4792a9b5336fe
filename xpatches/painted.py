"""Images that a model makes, written as jobs; and what it makes of single patches, on the way."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches import lazy
from xpatches.blocks import Part, Put, Reader, Samples
from xpatches.datasets import Source, check_lengths, write_dataset
from xpatches.errors import PatchError
from xpatches.gather import plan_gathering, stitched
from xpatches.geometry import split_run
from xpatches.jobs import Report
from xpatches.kernel import Kernel
from xpatches.layout import CHUNK, SAMPLE_DIM, SHARD, given_lengths
from xpatches.located import Located
from xpatches.mapping import Mapped, Outline, mapped_coords
from xpatches.models import Model, Placed, run_patches
from xpatches.spec import Spec, write_spec
from xpatches.storable import encoding_of
from xpatches.variables import region_reader


@dataclass(frozen=True)
class ImagePart:
    """An image that a kernel makes, block by block."""

    name: str
    read: Reader
    plan: lazy.Blocks
    kernel: Kernel
    dims: tuple[Hashable, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    encoding: Mapping[str, Any]
    itemsize: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the image."""
        return tuple(map(sum, self.plan.out_chunks))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of a block."""
        return tuple(map(max, self.plan.out_chunks))

    def __len__(self) -> int:
        return prod(map(len, self._regions))

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """Find the region that is read for a block."""
        index = self._index(number)
        return [tuple(slice(*of[i]) for of, i in zip(self._regions, index, strict=True))]

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Make a block."""
        index = self._index(number)
        (region,) = self.reads(number)
        takes = [of[i][0][1] for of, i in zip(self._takes, index, strict=True)]
        put(self._place(index), lazy.run_kernel(self.kernel, takes, samples.of(region)))

    def describe(self, number: int) -> str:
        """Say what of the image a block holds."""
        place = zip(self.dims, self._place(self._index(number)), strict=True)
        return f"{self.name!r}, " + ", ".join(f"{dim}={of.start}:{of.stop}" for dim, of in place)

    def _index(self, number: int) -> tuple[int, ...]:
        return tuple(map(int, np.unravel_index(number, tuple(map(len, self._regions)))))

    def _place(self, index: Sequence[int]) -> tuple[slice, ...]:
        out = self.plan.out_index([of[i][0][0] for of, i in zip(self._takes, index, strict=True)])
        return tuple(of[i] for of, i in zip(self._places, out, strict=True))

    @cached_property
    def _regions(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        return self.plan.regions

    @cached_property
    def _takes(self) -> tuple[list[list[tuple[int, Any]]], ...]:
        return self.plan.takes

    @cached_property
    def _places(self) -> list[list[slice]]:
        edges = ([0, *accumulate(lengths)] for lengths in self.plan.out_chunks)
        return [[slice(*pair) for pair in pairwise(of)] for of in edges]


@dataclass(frozen=True)
class MadePart:
    """What a model makes of every patch, along one dim; every patch is run once."""

    name: str
    read: Reader
    model: Model
    axes: tuple[int, ...]
    """Axes of the image along which patches are cut."""
    others: tuple[int, ...]
    """Lengths of the image along all axes."""
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    encoding: Mapping[str, Any]
    itemsize: int

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Dims of what is made."""
        return (SAMPLE_DIM, *map(self.model.renamed, self.model.made.dims))

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths."""
        return (self.model.grid.total, *self.model.made.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype."""
        return self.model.made.dtype

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of a block."""
        return ((self.shards or self.chunks)[0], *self.model.made.shape)

    def __len__(self) -> int:
        return -(-self.shape[0] // self.lengths[0])

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """List the regions that are read for a block."""
        return [self._region(box) for box in self._boxes(number)]

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Run the model on the patches of a block."""
        place, shape, done = self._place(number), self.model.made.shape, 0
        made = np.empty((place.stop - place.start, *shape), self.dtype)
        for box in self._boxes(number):
            region = self._region(box)
            placed = [
                Placed(axis, grid, -grid.before - region[axis].start)
                for axis, grid in zip(self.axes, self.model.grid, strict=True)
            ]
            count = prod(map(len, box))
            part = made[done : done + count]
            run_patches(samples.of(region), placed, self.model, box, part)
            done += count
        put((place, *(slice(0, n) for n in shape)), made)

    def describe(self, number: int) -> str:
        """Say which patches a block holds."""
        place = self._place(number)
        return f"{self.name!r}, {SAMPLE_DIM}={place.start}:{place.stop}"

    def _place(self, number: int) -> slice:
        start = number * self.lengths[0]
        return slice(start, min(start + self.lengths[0], self.shape[0]))

    def _boxes(self, number: int) -> list[tuple[range, ...]]:
        place = self._place(number)
        counts = [axis.count for axis in self.model.grid]
        return [*split_run(counts, place.start, place.stop)]

    def _region(self, box: Sequence[range]) -> tuple[slice, ...]:
        region = [slice(0, n) for n in self.others]
        for axis, grid, of in zip(self.axes, self.model.grid, box, strict=True):
            region[axis] = slice(*grid.region(of.start, len(of))[:2])
        return tuple(region)


@dataclass(frozen=True)
class _OfModel:
    """What a model makes of an image, in a store."""

    source: Source
    mapped: Mapping[Hashable, Mapped]

    def attrs(self, name: Hashable) -> dict[Any, Any]:
        """Give the attrs of a variable."""
        return dict(self.mapped[name].attrs)

    def described(self) -> dict[str, Any]:
        """Describe the patches, the function by its name, and what is made of them."""
        return {"map": {self.source.stored(name): _about(of) for name, of in self.mapped.items()}}

    def encoding(self, name: Hashable, given: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
        """Normalise how a variable is encoded."""
        stored = self.source.stored(name)
        return encoding_of(repr(stored), self.mapped[name].stitching.dtype, given.get(stored, {}))


@dataclass(frozen=True)
class Runs(_OfModel):
    """What a model makes of single patches."""

    layout = "runs"

    def parts(self, encoding: Mapping[Any, Mapping[str, Any]]) -> list[Part]:
        """Lay out what is made, in chunks and shards of as many patches as fit."""
        parts: list[Part] = []
        for name, mapped in self.mapped.items():
            made, variable = mapped.model.made, mapped.variable
            each = max(1, made.dtype.itemsize * prod(made.shape))
            chunk = max(1, CHUNK // each)
            shard = max(1, SHARD // each // chunk) * chunk
            parts.append(
                MadePart(
                    self.source.stored(name),
                    region_reader(variable),
                    mapped.model,
                    tuple(variable.get_axis_num(dim) for dim in mapped.grid.dims),
                    variable.shape,
                    (chunk, *made.shape),
                    (shard, *made.shape) if shard > chunk else None,
                    self.encoding(name, encoding),
                    variable.dtype.itemsize,
                )
            )
        return parts

    def coords(self) -> xr.Coordinates:
        """Give no coords: the geometry is that of the map."""
        return xr.Coordinates()


@dataclass(frozen=True)
class Painting(_OfModel):
    """The image that a model makes."""

    runs: Mapping[Hashable, Located]
    """What it made of single patches, where that is stored."""
    max_bytes: int | str | None
    chunks: Mapping[Any, int] | None
    shards: Mapping[Any, int] | bool | None

    layout = "image"

    def parts(self, encoding: Mapping[Any, Mapping[str, Any]]) -> list[Part]:
        """Choose the blocks of every variable: whole chunks or shards."""
        parts: list[Part] = []
        for name, mapped in self.mapped.items():
            given = self.encoding(name, encoding)
            chunks, shards = stored_lengths(
                repr(self.source.stored(name)),
                mapped,
                mapped.stitching.dtype.itemsize,
                lazy.as_budget(self.max_bytes),
                self.chunks,
                self.shards,
            )
            units = dict(zip(mapped.dims, shards or chunks, strict=True))
            read, plan, kernel, itemsize = self._way(name, mapped, units)
            stored = (chunks, shards, given, itemsize)
            stitching = mapped.stitching
            parts.append(
                ImagePart(
                    self.source.stored(name), read, plan, kernel, mapped.dims, stitching.dtype,
                    *stored,
                )
            )  # fmt: skip
        check_lengths(parts, chunks=self.chunks, shards=self.shards)
        return parts

    def coords(self) -> xr.Coordinates:
        """Label the image."""
        return mapped_coords(self.source.dataset.coords, [*self.mapped.values()])

    def _way(
        self, name: Hashable, mapped: Mapped, units: Mapping[Hashable, int]
    ) -> tuple[Reader, lazy.Blocks, Kernel, int]:
        """Plan how a variable is made: from the image, or from what is stored."""
        if name not in self.runs:
            budget = lazy.as_budget(self.max_bytes)
            plan = mapped.plan(budget, units)
            mapped.check(plan, budget)
            read = region_reader(mapped.variable)
            return read, plan, mapped.kernel, mapped.variable.dtype.itemsize
        found = plan_gathering(
            self.runs[name], mapped.stitching, self.max_bytes, mapped.dims, units
        )
        assert found.read is not None
        return found.read, found.plan, found.kernel, mapped.model.made.dtype.itemsize


def paint(
    source: Source,
    mapped: Mapping[Hashable, Mapped],
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
    source, mapped
        The image, and what becomes of every variable that is cut.
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
    runs: dict[Hashable, Located] = {}
    if materialize is not None:
        made = write_dataset(Runs(source, mapped), materialize, None, report(), **how)
        for name, of in mapped.items():
            array = made if isinstance(made, xr.DataArray) else made[source.stored(name)]
            runs[name] = _located(array, of)
    if store is None:
        return {
            name: stitched(
                plan_gathering(runs[name], of.stitching, max_bytes, of.dims), of.stitching.dtype
            )
            for name, of in mapped.items()
        }
    painting = Painting(source, mapped, runs, max_bytes, chunks, shards)
    return write_dataset(painting, store, encoding, report(), **how)


def stored_lengths(
    what: str,
    outline: Outline,
    itemsize: int,
    max_bytes: int,
    given_chunks: Mapping[Any, int] | None,
    given_shards: Mapping[Any, int] | bool | None,
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Choose chunks and shards of an image: squares along spatial dims, all of the others.

    Parameters
    ----------
    what
        Name of the variable, for errors.
    outline
        What is made.
    itemsize
        Bytes of a sample of the image.
    max_bytes
        Budget of a task, of which a block of one object takes half at most.
    given_chunks, given_shards
        Lengths by dim that the user gives.
    """
    dims, shape = outline.dims, outline.shape
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
        """Whether a block of one object takes half of the budget at most."""
        cost = outline.nbytes([lengths[dims.index(dim)] for dim in outline.grid.dims])
        return itemsize * prod(lengths) <= most and 2 * cost <= max_bytes

    fixed = given_lengths("chunks", what, given_chunks, dims, shape)
    ones = [1 if number in spatial else n for number, n in enumerate(shape)]
    chunks = grown(ones, fixed, CHUNK)
    chunks = [min(length, max(1, n)) for length, n in zip(chunks, shape, strict=True)]
    if given_shards is False:
        return tuple(chunks), None
    fixed = given_lengths("shards", what, given_shards, dims, shape)
    for number, length in fixed.items():
        if length % chunks[number] and length < shape[number]:
            raise PatchError(
                f"shards on {dims[number]!r} must be a multiple of the chunks, got {length} "
                f"and chunks of {chunks[number]}; choose another length, or give both"
            )
        fixed[number] = -(-length // chunks[number]) * chunks[number]
    shards = grown(chunks, fixed, SHARD)
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
    for name, outline in outlines.items():
        what, itemsize = repr(source.stored(name)), outline.made.dtype.itemsize
        objects = stored_lengths(what, outline, itemsize, budget, chunks, shards)
        units = dict(zip(outline.dims, objects[1] or objects[0], strict=True))
        plan = outline.plan(budget, units)
        outline.check(plan, budget)
        found[name] = {
            "patches": outline.grid.total,
            "runs": plan.runs,
            "runs_per_patch": plan.runs_per_patch,
            "bytes": itemsize * prod(outline.shape),
            "dims": dict(zip(outline.dims, outline.shape, strict=True)),
            "chunks": objects[0],
            "shards": objects[1],
            "tasks": prod(map(len, plan.blocks)),
            "bytes_per_task": outline.bytes_per_task(plan),
        }
    return found


def _located(array: xr.DataArray, mapped: Mapped) -> Located:
    """Lay what was made of all patches over the image."""
    spec = Spec(mapped.dims, mapped.grid, "center", {}, "samples")
    origins = tuple(axis.origins for axis in mapped.grid)
    return Located(array, spec, mapped.covers, origins, np.arange(mapped.grid.total))


def _about(mapped: Mapped) -> dict[str, Any]:
    """Describe a map as plain data."""
    model, stitching = mapped.model, mapped.stitching
    func = model.func if hasattr(model.func, "__qualname__") else type(model.func)
    grid, made = mapped.grid, model.made
    spec = write_spec(mapped.variable.dims, grid, model.fill_value, "center", {})
    return {
        "func": f"{func.__module__}:{func.__qualname__}",
        "factory": model.factory,
        "labelled": model.labelled,
        "patches": spec,
        "returns": {"dims": list(made.dims), "shape": list(made.shape), "dtype": str(made.dtype)},
        "reduce": stitching.how,
        "taper": stitching.weights and [of.tolist() for of in stitching.weights],
        "fill_value": str(stitching.fill_value),
        "shape": list(mapped.shape),
    }
