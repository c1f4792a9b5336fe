"""The image that a model makes, written as a job: of patches, or of its stored outputs."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.datasets.chunks import CHUNK, SHARD, check_dims, given_lengths, given_shards
from xpatches.datasets.encoding import encoding_of
from xpatches.datasets.outputs import ModelDataset, OutputDataset, check_samples
from xpatches.datasets.write import check_dataset, write_dataset
from xpatches.errors import PatchError
from xpatches.geometry.blocks import BlockPlan, Kernel, run_kernel
from xpatches.geometry.boxes import divide, within
from xpatches.geometry.lengths import grow
from xpatches.images.image import Image
from xpatches.images.samples import Source, region_reader
from xpatches.jobs.blocks import BlockArray, Put, Reader, Samples, StoredArray
from xpatches.jobs.folder import Folder
from xpatches.jobs.job import Report
from xpatches.lazy.sources import as_budget
from xpatches.mapping.labelled import Mapped
from xpatches.mapping.output import OutputPlan
from xpatches.stitching.gather import plan_gathering
from xpatches.stitching.locate import Located


@dataclass(frozen=True)
class ImageDataset(ModelDataset):
    """The image that a model makes."""

    labels: xr.Coordinates
    """Of the image."""
    chunks: Mapping[Any, int] | None
    shards: Mapping[Any, int] | bool | None
    outputs: Mapping[Hashable, Located] | None = None
    """What the model made of every patch, where that is stored."""

    layout = "image"

    def arrays(self, encoding: Mapping[Any, Mapping[str, Any]]) -> list[BlockArray]:
        """Choose the blocks of every variable: whole chunks or shards."""
        arrays: list[BlockArray] = []
        dims = [mapped.dims for mapped in self.mapped.values()]
        check_dims(dims, chunks=self.chunks, shards=self.shards)
        wanted = (self.outputs is not None, self.max_bytes, self.chunks, self.shards)
        for name, mapped in self.mapped.items():
            called = self.source.stored(name)
            lengths = stored_lengths(repr(called), mapped, *wanted)
            encoded = encoding_of(repr(called), mapped.dtype, encoding.get(called, {}))
            shape = (mapped.dims, mapped.shape, mapped.dtype)
            stored = StoredArray(called, *shape, *lengths, encoded)
            units = dict(zip(mapped.dims, stored.objects, strict=True))
            read, itemsize, blocks, kernel = self._made_of(name, units)
            longest = tuple(map(max, blocks.out_chunks))
            arrays.append(ImageArray(stored, longest, read, itemsize, blocks, kernel))
        return arrays

    def coords(self) -> xr.Coordinates:
        """Label the image."""
        return self.labels

    def describe(self, mapped: Mapped) -> dict[str, Any]:
        """Describe the stitching, too."""
        stitching = mapped.stitching
        return {
            **super().describe(mapped),
            "reduce": stitching.how,
            "taper": stitching.weights and [weights.tolist() for weights in stitching.weights],
            "fill_value": str(stitching.fill_value),
            "skipna": stitching.skipna,
        }

    def lazily(self) -> dict[Hashable, Any]:
        """Stitch what is stored lazily, by variable."""
        images = {}
        for name, mapped in self.mapped.items():
            source, blocks, kernel = self._gathering(name, {})
            images[name] = source.run(blocks, kernel, mapped.dtype)
        return images

    def _made_of(
        self, name: Hashable, units: Mapping[Hashable, int]
    ) -> tuple[Reader, int, BlockPlan, Kernel]:
        """Say how a variable is made: what reads the samples, their bytes, the plan, the kernel."""
        mapped = self.mapped[name]
        if self.outputs is None:
            plan, variable = mapped.map_plan(self.max_bytes, units), mapped.variable
            return region_reader(variable), variable.dtype.itemsize, plan.blocks, mapped.kernel
        source, blocks, kernel = self._gathering(name, units)
        assert source.read is not None
        return source.read, mapped.output.dtype.itemsize, blocks, kernel

    def _gathering(
        self, name: Hashable, units: Mapping[Hashable, int]
    ) -> tuple[Source, BlockPlan, Kernel]:
        assert self.outputs is not None
        mapped, located = self.mapped[name], self.outputs[name]
        return plan_gathering(located, mapped.stitching, self.max_bytes, mapped.dims, units)


@dataclass(frozen=True)
class ImageArray(BlockArray):
    """An image that a kernel makes, block by block."""

    blocks: BlockPlan
    kernel: Kernel

    def __len__(self) -> int:
        return prod(self.blocks.counts)

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """Find the region that is read for a block."""
        return [self.blocks.read(self._index(number))[0]]

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Make a block."""
        region, takes = self.blocks.read(self._index(number))
        block = run_kernel(self.kernel, takes, samples.of(region))
        place, objects = self.place(number), self.stored.objects
        # One stored object after the other, for zarr encodes copies of all it is given.
        for part in divide(place, objects):
            put(part, block[within(part, place)])

    def _index(self, number: int) -> tuple[int, ...]:
        return tuple(map(int, np.unravel_index(number, self.blocks.counts)))

    def place(self, number: int) -> tuple[slice, ...]:
        """Find a block in the image."""
        index = self.blocks.out_index(self._index(number))
        pairs = zip(self._places, index, strict=True)
        return tuple(along[number] for along, number in pairs)

    @cached_property
    def _places(self) -> list[list[slice]]:
        edges = ([0, *accumulate(lengths)] for lengths in self.blocks.out_chunks)
        return [[slice(*pair) for pair in pairwise(along)] for along in edges]


def write_map(
    source: Image[Any],
    mapped: Mapping[Hashable, Mapped],
    coords: xr.Coordinates,
    *,
    store: Folder | None,
    materialize: Folder | None,
    chunks: Mapping[Any, int] | None,
    shards: Mapping[Any, int] | bool | None,
    encoding: Mapping[Any, Mapping[str, Any]] | None,
    max_bytes: int | str | None,
    report: Callable[[], Report],
    **job: Any,
) -> xr.DataArray | xr.Dataset | dict[Hashable, Any]:
    """Make an image as a job, as `Patches.map_to_zarr` documents.

    Parameters
    ----------
    source, mapped, coords
        The image, what becomes of every variable that is cut, and the labels of the result.
    store, materialize, chunks, shards, encoding, max_bytes
        As in `Patches.map_to_zarr`.
    report
        Makes what is told of the progress of a job.
    **job
        Its arguments `checksums`, `resume`, `overwrite`, `retries`, `lock` and `fsync`.

    Returns
    -------
    DataArray, Dataset or dict
        What was written to the store, opened; or, without one, the lazy data of every variable.
    """
    image = ImageDataset(source, mapped, as_budget(max_bytes), coords, chunks, shards)
    if materialize is not None:
        # What is not cut is copied once, beside the result.
        cut = replace(source, dataset=source.dataset[[*mapped]])
        outputs = OutputDataset(cut, mapped, image.max_bytes)
        # What cannot be made of them is refused before the model is run.
        promised = replace(image, outputs=outputs.promised())
        if store is None:
            promised.lazily()
        else:
            if store.overlaps(materialize):
                raise PatchError(
                    f"store and materialize must be two places, got {store} and {materialize}"
                )
            begin = {argument: job[argument] for argument in ("checksums", "resume", "overwrite")}
            check_dataset(promised, store, encoding, **begin)
        written = write_dataset(outputs, materialize, None, report(), **job)
        if isinstance(written, xr.DataArray):
            written = written.to_dataset(name=source.stored(*mapped))
        image = replace(image, outputs=outputs.located(written))
        if store is None:
            return image.lazily()
    return write_dataset(image, store, encoding, report(), **job)


def stored_lengths(
    what: str,
    plan: OutputPlan,
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
    plan
        What is made.
    gathered
        Whether it is made of what is stored for every patch.
    max_bytes
        Budget of a task, of which a block of one object takes half at most.
    chunks_given, shards_given
        Lengths by dim that the user gives.
    """
    check_samples(what, plan)
    dims, shape, itemsize = plan.dims, plan.shape, plan.dtype.itemsize
    cost = plan.costs.nbytes_of_stored if gathered else plan.costs.nbytes
    spatial = [number for number, dim in enumerate(dims) if dim in plan.grid.dims]

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
        along = [(lengths[dims.index(cover.dim)], cover.stride) for cover in plan.output.covers]
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


def plan_written_map(
    source: Image[Any],
    plans: Mapping[Hashable, OutputPlan],
    max_bytes: int | str | None,
    chunks: Mapping[Any, int] | None,
    shards: Mapping[Any, int] | bool | None,
) -> dict[Hashable, dict[str, Any]]:
    """Say how an image will be made as a job, as `Patches.plan` documents, by variable."""
    described, budget = {}, as_budget(max_bytes)
    check_dims([plan.dims for plan in plans.values()], chunks=chunks, shards=shards)
    for name, plan in plans.items():
        what, itemsize = repr(source.stored(name)), plan.dtype.itemsize
        objects = stored_lengths(what, plan, False, budget, chunks, shards)
        units = dict(zip(plan.dims, objects[1] or objects[0], strict=True))
        blocks = plan.map_plan(budget, units)
        # zarr holds an object encoded, and as it was copied for that.
        encoded = 2 * itemsize * prod(units.values())
        described[name] = {
            "patches": plan.grid.total,
            "runs": blocks.runs,
            "runs_per_patch": blocks.runs_per_patch,
            "bytes": itemsize * prod(plan.shape),
            "dims": dict(zip(plan.dims, plan.shape, strict=True)),
            "chunks": objects[0],
            "shards": objects[1],
            "tasks": prod(blocks.counts),
            "bytes_per_task": plan.bytes_per_task(blocks) + encoded,
        }
    return described
