"""What a labelled image adds to the integers: dims, coords, attrs.

Names that the library adds, for a dim ``y``: the dim and coord ``y_patch`` (offsets inside a
patch), the coord ``y_origin`` (source index of each patch's first sample) and the coord ``y_index``
(source index of each sample of a single patch).
"""

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from xarray.indexes import PandasMultiIndex

from xpatches.dtypes import Array, is_dask
from xpatches.errors import PatchError
from xpatches.geometry.boxes import clip
from xpatches.geometry.grid import PatchGrid
from xpatches.images import even_labels
from xpatches.images.even_labels import Line
from xpatches.images.geotransform import moved_transforms
from xpatches.images.packing import links_of
from xpatches.images.samples import chunk_lazy
from xpatches.private_names import held, is_loaded

FLAT_DIM = "patch"
"""Dim that flattening joins the patch dims into."""
SAMPLE_DIM = "sample"
"""Dim along which the layout "samples" lays the patches, the grid's last dim running fastest."""


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


def patch_coords(
    coords: xr.Coordinates,
    grid: PatchGrid,
    label: str,
    known: Mapping[Hashable, Line] | None = None,
) -> xr.Coordinates:
    """Label every patch.

    Parameters
    ----------
    coords
        The image's coords.
    grid
        The patches.
    label
        ``"center"`` or ``"origin"``: whose labels become the patch's. A center that lies between
        two samples, as that of an even effective size, has the mean of their labels where these are
        numbers or times, and the first of them otherwise.
    known
        The coords whose labels are evenly spaced; they are looked for if it is None.

    Returns
    -------
    xarray.Coordinates
        The coords along the grid, with ``{dim}_origin`` (int64 along the dim) and ``{dim}_patch``
        (int64 offsets).
    """
    centered = label == "center"
    at = {axis.dim: axis.centers if centered else axis.origins for axis in grid}
    between = [axis.dim for axis in grid if centered and axis.effective_size % 2 == 0]
    taken = take_labels(coords, at, between, known)
    moved = {
        axis.dim: (at[axis.dim].start + (axis.dim in between) / 2, axis.stride) for axis in grid
    }
    offsets: dict[Hashable, xr.Variable] = {}
    changed = moved_transforms(taken, moved)
    for axis in grid:
        changed[f"{axis.dim}_origin"] = integers(axis.dim, axis.origins)
        offsets[f"{axis.dim}_patch"] = integers(f"{axis.dim}_patch", axis.offsets)
    return assign(taken, {**changed, **offsets}, indexed=offsets)


def patch_dims(dims: Iterable[Hashable], grid: PatchGrid, *, flat: bool) -> tuple[Hashable, ...]:
    """Dims of the patches of an array: the patch dims come right after the last spatial dim.

    Examples
    --------
    >>> from xpatches.geometry.grid import AxisGrid
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
    grid = grid.arrange(variable.dims)
    after = max(variable.dims.index(dim) for dim in grid.dims) + 1
    patch: dict[Hashable, int] = {f"{axis.dim}_patch": axis.size for axis in grid.axes}
    return {**patch, **{dim: variable.sizes[dim] for dim in variable.dims[after:]}}


def chunk_alike(coords: xr.Coordinates, variables: Iterable[xr.Variable]) -> xr.Coordinates:
    """Chunk lazy coords as the variables are, without which xarray knows no chunks of either."""
    lengths: dict[Hashable, tuple[int, ...]] = {}
    for variable in variables:
        lengths = {**variable.chunksizes, **lengths}
    changed = {}
    for name, coord in coords.variables.items():
        if coord.chunks is not None:
            alike = {dim: lengths[dim] for dim in coord.dims if dim in lengths}
            if any(coord.chunksizes[dim] != chunks for dim, chunks in alike.items()):
                changed[name] = _rechunk(coord, {**coord.chunksizes, **alike})
    return assign(coords, changed)


def flatten_coords(
    coords: xr.Coordinates, joined: Mapping[Hashable, int], to: str = FLAT_DIM
) -> xr.Coordinates:
    """Lay the coords of the joined dims along one dim."""
    indices = zip(joined, np.indices(tuple(joined.values())), strict=True)
    at = {dim: xr.Variable(to, index.ravel()) for dim, index in indices}
    flat = {
        name: variable.isel({dim: at[dim] for dim in variable.dims if dim in at})
        for name, variable in coords.variables.items()
        if not joined.keys().isdisjoint(variable.dims)
    }
    return assign(coords, flat)


def sample_coords(
    coords: xr.Coordinates,
    at: Mapping[Hashable, range],
    samples: Mapping[Hashable, range],
    known: Mapping[Hashable, Line],
) -> xr.Coordinates:
    """Label the samples of one patch, with ``{dim}_index`` (int64).

    Coords that were opened without dask are read, as the samples are.

    Parameters
    ----------
    coords
        Of a part of the image.
    at
        Positions in the part of the samples along dims, ascending.
    samples
        The same samples' positions in the image.
    known
        The coords of the whole image whose labels are evenly spaced.
    """
    lines_of_part = {}
    for name, line in known.items():
        (dim,) = coords.variables[name].dims
        lines_of_part[name] = replace(line, start=at[dim].start - samples[dim].start)
    taken = take_labels(coords, at, known=lines_of_part)
    for name, variable in taken.variables.items():
        if coords.variables[name].chunks is None and not samples.keys().isdisjoint(variable.dims):
            variable.load()
    return assign(taken, {f"{dim}_index": integers(dim, along) for dim, along in samples.items()})


def settle(taken: xr.Coordinates, dims: Iterable[Hashable]) -> None:
    """Read coords that were taken along dims, as `sample_coords` does."""
    for variable in taken.variables.values():
        if not set(variable.dims).isdisjoint(dims):
            _forget_chunks(variable)
            if is_dask(held(variable)):
                variable.data = _even_chunks(variable).data
            elif not is_loaded(variable):
                variable.load()
            elif not isinstance(variable, xr.IndexVariable):
                variable.data = variable.to_numpy().copy()


def integers(dim: Hashable, values: range) -> xr.Variable:
    """Give a range as an int64 variable along a dim."""
    return xr.Variable((dim,), np.arange(values.start, values.stop, values.step, dtype=np.int64))


def take_labels(
    coords: xr.Coordinates,
    at: Mapping[Hashable, range],
    halfway: Collection[Hashable] = (),
    known: Mapping[Hashable, Line] | None = None,
) -> xr.Coordinates:
    """Take the coords at positions of the image, or halfway to the next.

    Outside of the image the labels of a coord along one dim go on where they are evenly spaced;
    others are missing: NaN (integers become float64 then), NaT, or None (bools, strings and objects
    become objects). Lazy coords stay lazy, and indexes are kept where no label is missing.

    Parameters
    ----------
    coords
        Of the image, or of a part of it.
    at
        Positions there along dims, ascending.
    halfway
        The dims along which labels are wanted halfway to the next sample, if they are numbers or
        times.
    known
        The coords whose labels are evenly spaced; they are looked for if it is None.

    Examples
    --------
    >>> coords = xr.Coordinates({"x": [10, 20, 30]})
    >>> take_labels(coords, {"x": range(0, 3, 2)})["x"].values
    array([10, 30])
    >>> take_labels(coords, {"x": range(-1, 2)}, halfway=["x"])["x"].values
    array([ 5., 15., 25.])
    >>> take_labels(xr.Coordinates({"x": [10, 20, 31]}), {"x": range(-1, 2)})["x"].values
    array([nan, 10., 20.])
    """
    dataset = coords.to_dataset()
    at = {dim: along for dim, along in at.items() if dim in dataset.sizes}
    clipped = {dim: clip(along, dataset.sizes[dim]) for dim, along in at.items()}
    taken = dataset.isel({dim: inside for dim, (_, inside, _) in clipped.items()}).coords
    outside = {dim for dim, (before, _, after) in clipped.items() if before or after}
    changed: dict[Hashable, xr.Variable] = {}
    for name, variable in taken.variables.items():
        if at.keys().isdisjoint(variable.dims):
            continue
        one_label = isinstance(taken.xindexes.get(name), PandasMultiIndex)
        between = [dim for dim in variable.dims if dim in halfway and not one_label]
        if between or not outside.isdisjoint(variable.dims):
            whole = _readable(coords, name)
            line = line_of(whole) if known is None else known.get(name)
            changed[name] = _labels(whole, at, between, None if one_label else line)
        else:
            _forget_chunks(variable)
            if variable.chunks is not None:
                changed[name] = _even_chunks(variable)
    if not changed:
        return taken
    for name in [name for name in changed if name in taken.xindexes]:
        # An index of several coords, such as a raster's, fits none of them any more.
        for other, coord in taken.xindexes.get_all_coords(name).items():
            changed.setdefault(other, coord.to_base_variable())
    indexed = [name for name in changed if name in taken.xindexes and name in at]
    return assign(taken, changed, indexed)


def lines_of(coords: xr.Coordinates, dims: Collection[Hashable]) -> dict[Hashable, Line]:
    """Find the coords along one of the dims whose labels are evenly spaced."""
    along = [name for name, coord in coords.items() if set(coord.dims) <= set(dims)]
    pairs = ((name, line_of(_readable(coords, name))) for name in along)
    return {name: line for name, line in pairs if line is not None}


def line_of(coord: xr.Variable) -> Line | None:
    """Tell how a coord along one dim is evenly spaced, if it is and stands in memory."""
    if coord.ndim != 1 or not is_loaded(coord) or is_dask(held(coord)):
        return None
    labels = coord.to_numpy()
    return even_labels.line_of(labels) if isinstance(labels.dtype, np.dtype) else None


def _readable(coords: xr.Coordinates, name: Hashable) -> xr.Variable:
    """Give a coord by itself, in memory if an index makes its labels: that reads nothing."""
    coord = coords.variables[name].to_base_variable()
    return coord.copy(deep=False).load() if name in coords.xindexes else coord


def _labels(
    coord: xr.Variable,
    at: Mapping[Hashable, range],
    halfway: Collection[Hashable],
    line: Line | None,
) -> xr.Variable:
    """Take a coord at positions, or halfway to the next along some dims."""
    if halfway:
        dim, *rest = halfway
        following = {**at, dim: range(at[dim].start + 1, at[dim].stop + 1, at[dim].step)}
        return _halfway(_labels(coord, at, rest, line), _labels(coord, following, rest, line))
    clipped = {dim: clip(at[dim], coord.sizes[dim]) for dim in coord.dims if dim in at}
    pads = {dim: (before, after) for dim, (before, _, after) in clipped.items() if before or after}
    taken = coord.isel({dim: inside for dim, (_, inside, _) in clipped.items()})
    _forget_chunks(taken)
    if pads and line is not None:
        ((dim, (before, after)),) = pads.items()
        low, high = line.beyond(at[dim][:before]), line.beyond(at[dim][len(at[dim]) - after :])
        labels = np.concatenate([low, taken.to_numpy(), high])
        # What they were stored as need not hold those outside.
        return xr.Variable(taken.dims, labels, taken.attrs, links_of(taken))
    return _even_chunks(_pad_missing(taken, pads) if pads else taken)


def _halfway(lower: xr.Variable, upper: xr.Variable) -> xr.Variable:
    """Give the mean of neighbouring labels; lazily, in the unit of times, where they are lazy."""
    lower, upper = chunk_lazy(lower), chunk_lazy(upper)
    around = 360.0 if _is_longitude(lower) else None
    if lower.chunks is None:
        labels: Any = even_labels.halfway(lower.to_numpy(), upper.to_numpy(), around)
    else:
        dtype = np.dtype(float) if lower.dtype.kind in "iu" else lower.dtype
        above = upper.data.rechunk(lower.chunks)
        labels = lower.data.map_blocks(_halfway_in_block, above, around=around, dtype=dtype)
    # As they were stored they might be rounded.
    return xr.Variable(lower.dims, labels, lower.attrs, links_of(lower))


def _halfway_in_block(lower: Array, upper: Array, around: float | None) -> Array:
    labels = even_labels.halfway(lower, upper, around)
    return labels.astype(lower.dtype) if lower.dtype.kind in "mM" else labels


def _is_longitude(coord: xr.Variable) -> bool:
    """Tell by CF's attrs whether a coord goes round the Earth."""
    units = str(coord.attrs.get("units", "")).replace("degree_", "degrees_")
    return coord.attrs.get("standard_name") == "longitude" or units in ("degrees_east", "degrees_E")


def without_transforms(coords: xr.Coordinates) -> xr.Coordinates:
    """Drop every GeoTransform, and ground control points."""
    return assign(coords, moved_transforms(coords, {}))


def assign(
    coords: xr.Coordinates,
    new: Mapping[Hashable, xr.Variable],
    indexed: Iterable[Hashable] = (),
) -> xr.Coordinates:
    """Add or replace coords that fit by construction, without the cost of aligning them.

    Only those in `indexed` get an index: making one reads the coord.
    """
    added = xr.Coordinates({name: _indexable(new[name]) for name in indexed})
    kept = {name: index for name, index in coords.xindexes.items() if name not in new}
    plain = {name: variable.to_base_variable() for name, variable in new.items()}
    variables = {**coords.variables, **plain, **added.variables}
    return xr.Coordinates(variables, {**kept, **added.xindexes})


def _indexable(variable: xr.Variable) -> xr.Variable:
    """Give labels of a dtype of which pandas makes an index: none of half precision."""
    return variable.astype("f4") if variable.dtype == np.dtype("f2") else variable


def _pad_missing(variable: xr.Variable, pads: Mapping[Hashable, tuple[int, int]]) -> xr.Variable:
    """Surround a variable with missing labels, lazily where it is lazy."""
    data: Any = chunk_lazy(variable).data
    kind = getattr(data.dtype, "kind", "O")
    if kind not in "fcmM":
        data = data.astype(float if kind in "iu" else object)
    missing = {"m": "NaT", "M": "NaT", "O": None}.get(data.dtype.kind, np.nan)
    padded = xr.Variable([str(axis) for axis in range(data.ndim)], data)  # concat takes such names
    for dim, lengths in pads.items():
        along = str(variable.get_axis_num(dim))
        shapes = ([*{**padded.sizes, along: length}.values()] for length in lengths)
        parts = [xr.Variable(padded.dims, np.full(n, missing, padded.dtype)) for n in shapes]
        if padded.chunks is not None:
            parts = [part.chunk({}) for part in parts]
        padded = xr.Variable.concat([parts[0], padded, parts[1]], along)
    padded.dims, padded.attrs = variable.dims, variable.attrs
    return padded


def _forget_chunks(variable: xr.Variable) -> None:
    """Drop the storage's chunks, which no longer fit what was taken."""
    stale = ("chunks", "preferred_chunks", "shards")
    variable.encoding = {k: v for k, v in variable.encoding.items() if k not in stale}


def _even_chunks(variable: xr.Variable) -> xr.Variable:
    """Make the chunks of a dask variable equal, as zarr requires; others stay as they are."""
    if variable.chunks is None:
        return variable
    return _rechunk(variable, dict(zip(variable.dims, map(max, variable.chunks), strict=True)))


def _rechunk(variable: xr.Variable, chunks: Mapping[Any, Any]) -> xr.Variable:
    """Rechunk, but not by xarray: it computes a chunk of objects to see whether they are times."""
    data = variable.data.rechunk(tuple(chunks[dim] for dim in variable.dims))
    return xr.Variable(variable.dims, data, variable.attrs, variable.encoding)
