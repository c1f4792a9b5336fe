"""The blocks of a patch dataset: each is read, cut, written and recorded by itself, anywhere.

A block reads its own region of the image, extracts and writes whole stored objects; a mark beside
the dataset says that it did, with a checksum of the samples it read. Blocks can therefore be
written in any order, by any process, again, and not again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
import xarray as xr
import zarr

from xpatches.arrays import Array
from xpatches.kernel import extract_block
from xpatches.layout import Layout
from xpatches.store import JOB, Folder

Reader: TypeAlias = Callable[[tuple[slice, ...]], Array]
"""Gives the samples of a region as NumPy, in any thread or process."""


@dataclass(frozen=True)
class Part:
    """The patches of one variable."""

    name: str
    """Of the stored array."""
    read: Reader
    layout: Layout
    fill_value: Array
    encoding: Mapping[str, Any]
    """How xarray encodes the patches."""

    def samples(self, block: tuple[slice, ...]) -> "_Samples":
        """Read the samples under a block, or prepare to read them piece by piece."""
        return _Samples(self.read, self.layout.region(block))

    def cut(self, step: tuple[slice, ...], samples: "_Samples") -> Array:
        """Extract the patches of a step of a block."""
        layout = self.layout
        lengths = tuple(along.stop - along.start for along in step)
        patches: Array | None = None
        for piece in layout.pieces(step):
            made = extract_block(samples.of(piece.region), piece.spans, self.fill_value)
            if layout.flat:
                spatial = list(layout.spatial)
                behind = spatial[-1] + 1
                sizes = range(behind, behind + len(spatial))
                others = [axis for axis in range(made.ndim) if axis not in (*spatial, *sizes)]
                made = made.transpose(*spatial, *sizes, *others)
                made = made.reshape(-1, *made.shape[len(spatial) :])
            if made.shape == lengths:
                patches = made
            else:
                patches = np.empty(lengths, made.dtype) if patches is None else patches
                patches[piece.place] = made
        assert patches is not None
        return patches

    def checksum(self, block: tuple[slice, ...]) -> int:
        """Give the checksum of the samples under a block."""
        samples = _Samples(self.read)
        for region in self.layout.reads(block):
            samples.of(region)
        return samples.checksum


class _Samples:
    """Samples of an image: of a region that is read once, or of any; and their checksum."""

    def __init__(self, read: Reader, whole: tuple[slice, ...] | None = None) -> None:
        self._read = read
        self.checksum = 0
        self._starts = [along.start for along in whole or ()]
        self._held = self._fetch(whole) if whole else None

    def of(self, region: tuple[slice, ...]) -> Array:
        """Give the samples of a region."""
        if self._held is None:
            return self._fetch(region)
        pairs = zip(region, self._starts, strict=True)
        return self._held[
            tuple(slice(along.start - start, along.stop - start) for along, start in pairs)
        ]

    def _fetch(self, region: tuple[slice, ...]) -> Array:
        samples = self._read(region)
        self.checksum = _checksum(samples, self.checksum)
        return samples


_PART = 1 << 18
"""Bytes that stay in cache between being copied and being added to a checksum."""


def _checksum(samples: Array, before: int) -> int:
    """Add samples, in C order, to a CRC-32C, part by part: it takes contiguous bytes only."""
    if samples.nbytes <= _PART or not samples.ndim:
        return int(google_crc32c.extend(before, samples.tobytes()))
    if len(samples) == 1:
        return _checksum(samples[0], before)
    rows = max(1, _PART * len(samples) // samples.nbytes)
    for first in range(0, len(samples), rows):
        before = _checksum(samples[first : first + rows], before)
    return before


@dataclass(frozen=True)
class Job:
    """The blocks of a dataset, which can be written by any process that has this."""

    folder: Folder
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(len(part.layout) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all patches."""
        return sum(part.layout.itemsize * prod(part.layout.shape) for part in self.parts)

    def locate(self, number: int) -> tuple[Part, tuple[slice, ...]]:
        """Find a block by its number."""
        for part, stop in zip(
            self.parts, accumulate(len(part.layout) for part in self.parts), strict=True
        ):
            if number < stop:
                return part, part.layout.block(number - stop + len(part.layout))
        raise IndexError(number)

    def write(self, number: int) -> int:
        """Extract, write and record a block; the bytes of its patches."""
        part, block = self.locate(number)
        samples, nbytes = part.samples(block), 0
        for step in part.layout.steps(block):
            patches = part.cut(step, samples)
            nbytes += patches.nbytes
            variable = xr.Variable(part.layout.dims, patches, encoding=dict(part.encoding))
            encoded = xr.conventions.encode_cf_variable(variable, name=part.name)
            self._arrays[part.name][step] = encoded.to_numpy()
        self.folder.put(mark_of(number), b"%010d" % samples.checksum)
        return nbytes

    def checksum(self, number: int) -> int:
        """Give the checksum of the samples under a block."""
        part, block = self.locate(number)
        return part.checksum(block)

    def describe(self, number: int) -> str:
        """Say which patches a block holds, and which samples they are cut from."""
        part, block = self.locate(number)
        layout = part.layout
        patches = ", ".join(
            f"{dim}={along.start}:{along.stop}"
            for dim, axis, along in zip(layout.dims, layout.axes, block, strict=True)
            if axis is not None or (layout.flat and dim == layout.dims[0])
        )
        regions = layout.reads(block)
        samples = ", ".join(
            f"{layout.grids[axis].dim}={min(r[axis].start for r in regions)}:"
            f"{max(r[axis].stop for r in regions)}"
            for axis in layout.spatial
        )
        return f"{part.name!r}, patches {patches} from samples {samples}"

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        # Patches that are all fill value are written, too: -0.0 and NaN's bits are kept, and zarr
        # need not compare every chunk with the fill value, in its one thread for all.
        arrays = {}
        for part in self.parts:
            path = self.folder.key(part.name)
            stored: Any = zarr.open_array(self.folder.store, path=path, mode="r+")
            with_config: Any = zarr.AsyncArray
            config = {"write_empty_chunks": True}
            arrays[part.name] = zarr.Array(with_config(stored.metadata, stored.store_path, config))
        return arrays


def mark_of(number: int) -> str:
    """Name of the object that says that a block is written."""
    return f"{JOB}/blocks/{number}"


def checksum_in(mark: bytes | None) -> int | None:
    """Give the checksum that a mark holds; None where there is none, or where it is torn."""
    return int(mark) if mark and len(mark) == 10 and mark.isdigit() else None
