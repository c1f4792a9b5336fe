"""What a model makes of every patch of an image, written as a job, to be stitched later."""

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.credentials import redacted
from xpatches.datasets.chunks import BLOCKS, CHUNK, SHARD, check_not_empty
from xpatches.datasets.encoding import encoding_of
from xpatches.datasets.write import Product
from xpatches.errors import PatchError
from xpatches.geometry.boxes import Span, halve, split_run
from xpatches.geometry.grid import AxisGrid
from xpatches.geometry.lengths import check_tasks
from xpatches.images.image import Image
from xpatches.images.labels import SAMPLE_DIM, check_names
from xpatches.images.samples import region_reader
from xpatches.images.spec import Spec, write_spec
from xpatches.jobs.blocks import BlockArray, Put, Samples, StoredArray
from xpatches.lazy.sources import promised
from xpatches.mapping.kernel import run_patches
from xpatches.mapping.labelled import Mapped
from xpatches.mapping.model import Model
from xpatches.mapping.output import OutputPlan
from xpatches.stitching.locate import Located


@dataclass(frozen=True)
class ModelDataset(Product):
    """What is written of an image and a model."""

    source: Image[Any]
    mapped: Mapping[Hashable, Mapped]
    """What becomes of every variable that is cut."""
    max_bytes: int

    def attrs(self, name: Hashable) -> dict[Any, Any]:
        """Give the attrs of a variable."""
        return dict(self.mapped[name].attrs)

    def described(self) -> dict[str, Any]:
        """Describe how every variable is made."""
        descriptions = {
            self.source.stored(name): self.describe(mapped) for name, mapped in self.mapped.items()
        }
        return {"map": descriptions}

    def describe(self, mapped: Mapped) -> dict[str, Any]:
        """Describe the patches, the function by its name, and what it returns."""
        model, output = mapped.model, mapped.output
        return {
            "func": redacted(name_of(model.function.func)),
            "factory": model.function.factory,
            "labelled": model.labelled,
            "patches": write_spec(model.dims, mapped.grid, model.fill_value, "center", {}),
            "dims": list(output.dims),
            "shape": list(output.shape),
            "dtype": str(output.dtype),
        }


@dataclass(frozen=True)
class OutputDataset(ModelDataset):
    """What a model makes of every patch."""

    layout = "runs"

    def arrays(self, encoding: Mapping[Any, Mapping[str, Any]]) -> list[BlockArray]:
        """Lay out what is made, in chunks and shards of as many patches as fit."""
        check_names(self.source.dataset, [SAMPLE_DIM])
        arrays: list[BlockArray] = []
        for name, mapped in self.mapped.items():
            if len(mapped.grid.dims) < len(self.source.grid.dims):
                raise PatchError(
                    f"materialize needs variables with all of the dims {self.source.grid.dims}, "
                    f"{name!r} has {mapped.grid.dims}; map it by itself"
                )
            called, variable, output = self.source.stored(name), mapped.variable, mapped.output
            check_samples(repr(called), mapped)
            nbytes = output.dtype.itemsize * prod(output.shape)
            shard = min(SHARD // nbytes, 4 * self.max_bytes // mapped.costs.patch)
            shard = max(1, min(shard, -(-mapped.grid.total // BLOCKS)))
            chunk = min(shard, max(1, CHUNK // nbytes))
            shard = shard // chunk * chunk
            stored = StoredArray(
                called,
                (SAMPLE_DIM, *map(mapped.model.renamed, output.dims)),
                (mapped.grid.total, *output.shape),
                output.dtype,
                (chunk, *output.shape),
                (shard, *output.shape) if shard > chunk else None,
                encoding_of(repr(called), mapped.dtype, encoding.get(called, {})),
            )
            source = (region_reader(variable), variable.dtype.itemsize)
            model, budget = mapped.model, self.max_bytes // 2
            arrays.append(
                OutputArray(stored, stored.objects, *source, model, variable.shape, budget)
            )
        return arrays

    def promised(self) -> dict[Hashable, Located]:
        """Give what will be stored, to plan with."""
        arrays = {}
        for array in self.arrays({}):
            check_tasks(len(array), "what materialize stores")
            stored = array.stored
            data = promised(stored.shape, stored.dtype, stored.objects)
            arrays[stored.name] = xr.DataArray(data, dims=stored.dims)
        return self.located(arrays)

    def located(self, arrays: Mapping[Any, xr.DataArray]) -> dict[Hashable, Located]:
        """Lay what is stored over the image."""
        located = {}
        for name, mapped in self.mapped.items():
            spec = Spec(mapped.dims, mapped.grid, "center", {}, "samples")
            origins = tuple(axis.origins for axis in mapped.grid)
            numbers, array = np.arange(mapped.grid.total), arrays[self.source.stored(name)]
            located[name] = Located(array, spec, mapped.output.covers, origins, numbers)
        return located


@dataclass(frozen=True)
class OutputArray(BlockArray):
    """What a model makes of every patch, along one dim; every patch is run once."""

    model: Model
    image_shape: tuple[int, ...]
    """Lengths of the image, along all its axes."""
    max_bytes: int
    """Of samples that are read at a time, if they are of several patches."""

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """List the regions that are read for a block."""
        return [self._region(box) for box in self._boxes(number)]

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Run the model on the patches of a block."""
        place, done = self.place(number), 0
        outputs = np.empty([along.stop - along.start for along in place], self.stored.dtype)
        for box in self._boxes(number):
            region, count = self._region(box), prod(map(len, box))
            spans = [
                Span(axis, grid, -grid.before - region[axis].start, grid.count)
                for axis, grid in self._axes()
            ]
            part = outputs[done : done + count]
            run_patches(samples.of(region), spans, self.model, box, part)
            done += count
        put(place, outputs)

    def describe(self, number: int) -> str:
        """Say which patches a block holds."""
        patches = self.place(number)[0]
        return f"{self.stored.name!r}, {SAMPLE_DIM}={patches.start}:{patches.stop}"

    def _boxes(self, number: int) -> list[tuple[range, ...]]:
        patches = self.place(number)[0]
        counts = [axis.count for axis in self.model.grid]
        runs = split_run(counts, patches.start, patches.stop)
        return [box for run in runs for box in halve(run, self._fits)]

    def _fits(self, box: tuple[range, ...]) -> bool:
        """Whether the samples under a box do."""
        nbytes: int = self.itemsize * prod(along.stop - along.start for along in self._region(box))
        return nbytes <= self.max_bytes

    def _region(self, box: Sequence[range]) -> tuple[slice, ...]:
        region = [slice(0, n) for n in self.image_shape]
        for (axis, grid), numbers in zip(self._axes(), box, strict=True):
            region[axis] = slice(*grid.region(numbers.start, len(numbers))[:2])
        return tuple(region)

    def _axes(self) -> list[tuple[int, AxisGrid]]:
        """Give every axis of the image along which patches are cut."""
        return [(self.model.dims.index(axis.dim), axis) for axis in self.model.grid]


def check_samples(what: str, plan: OutputPlan) -> None:
    """Refuse to write an image without samples, or what is made of one."""
    check_not_empty(what, plan.dims, plan.shape)
    check_not_empty(what, plan.variable.dims, plan.variable.shape)


def name_of(func: Any) -> str:
    """Name a function, for those who resume a job: partial ones with their arguments."""
    if isinstance(func, functools.partial):
        keywords = (f"{key}={value!r}" for key, value in func.keywords.items())
        return f"{name_of(func.func)}({', '.join([*map(repr, func.args), *keywords])})"
    named = func if hasattr(func, "__qualname__") else type(func)
    return f"{getattr(named, '__module__', None) or 'builtins'}:{named.__qualname__}"
