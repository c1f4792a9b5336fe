"""The NumPy kernel of a map: samples in, patches through a model, an image out.

Rows of patches are extracted, run in batches and stitched one after the other, so that neither all
patches of a block nor all that is made of them stand in memory.
"""

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from xpatches.accumulate import Stitching, stitch_block
from xpatches.arrays import Array
from xpatches.errors import MapError
from xpatches.geometry import AxisGrid, PatchGrid, Span, split_run
from xpatches.kernel import extract_block
from xpatches.layout import SAMPLE_DIM
from xpatches.runs import Run, band_of, patches_over


@dataclass(frozen=True)
class Made:
    """What a model returns for a patch."""

    dims: tuple[Hashable, ...]
    """Dims, in order; the spatial ones are the image's."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Model:
    """A function of batches of patches, and what it is told of them.

    It is sent to a process once. What a factory makes there is made once, too, and lives as long.
    """

    func: Callable[..., Any]
    factory: bool
    """Whether `func` gives the function, and is called in every process."""
    batch_size: int
    labelled: bool
    """Whether the function takes labelled arrays."""
    dims: tuple[Hashable, ...]
    """Dims of the image."""
    grid: PatchGrid
    coords: xr.Coordinates
    """Of all patches, along the dims of the grid."""
    name: Hashable
    attrs: Mapping[Any, Any]
    fill_value: Array
    """Of samples outside the image."""
    made: Made

    def __post_init__(self) -> None:
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {of.name: getattr(self, of.name) for of in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # No fields: neither are they sent, nor do they tell this model from others.
        self.__dict__.update(state, _cache={}, _lock=threading.Lock())

    def run(self, patches: Array, indices: Sequence[tuple[int, ...]]) -> Array:
        """Run the function on a batch.

        Parameters
        ----------
        patches
            The patches along the first axis, then the dims of the image.
        indices
            For every patch its index in the grid.

        Raises
        ------
        MapError
            If the function fails, or returns something else than was declared.
        """
        func = self._function()
        try:
            given = func(self._labelled(patches, indices) if self.labelled else patches)
        except Exception as error:
            raise self._failed(patches, indices, error) from error
        return self._checked(given, len(patches))

    def _function(self) -> Callable[[Any], Any]:
        if not self.factory:
            return self.func
        cache: dict[str, Any] = self.__dict__["_cache"]
        with self.__dict__["_lock"]:
            if "made" not in cache:
                try:
                    cache["made"] = self.func()
                except Exception as error:
                    raise MapError(
                        f"func, a factory, failed: {type(error).__name__}: {error}"
                    ) from error
                if not callable(cache["made"]):
                    raise MapError(f"func, a factory, must give a function, got {cache['made']!r}")
            made: Callable[[Any], Any] = cache["made"]
            return made

    def _labelled(self, patches: Array, indices: Sequence[tuple[int, ...]]) -> xr.DataArray:
        """Label a batch: the patches' coords lie along ``sample``."""
        dims = (SAMPLE_DIM, *(self.renamed(dim) for dim in self.dims))
        return xr.DataArray(patches, self._coords_of(indices), dims, self.name, dict(self.attrs))

    def renamed(self, dim: Hashable) -> Hashable:
        """Name a dim of a patch."""
        return f"{dim}_patch" if dim in self.grid.dims else dim

    def _coords_of(self, indices: Sequence[tuple[int, ...]]) -> xr.Coordinates:
        along = {
            dim: xr.Variable(SAMPLE_DIM, list(numbers))
            for dim, numbers in zip(self.grid.dims, zip(*indices, strict=True), strict=True)
        }
        taken = self.coords.to_dataset().isel(along)
        return taken.compute(scheduler="synchronous").coords

    def _failed(
        self, patches: Array, indices: Sequence[tuple[int, ...]], error: Exception
    ) -> MapError:
        """Find the patch of a batch that a function fails on, and name it."""
        what, number = f"a batch of {len(patches)} patches, the first", 0
        for one, index in enumerate(indices):
            if len(patches) == 1:
                what = "the patch"
                break
            some = patches[one : one + 1]
            try:
                self._function()(self._labelled(some, [index]) if self.labelled else some)
            except Exception as again:
                what, number, error = "the patch", one, again
                break
        index = indices[number]
        origins = ", ".join(
            f"{axis.dim}={axis.origins[i]}" for axis, i in zip(self.grid, index, strict=True)
        )
        found = self._coords_of([index]).to_dataset()
        labels = ", ".join(
            f"{dim}={found[dim].values[0]}" for dim in self.grid.dims if dim in found
        )
        centre = f" (center {labels})" if labels else ""
        return MapError(
            f"func failed on {what} with origin {origins}{centre}: {type(error).__name__}: {error}"
        )

    def _checked(self, given: Any, count: int) -> Array:
        """Give what the function returned as it was declared."""
        if isinstance(given, xr.DataArray):
            dims = (SAMPLE_DIM, *map(self.renamed, self.made.dims))
            if set(given.dims) != set(dims):
                raise MapError(
                    f"func must return the dims {dims}, got {given.dims}; declare those it "
                    "returns, output={'dims': ..., 'sizes': ...}"
                )
            given = given.transpose(*dims)
        made = np.asarray(given)
        if made.shape != (count, *self.made.shape):
            sizes = dict(zip(self.made.dims, self.made.shape, strict=True))
            raise MapError(
                f"func must return the shape {(count, *self.made.shape)} for {count} patches, "
                f"{sizes} behind the batch, got {made.shape}; declare what it returns, "
                "output={'dims': ..., 'sizes': ...}"
            )
        if not np.can_cast(made.dtype, self.made.dtype, "same_kind"):
            raise MapError(
                f"func must return {self.made.dtype}, got {made.dtype}; declare "
                f"output={{'dtype': {str(made.dtype)!r}}}, or convert in func"
            )
        return made.astype(self.made.dtype, copy=False)


class Placed(NamedTuple):
    """Where patches lie in a region of the image, along one dim."""

    axis: int
    grid: AxisGrid
    zero: int
    """Index in the region of the first sample of patch 0, which may be far outside."""


def run_patches(
    samples: Array, placed: Sequence[Placed], model: Model, numbers: Sequence[range], made: Array
) -> None:
    """Run a model on a box of patches, batch by batch.

    Parameters
    ----------
    samples
        A region of the image.
    placed
        Where the patches lie in it, for every spatial dim.
    model
        Makes something of the patches.
    numbers
        Of the patches, for every spatial dim.
    made
        C-contiguous; is set to what is made of the patches, one after the other.
    """
    counts = tuple(map(len, numbers))
    made = made.reshape(prod(counts), *model.made.shape)
    for start in range(0, len(made), model.batch_size):
        stop = min(start + model.batch_size, len(made))
        parts: list[Array] = []
        indices: list[tuple[int, ...]] = []
        for box in split_run(counts, start, stop):
            chosen = [of[along.start : along.stop] for of, along in zip(numbers, box, strict=True)]
            parts.append(_extract(samples, placed, model.fill_value, chosen))
            indices += product(*chosen)
        batch = parts[0] if len(parts) == 1 else np.concatenate(parts)
        made[start:stop] = model.run(batch, indices)


def _extract(
    samples: Array, placed: Sequence[Placed], fill_value: Array, numbers: Sequence[range]
) -> Array:
    """Copy a box of patches, one after the other, each with the dims of the image."""
    spans = [
        Span(axis, grid, zero + of.start * grid.stride, len(of))
        for (axis, grid, zero), of in zip(placed, numbers, strict=True)
    ]
    patches = extract_block(samples, spans, fill_value)
    spatial = [span.axis for span in spans]
    behind, lead = spatial[-1] + 1, len(spatial)
    order = [
        behind + spatial.index(axis) if axis in spatial else axis + (lead if axis >= behind else 0)
        for axis in range(samples.ndim)
    ]
    laid = patches.transpose(*spatial, *order)
    return np.ascontiguousarray(laid).reshape(-1, *laid.shape[lead:])


def map_block(samples: Array, runs: Sequence[Run], model: Model, stitching: Stitching) -> Array:
    """Make one block of the image that a model makes.

    Parameters
    ----------
    samples
        The region of the image under the patches over the block.
    runs
        The patches and the block, along every spatial axis of the image.
    model
        Makes something of the patches.
    stitching
        What to make of that.

    Returns
    -------
    numpy.ndarray
        Of `Made.dims`, with the block's lengths along the spatial ones.
    """
    made, lead = model.made, len(runs)
    places = [made.dims.index(model.dims[run.span.axis]) for run in runs]
    axes = [(number, lead + place) for number, place in enumerate(places)]
    order = [places.index(of) if of in places else lead + of for of in range(len(made.dims))]
    first, *covers = (run.cover for run in runs)
    shape = list(made.shape)
    for place, cover in zip(places, (first, *covers), strict=True):
        shape[place] = cover.length
    result = np.empty(shape, stitching.dtype)
    placed = [
        Placed(span.axis, span.grid, span.first - cover.first * span.grid.stride)
        for span, cover in runs
    ]
    columns = [range(cover.first, cover.first + cover.count) for cover in covers]
    band = band_of(first.axis, list(map(len, columns)), model.batch_size)
    begin = first.axis.origin + first.first * first.axis.stride - first.origin
    most = patches_over(first.axis, min(band, first.length))
    held = np.empty((most, *map(len, columns), *made.shape), made.dtype)
    rows = range(first.first, first.first)  # that are held
    for start in range(0, max(1, first.length), band):
        stop = min(start + band, first.length)
        block = first.axis.block(begin + start, begin + stop)
        over = range(block.first, block.first + block.count)
        kept = range(over.start, max(over.start, rows.stop))
        held[: len(kept)] = held[over.start - rows.start :][: len(kept)]
        fresh = held[len(kept) : len(over)]
        run_patches(samples, placed, model, [over[len(kept) :], *columns], fresh)
        rows = over
        to = (slice(None),) * places[0] + (slice(start, stop),)
        result[to] = stitch_block(held[: len(over)], [block, *covers], axes, order, stitching)
    return result
