"""Arrays that a kernel or a model makes as a job: an image, or what is made of single patches."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np

from xpatches.geometry.blocks import BlockPlan, Kernel, run_kernel
from xpatches.geometry.boxes import divide, halve, split_run
from xpatches.images.labels import SAMPLE_DIM
from xpatches.jobs.blocks import Put, Reader, Samples
from xpatches.mapping.model import Model, Placed, run_patches


@dataclass(frozen=True)
class ImagePart:
    """An image that a kernel makes, block by block."""

    name: str
    read: Reader
    blocks: BlockPlan
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
        return tuple(map(sum, self.blocks.out_chunks))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of a block."""
        return tuple(map(max, self.blocks.out_chunks))

    def __len__(self) -> int:
        return prod(self.blocks.counts)

    def reads(self, number: int) -> list[tuple[slice, ...]]:
        """Find the region that is read for a block."""
        return [self.blocks.read(self._index(number))[0]]

    def write(self, number: int, samples: Samples, put: Put) -> None:
        """Make a block."""
        region, takes = self.blocks.read(self._index(number))
        made = run_kernel(self.kernel, takes, samples.of(region))
        place, objects = self.place(number), self.shards or self.chunks
        # One stored object after the other, for zarr encodes copies of all it is given.
        for part in divide(place, objects):
            pairs = zip(part, place, strict=True)
            put(part, made[tuple(slice(p.start - b.start, p.stop - b.start) for p, b in pairs)])

    def describe(self, number: int) -> str:
        """Say what of the image a block holds."""
        place = zip(self.dims, self.place(number), strict=True)
        return f"{self.name!r}, " + ", ".join(f"{dim}={of.start}:{of.stop}" for dim, of in place)

    def _index(self, number: int) -> tuple[int, ...]:
        return tuple(map(int, np.unravel_index(number, self.blocks.counts)))

    def place(self, number: int) -> tuple[slice, ...]:
        """Find a block in the image."""
        out = self.blocks.out_index(self._index(number))
        return tuple(of[i] for of, i in zip(self._places, out, strict=True))

    @cached_property
    def _places(self) -> list[list[slice]]:
        edges = ([0, *accumulate(lengths)] for lengths in self.blocks.out_chunks)
        return [[slice(*pair) for pair in pairwise(of)] for of in edges]


@dataclass(frozen=True)
class MadePart:
    """What a model makes of every patch, along one dim; every patch is run once."""

    name: str
    read: Reader
    model: Model
    axes: tuple[int, ...]
    """Axes of the image along which patches are cut."""
    image_shape: tuple[int, ...]
    """Lengths of the image, along all its axes."""
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    encoding: Mapping[str, Any]
    itemsize: int
    max_bytes: int
    """Of samples that are read at a time, if they are of several patches."""

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
        place, shape, done = self._patches(number), self.model.made.shape, 0
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
        put(self.place(number), made)

    def describe(self, number: int) -> str:
        """Say which patches a block holds."""
        place = self._patches(number)
        return f"{self.name!r}, {SAMPLE_DIM}={place.start}:{place.stop}"

    def place(self, number: int) -> tuple[slice, ...]:
        """Find a block among what is made of the patches."""
        return (self._patches(number), *(slice(0, n) for n in self.model.made.shape))

    def _patches(self, number: int) -> slice:
        start = number * self.lengths[0]
        return slice(start, min(start + self.lengths[0], self.shape[0]))

    def _boxes(self, number: int) -> list[tuple[range, ...]]:
        place = self._patches(number)
        counts = [axis.count for axis in self.model.grid]
        runs = split_run(counts, place.start, place.stop)
        return [box for run in runs for box in halve(run, self._fits)]

    def _fits(self, box: tuple[range, ...]) -> bool:
        """Whether the samples under a box do."""
        nbytes: int = self.itemsize * prod(of.stop - of.start for of in self._region(box))
        return nbytes <= self.max_bytes

    def _region(self, box: Sequence[range]) -> tuple[slice, ...]:
        region = [slice(0, n) for n in self.image_shape]
        for axis, grid, of in zip(self.axes, self.model.grid, box, strict=True):
            region[axis] = slice(*grid.region(of.start, len(of))[:2])
        return tuple(region)
