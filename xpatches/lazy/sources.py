"""What a dask array was made from, budgets, and arrays that are not there yet."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.utils import parse_bytes

from xpatches.arguments import as_integer, shown
from xpatches.dtypes import Array, as_promised, kind_of
from xpatches.errors import PatchError
from xpatches.lazy.graphs import PLANNED, Slices, Work, checked, refuse_planned
from xpatches.private_names import opened_from


def as_budget(max_bytes: int | str | None) -> int:
    """Normalise a budget in bytes; None is dask's ``array.chunk-size``.

    Raises
    ------
    PatchError
        If it is neither a positive integer nor a string such as ``"64 MiB"``.
    """
    if max_bytes is None:
        max_bytes = dask.config.get("array.chunk-size")
    if isinstance(max_bytes, str):
        try:
            max_bytes = parse_bytes(max_bytes)
        except (ValueError, OverflowError):
            raise PatchError(
                f"max_bytes must be a number of bytes or a string like '64 MiB', got "
                f"{shown(max_bytes)}"
            ) from None
    return as_integer("max_bytes", max_bytes, 1)


def check_chunks(what: str, array: Any) -> None:
    """Refuse a dask array of unknown shape, or one whose chunks are not NumPy arrays.

    Raises
    ------
    PatchError
        If a chunk's length is unknown, or the chunks are of another array library.
    """
    if any(np.isnan(length) for lengths in array.chunks for length in lengths):
        raise PatchError(f"{what} has chunks of unknown length; call compute_chunk_sizes() first")
    sample = meta_from_array(array)
    if type(sample) is not np.ndarray:
        raise PatchError(
            f"{what} must hold NumPy chunks, got {kind_of(sample)}; convert it first with "
            "map_blocks"
        )


def stored(array: Any) -> Callable[[Slices], Array] | None:
    """Give what reads regions of what a dask array was made from, if nothing was done to it since.

    That is so for what xarray, `dask.array.from_array` and `dask.array.from_zarr` open.
    """
    opened = opened_from(array)
    if opened is None:
        return None
    source, lock = opened
    return partial(_slice, source, array.dtype, lock or nullcontext())


def opened(array: Any) -> Any:
    """Give a zarr array as a lazy one, in chunks of its stored objects."""
    return da.from_array(array, chunks=array.shards or array.chunks)


def sources(array: Any) -> list[Any]:
    """List what a dask array was made from, as far as its graph shows: arrays and variables."""
    if PLANNED:
        return [
            given
            for node in array.expr.walk()
            for source in node.operands
            for given in _given(source)
        ]
    found: list[Any] = []
    for layer in array.dask.layers.values():
        if len(layer) == 1:
            found += layer.values()
    return [given for source in found for given in _given(source)]


def _given(source: Any) -> Iterator[Any]:
    """Look into what reads regions."""
    source = getattr(source, "value", source)  # of a node of a graph
    if isinstance(source, tuple):
        for part in source:
            yield from _given(part)
    elif isinstance(source, partial):
        yield from _given(source.args)
    elif isinstance(source, Work):
        yield from _given(source.source)
    else:
        yield source


def computed(array: Any) -> Callable[[Slices], Array]:
    """Give what computes regions of a dask array, in the thread that asks."""
    return partial(_compute, checked(array))


def _compute(array: Any, region: Slices) -> Array:
    return np.asarray(array[region].compute(scheduler="synchronous"))


def placeholder(shape: tuple[int, ...], dtype: Any) -> Any:
    """Give an array of one chunk, of any size, that is never to be computed, for `to_zarr`."""
    refuse_planned("writing a job")
    return da.zeros(shape, dtype=dtype, chunks=shape)


def promised(shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...]) -> Any:
    """Give an array to plan with, as it will be when it is opened; nothing of it can be read."""
    name = f"promised-{tokenize(shape, dtype, chunks)}"
    meta = np.empty((0,) * len(shape), dtype)
    return da.from_array(_Promised(shape, dtype), chunks, name, meta=meta, asarray=False)


@dataclass(frozen=True, slots=True)
class _Promised:
    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, region: Slices) -> Array:
        raise TypeError("what is promised is not there yet")


def _slice(source: Any, dtype: Any, lock: Any, region: Slices) -> Array:
    with lock:
        return as_promised(np.asanyarray(source[region]), region, dtype)
