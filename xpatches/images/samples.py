"""Where the samples of an image are, and how regions of them are read."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from xpatches.arguments import as_integer, shown
from xpatches.dtypes import Array, as_promised, check_dtype, is_dask, kind_of
from xpatches.errors import PatchError
from xpatches.geometry.blocks import BlockPlan, Kernel, run_kernel
from xpatches.geometry.grid import AxisGrid, PatchGrid
from xpatches.private_names import held, is_loaded

Reader: TypeAlias = Callable[[tuple[slice, ...]], Array]
"""Gives the samples of a region as NumPy, in any thread or process."""


@dataclass(frozen=True)
class Source:
    """The samples of an image, on which a kernel is run: at once in memory, lazily elsewhere."""

    data: Any
    """A NumPy array, or a dask array in the chunks of the storage."""
    chunks: tuple[tuple[int, ...], ...]
    """Lengths of what is read or computed at once, along every axis."""
    read: Reader | None = None
    """What reads regions, where the image was opened and nothing was done to it since."""
    token: str = ""
    """Tells what is read from all else."""

    @property
    def in_memory(self) -> bool:
        """Whether the samples are."""
        return isinstance(self.data, np.ndarray)

    def run(self, blocks: BlockPlan, kernel: Kernel, dtype: Any) -> Any:
        """Run a kernel on all blocks, of which there is one in memory.

        Returns
        -------
        numpy.ndarray or dask.array.Array
            Of `dtype`.
        """
        if self.in_memory:
            region, takes = blocks.read([0] * len(blocks.axes))
            return run_kernel(kernel, takes, self.data[region])
        from xpatches.lazy import graphs as lazy  # dask is loaded for lazy images only

        if self.read is None:
            return lazy.exchange(self.data, blocks, kernel, dtype)
        return lazy.read(self.read, self.token, blocks, kernel, dtype)

    def tasks(self, blocks: BlockPlan) -> tuple[int, int]:
        """Count the tasks that `run` adds, and those of the image that they need."""
        if self.in_memory:
            return 1, 0
        from xpatches.lazy import graphs as lazy  # dask is loaded for lazy images only

        if self.read is None:
            return lazy.exchanged_tasks(self.data, blocks), len(self.data.__dask_graph__())
        return lazy.read_tasks(blocks), 0


def source_of(variable: xr.Variable) -> Source:
    """Find where the samples of a variable are; nothing is read."""
    if in_memory(variable):
        return Source(variable.to_numpy(), tuple((n,) for n in variable.shape))
    data = chunk_lazy(variable).data
    if not is_dask(held(variable)):
        return Source(data, data.chunks, partial(_read_region, variable), data.name)
    from xpatches.lazy.sources import stored  # dask is loaded for dask arrays only

    return Source(data, data.chunks, stored(data), data.name)


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
    data = held(variable)
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


def region_reader(variable: xr.Variable) -> Reader:
    """Give what reads regions of a variable as NumPy, in any thread or process.

    Storage is read where the variable was opened, with dask or without; what was computed with dask
    is computed region by region.
    """
    source = source_of(variable)
    if source.in_memory:
        return partial(_read_region, xr.Variable(variable.dims, source.data))
    if source.read is not None:
        return source.read
    from xpatches.lazy.sources import computed  # dask is loaded for dask arrays only

    return computed(source.data)


def stored_chunks(variable: xr.Variable) -> tuple[int, ...]:
    """Give the lengths of what is read or computed at once of a variable that is not in memory."""
    source = source_of(variable)
    lengths = dict(zip(variable.dims, map(max, source.chunks), strict=True))
    if source.read is not None:  # dask's chunks may be several of the store's
        preferred = variable.encoding.get("preferred_chunks", {})
        lengths |= {dim: int(np.max(preferred[dim])) for dim in variable.dims if dim in preferred}
    return tuple(min(n, length) for n, length in zip(variable.shape, lengths.values(), strict=True))


def in_memory(variable: xr.Variable) -> bool:
    """Whether the samples of a variable are NumPy's, in memory."""
    return is_loaded(variable) and not is_dask(held(variable))


def every_axis(variable: xr.Variable, grid: PatchGrid) -> tuple[AxisGrid, ...]:
    """Give every axis of a variable its patches, of one sample along dims without."""
    return tuple(
        grid[dim] if dim in grid.dims else AxisGrid(dim, length, size=1, stride=1)
        for dim, length in variable.sizes.items()
    )


def by_axis(variable: xr.Variable, grid: PatchGrid) -> dict[int, AxisGrid]:
    """Give the patches along every axis that has some, by its number."""
    return {variable.dims.index(axis.dim): axis for axis in grid.arrange(variable.dims)}


def _read_region(variable: xr.Variable, region: tuple[slice, ...]) -> Array:
    return as_promised(variable[region].to_numpy(), region, variable.dtype)


def chunk_lazy(variable: xr.Variable) -> xr.Variable:
    """Chunk a variable as its storage is if it was opened without dask; others stay as they are."""
    if variable.chunks is not None or is_loaded(variable):
        return variable
    stored = variable.encoding.get("preferred_chunks", {})
    if not stored.keys() >= set(variable.dims):  # renamed since it was opened
        stored = dict(zip(variable.dims, variable.encoding.get("chunks") or (), strict=False))
    rest = -1 if variable.dtype.hasobject else "auto"
    return variable.chunk({dim: stored.get(dim, rest) for dim in variable.dims})
