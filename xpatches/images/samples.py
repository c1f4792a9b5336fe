"""Where the samples of an image are, and how regions of them are read."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from xpatches.arguments import as_integer, shown
from xpatches.dtypes import Array, as_promised, check_dtype, is_dask, kind_of
from xpatches.errors import PatchError
from xpatches.geometry.grid import AxisGrid, PatchGrid


def as_budget(max_bytes: object) -> int | None:
    """Normalise a budget in bytes; None is dask's, which is asked for where it is needed."""
    if not isinstance(max_bytes, str):
        return None if max_bytes is None else as_integer("max_bytes", max_bytes, 1)
    from xpatches.lazy.sources import (  # dask is loaded for what it reads only
        as_budget,
    )

    return as_budget(str.__str__(max_bytes))


def check_variable(what: str, variable: xr.Variable) -> None:
    """Refuse a variable whose samples the kernel cannot copy.

    Raises
    ------
    PatchError
        If the dtype is not of fixed width, a dim has a name that cannot be written down, the
        chunks' lengths are unknown, or the samples are held by another library than NumPy and dask.
    """
    check_dtype(what, variable.dtype)
    for dim in variable.dims:
        if not isinstance(dim, str | int):
            raise PatchError(
                f"dims of {what} must be named by strings, got {shown(dim)}; rename it"
            )
    check_dims(what, variable.dims)
    check_held(what, variable)


def check_dims(what: str, dims: Sequence[Hashable]) -> None:
    """Refuse a dim that is there twice."""
    if len(set(dims)) < len(dims):
        raise PatchError(f"{what} must have every dim once, got {shown(dims)}; rename one")


def check_held(what: str, variable: xr.Variable) -> None:
    """Refuse a variable that another library than NumPy and dask holds.

    Raises
    ------
    PatchError
        It says what to do.
    """
    data: Any = variable._data
    if is_dask(data):
        from xpatches.lazy.sources import (  # dask is loaded for dask arrays only
            check_chunks,
        )

        check_chunks(what, data)
    elif not isinstance(data, np.ndarray) and (
        hasattr(data, "__array_function__") or hasattr(data, "__array_namespace__")
    ):
        raise PatchError(
            f"{what} must hold NumPy or dask data, got {kind_of(data)}; convert it first, with "
            ".as_numpy()"
        )


def checked_lazy(variable: xr.Variable) -> xr.Variable:
    """Chunk a variable that is not in memory, and have blocks that dask computes checked."""
    if in_memory(variable):
        return variable
    from xpatches.lazy import graphs as lazy  # dask is loaded for lazy images only
    from xpatches.lazy.sources import (  # dask is loaded for lazy images only
        stored,
    )

    variable = chunk_lazy(variable)
    if stored(variable.data) is not None:
        return variable  # parts of what was opened are read without the rest of a chunk
    return variable.copy(data=lazy.checked(variable.data))


def sliceable(variable: xr.Variable, data: Any) -> Callable[[tuple[slice, ...]], Array] | None:
    """Give what reads regions of a variable that was opened, of which `data` are the chunks."""
    if not is_dask(variable._data):
        return partial(_read_region, variable)
    from xpatches.lazy.sources import (  # dask is loaded for dask arrays only
        stored,
    )

    return stored(data)


def region_reader(variable: xr.Variable) -> Callable[[tuple[slice, ...]], Array]:
    """Give what reads regions of a variable as NumPy, in any thread or process.

    Storage is read where the variable was opened, with dask or without; what was computed with dask
    is computed region by region.
    """
    if is_dask(variable._data):
        from xpatches.lazy.sources import (  # dask is loaded for dask arrays only
            computed,
            stored,
        )

        return stored(variable.data) or computed(variable.data)
    if in_memory(variable):
        variable = xr.Variable(variable.dims, variable.to_numpy())
    return partial(_read_region, variable)


def stored_chunks(variable: xr.Variable) -> tuple[int, ...]:
    """Give the lengths of what is read or computed at once of a variable that is not in memory."""
    chunked = chunk_lazy(variable)
    lengths = dict(zip(variable.dims, map(max, chunked.chunks or ()), strict=True))
    if sliceable(variable, chunked.data) is not None:  # dask's chunks may be several of the store's
        preferred = variable.encoding.get("preferred_chunks", {})
        lengths |= {dim: int(np.max(preferred[dim])) for dim in variable.dims if dim in preferred}
    return tuple(min(n, length) for n, length in zip(variable.shape, lengths.values(), strict=True))


def in_memory(variable: xr.Variable) -> bool:
    """Whether the samples of a variable are NumPy's, in memory."""
    return variable._in_memory and not is_dask(variable._data)


def every_axis(variable: xr.Variable, grid: PatchGrid) -> tuple[AxisGrid, ...]:
    """Give every axis of a variable its patches, of one sample along dims without."""
    return tuple(
        grid[dim] if dim in grid.dims else AxisGrid(dim, length, size=1, stride=1)
        for dim, length in variable.sizes.items()
    )


def _by_axis(variable: xr.Variable, grid: PatchGrid) -> dict[int, AxisGrid]:
    return {variable.dims.index(axis.dim): axis for axis in grid.arrange(variable.dims)}


def _read_region(variable: xr.Variable, region: tuple[slice, ...]) -> Array:
    return as_promised(variable[region].to_numpy(), region, variable.dtype)


def chunk_lazy(variable: xr.Variable) -> xr.Variable:
    """Chunk a variable as its storage is if it was opened without dask; others stay as they are."""
    if variable.chunks is not None or variable._in_memory:
        return variable
    stored = variable.encoding.get("preferred_chunks", {})
    if not stored.keys() >= set(variable.dims):  # renamed since it was opened
        stored = dict(zip(variable.dims, variable.encoding.get("chunks") or (), strict=False))
    rest = -1 if variable.dtype.hasobject else "auto"
    return variable.chunk({dim: stored.get(dim, rest) for dim in variable.dims})
