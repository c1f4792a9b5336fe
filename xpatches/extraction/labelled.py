"""Patches of one variable: NumPy in memory or lazily through dask, whichever holds it."""

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.arguments import as_integer, said, shown
from xpatches.dtypes import Array, as_promised, check_dtype, is_dask, kind_of
from xpatches.errors import MapError, PatchError
from xpatches.extraction.kernel import Kernel, available_threads, extract_block, extract_flat
from xpatches.extraction.plan import Form, Plan, plan_blocks
from xpatches.geometry.grid import AxisGrid, PatchGrid, Span, clip
from xpatches.images import labels
from xpatches.images.lines import Line
from xpatches.images.packing import kept_attrs, kept_encoding, of_another_quantity, of_other_numbers
from xpatches.images.spec import SPEC_ATTR, write_spec
from xpatches.reduction.kernel import SEPARABLE, Reduction, reduce_block


def as_budget(max_bytes: object) -> int | None:
    """Normalise a budget in bytes; None is dask's, which is asked for where it is needed."""
    if not isinstance(max_bytes, str):
        return None if max_bytes is None else as_integer("max_bytes", max_bytes, 1)
    from xpatches.lazy import graphs as lazy  # dask is loaded for what it reads only

    return lazy.as_budget(str.__str__(max_bytes))


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
        from xpatches.lazy import graphs as lazy  # dask is loaded for dask arrays only

        lazy.check_chunks(what, data)
    elif not isinstance(data, np.ndarray) and (
        hasattr(data, "__array_function__") or hasattr(data, "__array_namespace__")
    ):
        raise PatchError(
            f"{what} must hold NumPy or dask data, got {kind_of(data)}; convert it first, with "
            ".as_numpy()"
        )


def extract_variable(
    variable: xr.Variable,
    grid: PatchGrid,
    fill_value: Array,
    label: str,
    joined: Mapping[Hashable, int],
    even: Mapping[Hashable, Line],
    how: Mapping[str, Any],
) -> xr.Variable:
    """Extract all patches of a variable along those dims of the grid that it has.

    Parameters
    ----------
    variable
        The samples.
    grid
        The patches of the whole image.
    fill_value
        0-d array of the variable's dtype.
    label
        As in `Patches.extract`, for the spec.
    joined
        Dims that are flattened into one, with their lengths; empty for none.
    even
        The coords whose labels are evenly spaced, for the spec.
    how
        The arguments `engine` and `max_bytes` of `Patches.extract`.
    """
    numbered, grid = grid.restrict(variable.dims), grid.arrange(variable.dims)
    copy = extract_flat if joined else extract_block
    threads = available_threads() if in_memory(variable) else 1  # dask has its own
    kernel = partial(copy, fill_value=fill_value, threads=threads)
    form: Form = "flat" if joined else "grid"
    patches = run(variable, grid, kernel, variable.dtype, form, **how)
    dims = labels.patch_dims(variable.dims, grid, flat=bool(joined))
    attrs = variable.attrs
    spec = write_spec(variable.dims, numbered, fill_value, label, joined, even=even, attrs=attrs)
    return xr.Variable(dims, patches, {**attrs, SPEC_ATTR: spec}, kept_encoding(variable))


def reduce_variable(
    variable: xr.Variable,
    grid: PatchGrid,
    fill_value: Array,
    reduction: Callable[..., Any] | str,
    options: Mapping[str, Any],
    how: Mapping[str, Any],
) -> xr.Variable:
    """Reduce every patch of a variable, as `Patches.reduce` documents.

    Parameters
    ----------
    variable, grid, fill_value
        As for `extract_variable`.
    reduction
        Name or function.
    options
        The arguments `skipna`, `min_count` and `ignore_padding` of `Patches.reduce`.
    how
        Its arguments `engine` and `max_bytes`.
    """
    grid = grid.arrange(variable.dims)
    dtype = variable.dtype
    if not callable(reduction) and (
        dtype.kind == "V"  # ml_dtypes' floats, too
        or (reduction in ("argmin", "argmax") and dtype.kind not in SEPARABLE[reduction])
    ):
        raise PatchError(
            f"how={reduction!r} is not possible for {dtype}; convert the image first, for example "
            "with .astype('float32'), or give a function"
        )
    patch = dtype.itemsize * prod(axis.size for axis in grid.axes)
    if not callable(reduction) and dtype.kind in SEPARABLE.get(reduction, ""):
        made = _reduction(variable, grid, reduction, **options)
        kernel = partial(reduce_block, fill_value=fill_value, reduction=made)
        out, patch = made.dtype, made.dtype.itemsize
    else:
        given = {name: value for name, value in options.items() if value is not None}
        if not given["ignore_padding"]:
            del given["ignore_padding"]
        elif callable(reduction) or dtype.kind not in "biuf" or options["skipna"] is False:
            name = "a function" if callable(reduction) else repr(reduction)
            raise PatchError(
                "ignore_padding is possible for the names of how, numbers and, with 'median', "
                f"skipna; got {name}, {dtype} and skipna={options['skipna']}; "
                "use a fill_value that how can tell apart"
            )
        if callable(reduction) and given:
            raise PatchError(
                f"{next(iter(given))} is for the names of how, got a function; leave it out"
            )
        if "min_count" in given and reduction != "sum":
            raise PatchError(f"min_count is not for how={reduction!r} of {dtype}; leave it out")
        kernel = partial(_reduce_patches, fill_value=fill_value, reduction=reduction, options=given)
        spans = [Span(variable.dims.index(axis.dim), axis, 0, 1) for axis in grid.axes]
        one = [1] * variable.ndim
        for span in spans:
            one[span.axis] = span.grid.effective_size
        out = kernel(np.ones(one, dtype), spans).dtype
        patch += out.itemsize
    reduced = run(variable, grid, kernel, out, "reduced", **how, patch_bytes=patch)
    attrs = kept_attrs(variable.attrs)
    if callable(reduction) or reduction in ("sum", "mean", "median", "std"):
        attrs = of_other_numbers(attrs)
    elif reduction not in ("min", "max") or out != dtype:
        attrs = of_another_quantity(attrs)
    return xr.Variable(variable.dims, reduced, attrs, kept_encoding(variable))


def _reduction(
    variable: xr.Variable,
    grid: PatchGrid,
    name: str,
    skipna: bool | None,
    min_count: int | None,
    ignore_padding: bool,
) -> Reduction:
    """Fill in what xarray would choose for the variable's dtype."""
    dtype = variable.dtype
    skips = dtype.kind in "fc" and name not in ("any", "all") if skipna is None else skipna
    if name in ("argmin", "argmax", "count"):
        out: np.dtype[Any] = np.dtype(np.int64)
    else:
        out = getattr(xr.Variable("x", np.ones(1, dtype)), name)().dtype
    if ignore_padding and name in ("min", "max", "argmin", "argmax"):
        if min_count and out.kind in "biu":
            out = np.dtype(float)
        elif out.kind in "biu":
            _check_samples(grid, name)
    return Reduction(name, out, skips, min_count or 0, ignore_padding)


def _check_samples(grid: PatchGrid, name: str) -> None:
    """Refuse patches that have no sample inside the image, where a result must have one."""
    for axis in grid.axes:
        # They begin before the image, the first one or one of as many as the rate, or behind it.
        before, behind = (-(-n // axis.stride) for n in (axis.before, axis.before + axis.length))
        for patch in (*range(min(before, axis.rate)), behind):
            _, inside, _ = clip(axis.samples(patch), axis.length)
            if patch < axis.count and inside.start == inside.stop:
                raise PatchError(
                    f"ignore_padding leaves patch {patch} along {axis.dim!r} without samples, for "
                    f"which {name!r} has no integer; use less padding, a fill_value, min_count=1, "
                    "or .astype(float) first"
                )


def _reduce_patches(
    block: Array,
    spans: Sequence[Span],
    fill_value: Array,
    reduction: Callable[..., Any] | str,
    options: Mapping[str, Any],
) -> Array:
    """Reduce patches that stand in memory, by a function or as xarray does."""
    kept = dict(options)
    if kept.pop("ignore_padding", False):  # NaN stands for padding, and is skipped
        block = block if block.dtype.kind == "f" else block.astype(float)
        fill_value = np.array(np.nan, block.dtype)
        kept["skipna"] = True
    patches = extract_block(block, spans, fill_value)
    first = spans[-1].axis + 1
    axes = tuple(range(first, first + len(spans)))
    if callable(reduction):
        try:
            reduced = np.asarray(reduction(patches, axis=axes))
        except Exception as error:  # whatever the user's function raises
            raise MapError(
                f"how failed on patches of shape {patches.shape}, {type(error).__name__}: "
                f"{said(error)}; it is called as how(patches, axis={axes})"
            ) from error
        expected = tuple(n for axis, n in enumerate(patches.shape) if axis not in axes)
        if reduced.shape != expected:
            raise PatchError(
                f"how must reduce the axes {axes} of an array of shape {patches.shape} to "
                f"{expected}, got {reduced.shape}; it is called as how(patches, axis={axes})"
            )
        return reduced
    dims = [str(axis) for axis in range(patches.ndim)]
    labelled = xr.Variable(dims, patches)
    try:
        return np.asarray(getattr(labelled, reduction)([dims[axis] for axis in axes], **kept))
    except Exception as error:  # whatever xarray raises for what it cannot reduce so
        given = "".join(f", {name}={value}" for name, value in kept.items())
        raise PatchError(
            f"how={reduction!r}{given} is not possible for {patches.dtype}: {said(error)}; leave "
            "that out, or convert the image with .astype(...)"
        ) from error


def run(
    variable: xr.Variable,
    grid: PatchGrid,
    kernel: Kernel,
    dtype: Any,
    form: Form,
    engine: str,
    max_bytes: int | str | None,
    patch_bytes: int | None = None,
) -> Any:
    """Run a kernel on a variable: at once where it is in memory, lazily where it is not.

    Parameters
    ----------
    variable
        The samples.
    grid
        The patches along the variable's own dims.
    kernel, dtype
        Makes the result from a block and the patches along its axes, and the result's dtype.
    form, patch_bytes
        What the kernel makes, for the plan.
    engine, max_bytes
        As in `Patches.extract`.

    Returns
    -------
    numpy.ndarray or dask.array.Array
    """
    if in_memory(variable):
        grids = _by_axis(variable, grid)
        spans = [Span(axis, of, -of.before, of.count) for axis, of in grids.items()]
        return kernel(variable.to_numpy(), spans)
    from xpatches.lazy import graphs as lazy  # dask is loaded for lazy images only

    data, plan, read = _planned(variable, grid, form, engine, max_bytes, patch_bytes)
    if read is not None:
        return lazy.read(read, data.name, plan, kernel, dtype)
    return lazy.exchange(data, plan, kernel, dtype)


def _planned(
    variable: xr.Variable,
    grid: PatchGrid,
    form: Form,
    engine: str,
    max_bytes: int | str | None,
    patch_bytes: int | None = None,
) -> tuple[Any, Plan, Callable[[tuple[slice, ...]], Array] | None]:
    """Plan for a variable that is not in memory, as `run` runs it.

    Returns
    -------
    data : dask.array.Array
        The samples, in the chunks of the storage.
    plan : Plan
    read : callable or None
        What reads regions of them, for the engine "region".
    """
    from xpatches.lazy import graphs as lazy  # dask is loaded for lazy images only

    data = labels.chunk_lazy(variable).data
    budget = lazy.as_budget(max_bytes)
    grids = _by_axis(variable, grid)
    given = (grids, data.chunks, data.dtype.itemsize, budget, form, patch_bytes)
    if engine != "map_overlap":
        dask, read = is_dask(variable._data), sliceable(variable, data)
        if engine == "region" and read is None:
            raise PatchError(
                "engine='region' needs an image that can be sliced without computing, got a dask "
                "array that is computed; open it with chunks=None, or use engine='map_overlap'"
            )
        if read is not None and (engine == "region" or not dask):
            plan = plan_blocks("region", *given)
            if engine == "region" or plan.read_amplification < _MOST_READ:
                return data, plan, read
    return data, plan_blocks("map_overlap", *given), None


def plan_variable(
    variable: xr.Variable,
    grid: PatchGrid,
    joined: Mapping[Hashable, int],
    how: Mapping[str, Any],
) -> dict[str, Any]:
    """Say how `extract_variable` will work, as `Patches.plan` documents."""
    grid = grid.arrange(variable.dims)
    form: Form = "flat" if joined else "grid"
    tasks, image_tasks, budget = 1, 0, None
    if in_memory(variable):
        grids, whole = _by_axis(variable, grid), tuple((length,) for length in variable.shape)
        plan = plan_blocks("map_overlap", grids, whole, variable.dtype.itemsize, sys.maxsize, form)
    else:
        from xpatches.lazy import graphs as lazy  # dask is loaded for lazy images only

        data, plan, read = _planned(variable, grid, form, **how)
        if read is None:
            tasks, image_tasks = lazy.exchanged_tasks(plan), len(data.__dask_graph__())
        else:
            tasks = lazy.read_tasks(plan)
        budget = lazy.as_budget(how["max_bytes"])
    dims = labels.patch_dims(variable.dims, grid, flat=bool(joined))
    return {
        "engine": "numpy" if in_memory(variable) else plan.engine,
        "patches": grid.total,
        "blocks": prod(len(axis.blocks) for axis in plan.axes),
        "tasks": tasks,
        "image_tasks": image_tasks,
        "halo": {axis.grid.dim: list(axis.halo) for axis in plan.axes if axis.grid in grid.axes},
        "regions": {
            dim: [list(region) for region in axis.regions]
            for dim, axis in zip(variable.dims, plan.axes, strict=True)
        },
        "chunks": dict(zip(dims, map(list, plan.out_chunks), strict=True)),
        "max_bytes": budget,
        "bytes_per_task": plan.bytes_per_task,
        "read_amplification": plan.read_amplification,
    }


def checked_lazy(variable: xr.Variable) -> xr.Variable:
    """Chunk a variable that is not in memory, and have blocks that dask computes checked."""
    if in_memory(variable):
        return variable
    from xpatches.lazy import graphs as lazy  # dask is loaded for lazy images only

    variable = labels.chunk_lazy(variable)
    if lazy.stored(variable.data) is not None:
        return variable  # parts of what was opened are read without the rest of a chunk
    return variable.copy(data=lazy.checked(variable.data))


def sliceable(variable: xr.Variable, data: Any) -> Callable[[tuple[slice, ...]], Array] | None:
    """Give what reads regions of a variable that was opened, of which `data` are the chunks."""
    if not is_dask(variable._data):
        return partial(_read_region, variable)
    from xpatches.lazy import graphs as lazy  # dask is loaded for dask arrays only

    return lazy.stored(data)


def region_reader(variable: xr.Variable) -> Callable[[tuple[slice, ...]], Array]:
    """Give what reads regions of a variable as NumPy, in any thread or process.

    Storage is read where the variable was opened, with dask or without; what was computed with dask
    is computed region by region.
    """
    if is_dask(variable._data):
        from xpatches.lazy import graphs as lazy  # dask is loaded for dask arrays only

        return lazy.stored(variable.data) or lazy.computed(variable.data)
    if in_memory(variable):
        variable = xr.Variable(variable.dims, variable.to_numpy())
    return partial(_read_region, variable)


def stored_chunks(variable: xr.Variable) -> tuple[int, ...]:
    """Give the lengths of what is read or computed at once of a variable that is not in memory."""
    chunked = labels.chunk_lazy(variable)
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


_MOST_READ = 1.3
"""Read amplification from which on a source is read chunk by chunk, though regions could be."""
