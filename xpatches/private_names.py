"""What no public way of xarray, dask and zarr gives: all private names of theirs in use.

tests/test_private_names.py fails when one of them goes.
"""

from collections.abc import Coroutine
from typing import Any, TypeVar

import xarray as xr

T = TypeVar("T")


def held(variable: xr.Variable) -> Any:
    """Give what holds the samples of a variable: its `data` would read what was opened lazily."""
    return variable._data


def is_loaded(variable: xr.Variable) -> bool:
    """Tell whether the samples of a variable were read; nothing public does without reading."""
    return bool(variable._in_memory)


def opened_from(array: Any) -> tuple[Any, Any] | None:
    """Give what a dask array was made from, and its lock, if nothing was done to it since.

    That is so for what xarray, `dask.array.from_array` and `dask.array.from_zarr` open. The graph
    knows it, whose layers are public, but not what their tasks hold.
    """
    original, layers = f"original-{array.name}", getattr(array.dask, "layers", {})
    if set(layers) != {array.name, original}:
        return None
    source = layers[original][original]
    return getattr(source, "value", source), layers[array.name].task.kwargs.get("lock")


def sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on zarr's event loop, to which the connections of its stores belong."""
    from zarr.core.sync import sync  # zarr is loaded for stores only

    return sync(coroutine)
