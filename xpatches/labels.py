"""What a labelled image adds to the integers: dims, coords, attrs.

Names that the library adds, for a dim ``y``: the dim and coord ``y_patch`` (offsets inside a
patch), the coord ``y_origin`` (source index of each patch's first sample) and the coord ``y_index``
(source index of each sample of a single patch).
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xpatches.arrays import is_dask
from xpatches.errors import PatchError
from xpatches.geometry import AxisGrid, PatchGrid, clip

FLAT_DIM = "patch"
"""Dim that flattening joins the patch dims into."""


def grid_of(
    lengths: Mapping[Hashable, int],
    size: Mapping[Hashable, int],
    stride: Any,
    rate: Any,
    padding: Any,
) -> PatchGrid:
    """Normalise the arguments of the accessor; the axes are in the order of `lengths`.

    Parameters
    ----------
    lengths
        Length of every dim of the image.
    size
        Samples per patch per dim.
    stride, rate, padding
        One value for every dim of `size`, or a mapping from dim to value. A dim that a mapping
        leaves out has stride = size, rate 1 and padding "valid".

    Raises
    ------
    PatchError
        If a dim is unknown, a number is out of range, or no patch fits on the image.

    Examples
    --------
    >>> grid = grid_of({"y": 10, "x": 12}, {"x": 3, "y": 3}, {"x": 5}, 1, "valid")
    >>> grid.counts
    {'y': 3, 'x': 2}
    """
    if not size:
        raise PatchError(
            f"size must name at least one dim, got none; the dims are {tuple(lengths)}, "
            "write for example size={'y': 256, 'x': 256} or y=256, x=256"
        )
    _check_dims("size", size, lengths)
    strides = {**size, **_per_dim("stride", stride, size)}
    rates = {**dict.fromkeys(size, 1), **_per_dim("rate", rate, size)}
    paddings = {**dict.fromkeys(size, "valid"), **_per_dim("padding", padding, size)}
    grid = PatchGrid(
        tuple(
            AxisGrid(dim, length, size[dim], strides[dim], rates[dim], paddings[dim])
            for dim, length in lengths.items()
            if dim in size
        )
    )
    for axis in grid.axes:
        _check_not_empty(axis)
    return grid


def merge(argument: str, given: object, kwargs: Mapping[str, Any]) -> dict[Any, Any]:
    """Join a mapping from dim to value and the same as keywords."""
    if given is None:
        return dict(kwargs)
    if not isinstance(given, Mapping):
        raise PatchError(
            f"{argument} must be a mapping from dim to value, got {given!r}; "
            f"write for example {{'y': 3, 'x': 3}} or y=3, x=3"
        )
    twice = [dim for dim in given if dim in kwargs]
    if twice:
        raise PatchError(
            f"{argument} names {twice[0]!r} twice, in the mapping and as a keyword; name it once"
        )
    return {**given, **kwargs}


def check_names(obj: xr.Dataset, names: Iterable[str]) -> None:
    """Refuse names that the image already uses.

    Raises
    ------
    PatchError
        If a dim, coord or variable has one of the names.
    """
    taken = {*obj.variables, *obj.dims}
    for name in names:
        if name in taken:
            raise PatchError(
                f"the image already has a dim, coord or variable {name!r}, which xpatches adds; "
                "rename it or drop it first"
            )


def patch_coords(coords: xr.Coordinates, grid: PatchGrid, label: str) -> xr.Coordinates:
    """Label every patch.

    Parameters
    ----------
    coords
        The image's coords.
    grid
        The patches.
    label
        ``"center"`` or ``"origin"``: the sample whose labels become the patch's.

    Returns
    -------
    xarray.Coordinates
        The coords along the grid, with ``{dim}_origin`` (int64 along the dim) and ``{dim}_patch``
        (int64 offsets).
    """
    at = {axis.dim: axis.centers if label == "center" else axis.origins for axis in grid.axes}
    taken = take_labels(coords, at)
    # A GeoTransform is the image's spacing, not that of the patches.
    moved: dict[Hashable, xr.Variable] = {
        name: variable.copy(deep=False)
        for name, variable in taken.variables.items()
        if "GeoTransform" in variable.attrs
    }
    for variable in moved.values():
        variable.attrs = {k: v for k, v in variable.attrs.items() if k != "GeoTransform"}
    origins: dict[Hashable, xr.Variable] = {
        f"{axis.dim}_origin": integers(axis.dim, axis.origins) for axis in grid.axes
    }
    offsets: dict[Hashable, xr.Variable] = {
        name: integers(name, axis.offsets) for axis in grid.axes for name in [f"{axis.dim}_patch"]
    }
    return _assign(taken, {**moved, **origins, **offsets}, indexed=offsets)


def patch_dims(dims: Iterable[Hashable], grid: PatchGrid, *, flat: bool) -> tuple[Hashable, ...]:
    """Dims of the patches of an array: the patch dims come right after the last spatial dim.

    Examples
    --------
    >>> grid = PatchGrid((AxisGrid("y", 9, 3, 3), AxisGrid("x", 9, 3, 3)))
    >>> patch_dims(("batch", "y", "x", "depth"), grid, flat=False)
    ('batch', 'y', 'x', 'y_patch', 'x_patch', 'depth')
    >>> patch_dims(("batch", "y", "x", "depth"), grid, flat=True)
    ('batch', 'y', 'x', 'patch')
    """
    dims = tuple(dims)
    after = max(dims.index(dim) for dim in grid.dims) + 1
    new = [f"{dim}_patch" for dim in grid.dims]
    return (*dims[:after], FLAT_DIM) if flat else (*dims[:after], *new, *dims[after:])


def joined_dims(variable: xr.Variable, grid: PatchGrid) -> dict[Hashable, int]:
    """Dims of a variable's patches that flattening joins, with their lengths."""
    grid = grid.restrict(variable.dims)
    after = max(variable.dims.index(dim) for dim in grid.dims) + 1
    patch: dict[Hashable, int] = {f"{axis.dim}_patch": axis.size for axis in grid.axes}
    return {**patch, **{dim: variable.sizes[dim] for dim in variable.dims[after:]}}


def flatten_coords(
    coords: xr.Coordinates, joined: Mapping[Hashable, int], to: str = FLAT_DIM
) -> xr.Coordinates:
    """Lay the coords of the joined dims along one dim."""
    positions = dict(zip(joined, np.indices(tuple(joined.values())), strict=True))
    at = {dim: xr.Variable(to, index.ravel()) for dim, index in positions.items()}
    flat = {
        name: variable.isel({dim: at[dim] for dim in variable.dims if dim in at})
        for name, variable in coords.variables.items()
        if not joined.keys().isdisjoint(variable.dims)
    }
    return _assign(coords, flat)


def sample_coords(
    coords: xr.Coordinates, at: Mapping[Hashable, range], samples: Mapping[Hashable, range]
) -> xr.Coordinates:
    """Label the samples of one patch, at positions along the coords, with ``{dim}_index`` (int64).

    Coords that were opened without dask are read, as the samples are.
    """
    taken = take_labels(coords, at)
    for name, variable in taken.variables.items():
        if coords.variables[name].chunks is None and not at.keys().isdisjoint(variable.dims):
            variable.load()
    return _assign(taken, {f"{dim}_index": integers(dim, of) for dim, of in samples.items()})


def settle(taken: xr.Coordinates, dims: Iterable[Hashable]) -> None:
    """Read coords that were taken along dims, as `sample_coords` does."""
    for variable in taken.variables.values():
        if not set(variable.dims).isdisjoint(dims):
            _forget_chunks(variable)
            if is_dask(variable._data):
                variable.data = _even_chunks(variable).data
            elif not variable._in_memory:
                variable.load()
            elif not isinstance(variable, xr.IndexVariable):
                variable.data = variable.to_numpy().copy()


def integers(dim: Hashable, values: range) -> xr.Variable:
    """Give a range as an int64 variable along a dim."""
    return xr.Variable((dim,), np.arange(values.start, values.stop, values.step, dtype=np.int64))


def take_labels(coords: xr.Coordinates, at: Mapping[Hashable, range]) -> xr.Coordinates:
    """Take the coords at positions of the image; outside of it labels are missing.

    A missing label is NaN (integers become float64 then), NaT, or None (bools, strings and objects
    become objects). Lazy coords stay lazy, and indexes are kept where no label is missing.

    Examples
    --------
    >>> coords = xr.Coordinates({"x": [10, 20, 30]})
    >>> take_labels(coords, {"x": range(0, 3, 2)})["x"].values
    array([10, 30])
    >>> take_labels(coords, {"x": range(-1, 2)})["x"].values
    array([nan, 10., 20.])
    """
    dataset = coords.to_dataset()
    inside = {dim: clip(at[dim], dataset.sizes[dim]) for dim in at if dim in dataset.sizes}
    taken = dataset.isel({dim: part for dim, (_, part, _) in inside.items()}).coords
    missing = {dim: (before, after) for dim, (before, _, after) in inside.items()}
    changed: dict[Hashable, xr.Variable] = {}
    for name, variable in taken.variables.items():
        pads = {dim: missing[dim] for dim in variable.dims if any(missing.get(dim, ()))}
        if pads:
            changed[name] = _even_chunks(_pad_missing(variable, pads))
        elif not at.keys().isdisjoint(variable.dims):
            _forget_chunks(variable)
            if variable.chunks is not None:
                changed[name] = _even_chunks(variable)
    indexed = [name for name in changed if name in taken.xindexes and name in at]
    return _assign(taken, changed, indexed) if changed else taken


def chunk_lazy(variable: xr.Variable) -> xr.Variable:
    """Chunk a variable as its storage is if it was opened without dask; others stay as they are."""
    if variable.chunks is not None or variable._in_memory:
        return variable
    stored = variable.encoding.get("preferred_chunks", {})
    if not stored.keys() >= set(variable.dims):  # renamed since it was opened
        stored = dict(zip(variable.dims, variable.encoding.get("chunks") or (), strict=False))
    rest = -1 if variable.dtype.hasobject else "auto"
    return variable.chunk({dim: stored.get(dim, rest) for dim in variable.dims})


def _check_dims(argument: str, given: Iterable[Hashable], allowed: Iterable[Hashable]) -> None:
    for dim in given:
        if dim not in allowed:
            raise PatchError(
                f"{argument} names {dim!r}, which is not among the dims {tuple(allowed)}; "
                "name one of those"
            )


def _per_dim(argument: str, value: Any, dims: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
    """One value per dim that was given one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(dims, value)
    _check_dims(argument, value, dims)
    return value


def _check_not_empty(axis: AxisGrid) -> None:
    if axis.length == 0:
        raise PatchError(f"dim {axis.dim!r} of the image has length 0; there is nothing to extract")
    if axis.count == 0:
        room = axis.length + sum(axis.pads)
        raise PatchError(
            f"size on {axis.dim!r} is too large: its effective size {axis.effective_size} must be "
            f"<= {room}, the image with its padding; use a smaller size or rate, or padding='same'"
        )


def _assign(
    coords: xr.Coordinates,
    new: Mapping[Hashable, xr.Variable],
    indexed: Iterable[Hashable] = (),
) -> xr.Coordinates:
    """Add or replace coords that fit by construction, without the cost of aligning them.

    Only those in `indexed` get an index: making one reads the coord.
    """
    made = xr.Coordinates({name: new[name] for name in indexed})
    kept = {name: index for name, index in coords.xindexes.items() if name not in new}
    variables = {
        **coords.variables,
        **{name: variable.to_base_variable() for name, variable in new.items()},
        **made.variables,
    }
    return xr.Coordinates(variables, {**kept, **made.xindexes})


def _pad_missing(variable: xr.Variable, pads: Mapping[Hashable, tuple[int, int]]) -> xr.Variable:
    """Surround a variable with missing labels, lazily where it is lazy."""
    variable = chunk_lazy(variable)
    kind = getattr(variable.dtype, "kind", "O")
    data = variable.data
    if kind not in "fcmM":
        data = data.astype(float if kind in "iu" else object)
    padded = xr.Variable(variable.dims, data, variable.attrs)
    missing = {"m": "NaT", "M": "NaT", "O": None}.get(padded.dtype.kind, np.nan)
    for dim, lengths in pads.items():
        parts = []
        for length in lengths:
            shape = {**padded.sizes, dim: length}
            filler = np.full([*shape.values()], missing, padded.dtype)
            part = xr.Variable(padded.dims, filler, variable.attrs)
            parts.append(part if padded.chunks is None else part.chunk(shape))
        padded = xr.Variable.concat([parts[0], padded, parts[1]], dim)
    return padded


def _forget_chunks(variable: xr.Variable) -> None:
    """Drop the storage's chunks, which no longer fit what was taken."""
    stale = ("chunks", "preferred_chunks", "shards")
    variable.encoding = {k: v for k, v in variable.encoding.items() if k not in stale}


def _even_chunks(variable: xr.Variable) -> xr.Variable:
    """Make the chunks of a dask variable equal, as zarr requires; others stay as they are."""
    if variable.chunks is None:
        return variable
    return variable.chunk(dict(zip(variable.dims, map(max, variable.chunks), strict=True)))
