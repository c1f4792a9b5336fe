"""A model: what is run on batches of patches, what it is told of them, and what it may return."""

import threading
import uuid
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from xpatches.credentials import redacted, told
from xpatches.dtypes import Array
from xpatches.errors import MapError
from xpatches.geometry.grid import PatchGrid
from xpatches.images.labels import SAMPLE_DIM
from xpatches.mapping.output import ModelOutput


class Batch(NamedTuple):
    """Some patches, along the first axis of an array, then the dims of the image."""

    patches: Array
    indices: Sequence[tuple[int, ...]]
    """Of each of them in the grid."""

    def part(self, start: int, stop: int) -> "Batch":
        """Take some of the patches."""
        return Batch(self.patches[start:stop], self.indices[start:stop])


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
        self._function: Callable[[Any], Any] | None = None
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
            if self._function is None:
                try:
                    function = self.func()
                except Exception as error:
                    raise MapError(f"func, a factory, failed: {told(error)}") from error
                if not callable(function):
                    raise MapError(f"func, a factory, must give a function, got {function!r}")
                self._function = function
            return self._function


_FUNCTIONS: "weakref.WeakValueDictionary[str, Function]" = weakref.WeakValueDictionary()
_LAST: list[Function] = []
"""The factory that this process was sent last. Between two tasks nothing else may hold it, and a
model can take long to make."""
_RECEIVING = threading.Lock()


def _received(func: Callable[..., Any], factory: bool, identity: str) -> Function:
    with _RECEIVING:
        function = _FUNCTIONS.get(identity) or Function(func, factory, identity)
        if factory:
            _LAST[:] = [function]
        return function


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
    output: ModelOutput

    def run(self, batch: Batch) -> Array:
        """Run the function on a batch.

        Raises
        ------
        MapError
            If the function fails, or returns something else than was declared.
        """
        func = self.function.get()
        try:
            returned = self._call(func, batch)
        except Exception as error:
            raise self._failed(func, batch, error) from error
        return self._checked(returned, batch.indices)

    def _call(self, func: Callable[[Any], Any], batch: Batch) -> Any:
        if not self.labelled:
            return func(batch.patches)
        dims = (SAMPLE_DIM, *map(self.renamed, self.dims))
        coords = self._coords_of(batch.indices)
        return func(xr.DataArray(batch.patches, coords, dims, self.name, dict(self.attrs)))

    def renamed(self, dim: Hashable) -> Hashable:
        """Name a dim of a patch."""
        return f"{dim}_patch" if dim in self.grid.dims else dim

    def _coords_of(self, indices: Sequence[tuple[int, ...]]) -> xr.Coordinates:
        """Lay the coords of some patches along ``sample``."""
        along = {
            dim: xr.Variable(SAMPLE_DIM, list(numbers))
            for dim, numbers in zip(self.grid.dims, zip(*indices, strict=True), strict=True)
        }
        taken = self.coords.to_dataset().isel(along)
        return taken.compute(scheduler="synchronous").coords

    def _failed(self, func: Callable[[Any], Any], batch: Batch, error: Exception) -> MapError:
        """Name the patch of a batch that a function fails on, if it fails on one by itself.

        A batch that is tried again is not searched again.
        """
        key, culprits = (self.name, *batch.indices), self.function.culprits
        if key not in culprits:
            culprits[key], error = self._search(func, batch, error)
        culprit, count = culprits[key], len(batch.indices)
        what = f"a batch of {count} patches, the first" if culprit is None else "the patch"
        index = batch.indices[culprit or 0]
        origins = ", ".join(
            f"{axis.dim}={axis.origins[i]}" for axis, i in zip(self.grid, index, strict=True)
        )
        coords = self._coords_of([index])
        labels = ", ".join(
            f"{dim}={coords[dim].values[0]}" for dim in self.grid.dims if dim in coords
        )
        center = f" (center {labels})" if labels else ""
        reason = told(error)
        failure = MapError(f"func failed on {what} with origin {origins}{center}: {reason}")
        failure.reason = reason
        return failure

    def _search(
        self, func: Callable[[Any], Any], batch: Batch, error: Exception
    ) -> tuple[int | None, Exception]:
        """Find the first patch that a function fails on by itself, and how, by halving a batch."""

        def error_on(start: int, stop: int) -> Exception | None:
            try:
                self._call(func, batch.part(start, stop))
            except Exception as again:  # whatever the user's function raises
                return again
            return None

        start, stop, failed, last = 0, len(batch.indices), True, error
        while stop - start > 1:
            middle = (start + stop) // 2
            again = error_on(start, middle)
            failed = again is not None
            start, stop = (start, middle) if failed else (middle, stop)
            last = again or last
        alone = last if failed else error_on(start, stop)
        return (None, error) if alone is None else (start, alone)

    def _checked(self, returned: Any, indices: Sequence[tuple[int, ...]]) -> Array:
        """Give what the function returned as it was declared."""
        if isinstance(returned, xr.DataArray):
            returned = self._in_order(returned, indices)
        if isinstance(returned, np.ma.MaskedArray):
            raise MapError("func must return a plain array, got a masked one; fill it in func")
        try:
            array = np.asarray(returned)
        except Exception as error:  # whatever a type raises that is no array
            raise MapError(
                f"func must return an array, got {type(returned).__name__}: {redacted(error)}; "
                "convert it in func"
            ) from error
        shape, dtype = (len(indices), *self.output.shape), self.output.dtype
        if array.shape != shape:
            raise MapError(
                f"func must return the shape {shape} for {len(indices)} patches, "
                f"{self.output.sizes} behind the batch, got {array.shape}; say in output what it "
                "returns: dims, sizes (where margins are cut off), scale (where it is coarser or "
                "finer)"
            )
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise MapError(
                f"func must return {dtype}, got {array.dtype}; declare "
                f"output={{'dtype': {str(array.dtype)!r}}}, or convert in func"
            )
        converted = array.astype(dtype, copy=False)
        exact = array.dtype == converted.dtype or converted.dtype.kind in "fcmM"
        if not exact and (converted != array).any():
            raise MapError(
                f"func must return values that {dtype} can hold, got others of "
                f"{array.dtype}; declare another output={{'dtype': ...}}"
            )
        return converted

    def _in_order(self, batch: xr.DataArray, indices: Sequence[tuple[int, ...]]) -> xr.DataArray:
        """Bring the dims of a labelled batch in order, if its patches still are."""
        dims = (SAMPLE_DIM, *map(self.renamed, self.output.dims))
        if set(batch.dims) != set(dims):
            raise MapError(
                f"func must return the dims {dims}, got {batch.dims}; declare those it returns, "
                "output={'dims': ..., 'sizes': ...}"
            )
        expected: dict[str, Sequence[int]] = {}
        for number, (axis, cover) in enumerate(zip(self.grid, self.output.covers, strict=True)):
            expected[f"{axis.dim}_origin"] = [axis.origins[index[number]] for index in indices]
            if cover.stride == axis.stride:  # with a scale, samples are others
                margin = (axis.size - cover.size) // 2
                expected[f"{axis.dim}_patch"] = axis.offsets[margin : margin + cover.size]
        for name, numbers in expected.items():
            values = batch.coords[name].values if name in batch.coords else np.array(None)
            if values.shape == (len(numbers),) and (values != numbers).any():
                raise MapError(
                    f"func must return {name!r} as {[*numbers]}, got {values.tolist()}; keep "
                    "the order of patches, and cut off as many samples on both sides"
                )
        return batch.transpose(*dims)
