"""The NumPy kernel of a map: samples in, patches through a model, an image out.

Rows of patches are extracted, run in batches and stitched one after the other, so that neither all
patches of a block nor all that is made of them stand in memory.
"""

import threading
import uuid
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from xpatches.dtypes import Array
from xpatches.errors import MapError
from xpatches.extraction.kernel import extract_block
from xpatches.geometry.boxes import Span, split_run
from xpatches.geometry.grid import AxisGrid, PatchGrid
from xpatches.images.labels import SAMPLE_DIM
from xpatches.mapping.plan import Run, band_of
from xpatches.redaction import redacted, told
from xpatches.stitching.overlay import Stitching, stitch_block


@dataclass(frozen=True)
class Made:
    """What a model returns for a patch."""

    dims: tuple[Hashable, ...]
    """Dims, in order; the spatial ones are the image's."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offsets: Mapping[Hashable, range]
    """Which samples of the patch these are, along dims without a scale."""


@dataclass(eq=False)
class Function:
    """What is run on patches, or a factory that gives it, which is called once in a process.

    However often it is sent to a process, there is one of it there: as long as any is in use, and
    a factory until another is sent.
    """

    func: Callable[..., Any]
    factory: bool
    identity: InitVar[str | None] = None

    def __post_init__(self, identity: str | None) -> None:
        self._identity = identity or uuid.uuid4().hex
        self._making = threading.Lock()
        self._made: Callable[[Any], Any] | None = None
        self.culprits: dict[Any, int | None] = {}
        _FUNCTIONS[self._identity] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.func, self.factory, self._identity)

    def get(self) -> Callable[[Any], Any]:
        """Give the function.

        Raises
        ------
        MapError
            If the factory fails.
        """
        if not self.factory:
            return self.func
        with self._making:
            if self._made is None:
                try:
                    made = self.func()
                except Exception as error:
                    raise MapError(f"func, a factory, failed: {told(error)}") from error
                if not callable(made):
                    raise MapError(f"func, a factory, must give a function, got {made!r}")
                self._made = made
            return self._made


_FUNCTIONS: "weakref.WeakValueDictionary[str, Function]" = weakref.WeakValueDictionary()
_LAST: list[Function] = []
"""The factory that this process was sent last. Between two tasks nothing else may hold it, and a
model can take long to make."""
_RECEIVING = threading.Lock()


def _received(func: Callable[..., Any], factory: bool, identity: str) -> Function:
    with _RECEIVING:
        found = _FUNCTIONS.get(identity) or Function(func, factory, identity)
        if factory:
            _LAST[:] = [found]
        return found


@dataclass(frozen=True)
class Model:
    """A function of batches of patches, and what it is told of them."""

    function: Function
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
        func = self.function.get()
        try:
            given = func(self._labelled(patches, indices) if self.labelled else patches)
        except Exception as error:
            raise self._failed(func, patches, indices, error) from error
        return self._checked(given, indices)

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
        self,
        func: Callable[[Any], Any],
        patches: Array,
        indices: Sequence[tuple[int, ...]],
        error: Exception,
    ) -> MapError:
        """Name the patch of a batch that a function fails on, if it fails on one by itself.

        A batch that is tried again is not searched again.
        """
        batch, culprits = (self.name, *indices), self.function.culprits
        if batch in culprits:
            culprit = culprits[batch]
        else:
            culprit, error = self._search(func, patches, indices, error)
            culprits[batch] = culprit
        what = f"a batch of {len(patches)} patches, the first" if culprit is None else "the patch"
        index = indices[culprit or 0]
        origins = ", ".join(
            f"{axis.dim}={axis.origins[i]}" for axis, i in zip(self.grid, index, strict=True)
        )
        found = self._coords_of([index]).to_dataset()
        labels = ", ".join(
            f"{dim}={found[dim].values[0]}" for dim in self.grid.dims if dim in found
        )
        center = f" (center {labels})" if labels else ""
        reason = told(error)
        failure = MapError(f"func failed on {what} with origin {origins}{center}: {reason}")
        failure.reason = reason
        return failure

    def _search(
        self,
        func: Callable[[Any], Any],
        patches: Array,
        indices: Sequence[tuple[int, ...]],
        error: Exception,
    ) -> tuple[int | None, Exception]:
        """Find the first patch that a function fails on by itself, and how, by halving a batch."""

        def run(start: int, stop: int) -> Exception | None:
            some = patches[start:stop]
            try:
                func(self._labelled(some, indices[start:stop]) if self.labelled else some)
            except Exception as again:  # whatever the user's function raises
                return again
            return None

        start, stop, failed, last = 0, len(patches), True, error
        while stop - start > 1:
            middle = (start + stop) // 2
            again = run(start, middle)
            failed = again is not None
            start, stop = (start, middle) if failed else (middle, stop)
            last = again or last
        alone = last if failed else run(start, stop)
        return (None, error) if alone is None else (start, alone)

    def _checked(self, given: Any, indices: Sequence[tuple[int, ...]]) -> Array:
        """Give what the function returned as it was declared."""
        if isinstance(given, xr.DataArray):
            given = self._by_name(given, indices)
        if isinstance(given, np.ma.MaskedArray):
            raise MapError("func must return a plain array, got a masked one; fill it in func")
        try:
            made = np.asarray(given)
        except Exception as error:  # whatever a type raises that is no array
            raise MapError(
                f"func must return an array, got {type(given).__name__}: {redacted(error)}; "
                "convert it in func"
            ) from error
        shape = (len(indices), *self.made.shape)
        if made.shape != shape:
            sizes = dict(zip(self.made.dims, self.made.shape, strict=True))
            raise MapError(
                f"func must return the shape {shape} for {len(indices)} patches, {sizes} behind "
                f"the batch, got {made.shape}; say in output what it returns: dims, sizes (where "
                "margins are cut off), scale (where it is coarser or finer)"
            )
        if not np.can_cast(made.dtype, self.made.dtype, "same_kind"):
            raise MapError(
                f"func must return {self.made.dtype}, got {made.dtype}; declare "
                f"output={{'dtype': {str(made.dtype)!r}}}, or convert in func"
            )
        converted = made.astype(self.made.dtype, copy=False)
        exact = made.dtype == converted.dtype or converted.dtype.kind in "fcmM"
        if not exact and (converted != made).any():
            raise MapError(
                f"func must return values that {self.made.dtype} can hold, got others of "
                f"{made.dtype}; declare another output={{'dtype': ...}}"
            )
        return converted

    def _by_name(self, given: xr.DataArray, indices: Sequence[tuple[int, ...]]) -> xr.DataArray:
        """Bring the dims of a labelled batch in order, if its patches still are."""
        dims = (SAMPLE_DIM, *map(self.renamed, self.made.dims))
        if set(given.dims) != set(dims):
            raise MapError(
                f"func must return the dims {dims}, got {given.dims}; declare those it returns, "
                "output={'dims': ..., 'sizes': ...}"
            )
        for number, axis in enumerate(self.grid):
            origins = [axis.origins[index[number]] for index in indices]
            offsets = self.made.offsets.get(axis.dim)
            for name, expected in ((f"{axis.dim}_origin", origins), (f"{axis.dim}_patch", offsets)):
                if expected is None or name not in given.coords:
                    continue
                found = given.coords[name].values
                if found.shape == (len(expected),) and (found != expected).any():
                    raise MapError(
                        f"func must return {name!r} as {[*expected]}, got {found.tolist()}; keep "
                        "the order of patches, and cut off as many samples on both sides"
                    )
        return given.transpose(*dims)


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
    patches = extract_block(samples, sorted(spans, key=lambda span: span.axis), fill_value)
    numbered = [span.axis for span in spans]
    spatial = sorted(numbered)
    behind, lead = spatial[-1] + 1, len(spatial)
    order = [
        behind + spatial.index(axis) if axis in spatial else axis + (lead if axis >= behind else 0)
        for axis in range(samples.ndim)
    ]
    laid = patches.transpose(*numbered, *order)
    return np.ascontiguousarray(laid).reshape(prod(map(len, numbers)), *laid.shape[lead:])


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
    by_axis = {run.span.axis: run for run in runs}
    runs = [by_axis[model.dims.index(dim)] for dim in model.grid.dims]
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
    most = first.axis.most_over(min(band, first.length))
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
