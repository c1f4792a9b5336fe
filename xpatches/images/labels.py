"""What a labelled image adds to the integers: dims, coords, attrs.

Names that the library adds, for a dim ``y``: the dim and coord ``y_patch`` (offsets inside a
patch), the coord ``y_origin`` (source index of each patch's first sample) and the coord ``y_index``
(source index of each sample of a single patch).
"""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import xarray as xr
from xarray.indexes import PandasMultiIndex

from xpatches.arguments import by_dim
from xpatches.dtypes import is_dask
from xpatches.errors import PatchError
from xpatches.geometry.boxes import clip
from xpatches.geometry.grid import AxisGrid, PatchGrid
from xpatches.images import lines
from xpatches.images.lines import Line
from xpatches.images.packing import links_of
from xpatches.images.samples import chunk_lazy

FLAT_DIM = "patch"
"""Dim that flattening joins the patch dims into."""


def grid_of(
    lengths: Mapping[Hashable, int],
    arrays: Iterable[Sequence[Hashable]],
    size: Mapping[Hashable, int],
    stride: Any,
    rate: Any,
    padding: Any,
) -> PatchGrid:
    """Normalise the arguments of the accessor.

    Parameters
    ----------
    lengths
        Length of every dim of the image.
    arrays
        Dims of every array that is cut. The axes are in the order on which these agree; where two
        of them differ, or none has both of two dims, in that in which `size` names them.
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
    >>> lengths, size = {"y": 10, "x": 12}, {"x": 3, "y": 3}
    >>> grid_of(lengths, [("y", "x")], size, {"x": 5}, 1, "valid").counts
    {'y': 3, 'x': 2}
    >>> grid_of(lengths, [("y", "x"), ("x", "y")], size, {"x": 5}, 1, "valid").counts
    {'x': 2, 'y': 3}
    """
    if not size:
        raise PatchError(
            f"size must name at least one dim, got none; the dims are {tuple(lengths)}, "
            "write for example size={'y': 256, 'x': 256} or y=256, x=256"
        )
    strides = {**size, **by_dim("stride", stride, size)}
    rates = {**dict.fromkeys(size, 1), **by_dim("rate", rate, size)}
    paddings = {**dict.fromkeys(size, "valid"), **by_dim("padding", padding, size)}
    grid = PatchGrid(
        tuple(
            AxisGrid(dim, lengths[dim], size[dim], strides[dim], rates[dim], paddings[dim])
            for dim in _in_order(list(size), arrays)
        )
    )
    for axis in grid.axes:
        _check_not_empty(axis)
    return grid


def _in_order(named: list[Hashable], arrays: Iterable[Sequence[Hashable]]) -> list[Hashable]:
    """Sort dims as the arrays that have them do; as they are named where these do not agree."""
    before: dict[Hashable, set[Hashable]] = {dim: set() for dim in named}
    for dims in arrays:
        known = [dim for dim in dims if dim in before]
        for place, dim in enumerate(known):
            before[dim].update(known[:place])
    ordered: list[Hashable] = []
    while len(ordered) < len(named):
        left = [dim for dim in named if dim not in ordered]
        following = next((dim for dim in left if before[dim].issubset(ordered)), None)
        if following is None:
            return named
        ordered.append(following)
    return ordered


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
    at = {axis.dim: axis.centers if label == "center" else axis.origins for axis in grid.axes}
    even = [axis.dim for axis in grid.axes if axis.effective_size % 2 == 0]
    halfway = even if label == "center" else []
    taken = take_labels(coords, at, halfway, known=known)
    first = {
        axis.dim: (at[axis.dim].start + (axis.dim in halfway) / 2, axis.stride)
        for axis in grid.axes
    }
    moved = moved_transforms(taken, first)
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
    return _assign(coords, changed) if changed else coords


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
    coords: xr.Coordinates,
    samples: Mapping[Hashable, range],
    start: Mapping[Hashable, int],
    known: Mapping[Hashable, Line],
) -> xr.Coordinates:
    """Label the samples of one patch, with ``{dim}_index`` (int64).

    Coords that were opened without dask are read, as the samples are.

    Parameters
    ----------
    coords
        Of a part of the image.
    samples
        Index in the image of the samples along dims, ascending.
    start
        Index in the image of the part's first sample along those dims.
    known
        The coords of the whole image whose labels are evenly spaced.
    """
    taken = take_labels(coords, samples, start=start, known=known)
    for name, variable in taken.variables.items():
        if coords.variables[name].chunks is None and not samples.keys().isdisjoint(variable.dims):
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


def take_labels(
    coords: xr.Coordinates,
    at: Mapping[Hashable, range],
    halfway: Collection[Hashable] = (),
    start: Mapping[Hashable, int] = MappingProxyType({}),
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
        Positions in the image along dims, ascending.
    halfway
        The dims along which labels are wanted halfway to the next sample, if they are numbers or
        times.
    start
        Position in the image of the part's first sample along dims; 0 where left out.
    known
        The coords of the image whose labels are evenly spaced; they are looked for if it is None.

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
    positions = {
        dim: range(along.start - start.get(dim, 0), along.stop - start.get(dim, 0), along.step)
        for dim, along in at.items()
        if dim in dataset.sizes
    }
    inside = {dim: clip(along, dataset.sizes[dim]) for dim, along in positions.items()}
    taken = dataset.isel({dim: part for dim, (_, part, _) in inside.items()}).coords
    outside = {dim for dim, (before, _, after) in inside.items() if before or after}
    changed: dict[Hashable, xr.Variable] = {}
    for name, variable in taken.variables.items():
        if positions.keys().isdisjoint(variable.dims):
            continue
        one_label = isinstance(taken.xindexes.get(name), PandasMultiIndex)
        between = [dim for dim in variable.dims if dim in halfway and not one_label]
        if between or not outside.isdisjoint(variable.dims):
            whole = _readable(coords, name)
            line = line_of(whole) if known is None else known.get(name)
            line = None if one_label else line
            changed[name] = _labels(whole, positions, between, line, start)
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
    return _assign(taken, changed, indexed)


def lines_of(coords: xr.Coordinates, dims: Collection[Hashable]) -> dict[Hashable, Line]:
    """Find the coords along one of the dims whose labels are evenly spaced."""
    along = [name for name, coord in coords.items() if set(coord.dims) <= set(dims)]
    found = {name: line_of(_readable(coords, name)) for name in along}
    return {name: line for name, line in found.items() if line is not None}


def line_of(coord: xr.Variable) -> Line | None:
    """Tell how a coord along one dim is evenly spaced, if it is and stands in memory."""
    if coord.ndim != 1 or not coord._in_memory or is_dask(coord._data):
        return None
    labels = coord.to_numpy()
    return lines.line_of(labels) if isinstance(labels.dtype, np.dtype) else None


def _readable(coords: xr.Coordinates, name: Hashable) -> xr.Variable:
    """Give a coord by itself, in memory if an index makes its labels: that reads nothing."""
    coord = coords.variables[name].to_base_variable()
    return coord.copy(deep=False).load() if name in coords.xindexes else coord


def image_transforms(coords: xr.Coordinates, grid: PatchGrid, label: str) -> xr.Coordinates:
    """Turn the GeoTransform that `patch_coords` gave patches into that of the image again."""
    moved = {}
    for axis in grid:
        first = -axis.before + (axis.effective_size - 1) / 2 * (label == "center")
        moved[axis.dim] = -first / axis.stride, 1 / axis.stride
    changed = moved_transforms(coords, moved)
    return _assign(coords, changed) if changed else coords


def _labels(
    coord: xr.Variable,
    at: Mapping[Hashable, range],
    halfway: Collection[Hashable],
    line: Line | None,
    start: Mapping[Hashable, int],
) -> xr.Variable:
    """Take a coord at positions, or halfway to the next along some dims."""
    if halfway:
        dim, *rest = halfway
        following = {**at, dim: range(at[dim].start + 1, at[dim].stop + 1, at[dim].step)}
        lower = _labels(coord, at, rest, line, start)
        upper = _labels(coord, following, rest, line, start)
        return _halfway(lower, upper)
    inside = {dim: clip(along, coord.sizes[dim]) for dim, along in at.items() if dim in coord.dims}
    pads = {dim: (before, after) for dim, (before, _, after) in inside.items() if before or after}
    taken = coord.isel({dim: part for dim, (_, part, _) in inside.items()})
    _forget_chunks(taken)
    if pads and line is not None:
        (dim, (before, after)) = next(iter(pads.items()))
        positions = [position + start.get(dim, 0) for position in at[dim]]
        outside = positions[:before], positions[len(positions) - after :]
        low, high = (line.beyond(some) for some in outside)
        labels = np.concatenate([low, taken.to_numpy(), high])
        # What they were stored as need not hold those outside.
        return xr.Variable(taken.dims, labels, taken.attrs, links_of(taken))
    return _even_chunks(_pad_missing(taken, pads) if pads else taken)


def _halfway(lower: xr.Variable, upper: xr.Variable) -> xr.Variable:
    """Give the mean of neighbouring labels, lazily where they are lazy."""
    lower, upper = chunk_lazy(lower), chunk_lazy(upper)
    around = 360.0 if _is_longitude(lower) else None
    if lower.chunks is None:
        labels = lines.halfway(lower.to_numpy(), upper.to_numpy(), around)
    else:
        from xpatches.lazy import graphs as lazy  # dask is loaded for dask arrays only

        labels = lazy.halfway(lower.data, upper.data, around)
    # As they were stored they might be rounded.
    return xr.Variable(lower.dims, labels, lower.attrs, links_of(lower))


def _is_longitude(coord: xr.Variable) -> bool:
    """Tell by CF's attrs whether a coord goes round the Earth."""
    units = str(coord.attrs.get("units", "")).replace("degree_", "degrees_")
    return coord.attrs.get("standard_name") == "longitude" or units in ("degrees_east", "degrees_E")


def moved_transforms(
    coords: xr.Coordinates, moved: Mapping[Hashable, tuple[float, float]]
) -> dict[Hashable, xr.Variable]:
    """Give the coords that hold a GeoTransform one for other samples of the image.

    Parameters
    ----------
    coords
        Any of the image's.
    moved
        Along dims of the image, the position of the first of those samples, and their distance, in
        samples of the image.

    Returns
    -------
    dict
        By name the coords with the attr ``GeoTransform`` of GDAL, six numbers: for the new samples
        where `moved` names the image's rows and columns by the names that rioxarray looks for,
        without it otherwise; and without ground control points, which are of the image's pixels.
    """
    if any(dim in coords and coords[dim].attrs.get("units") == "pixel" for dim in moved):
        return {}  # odc-geo labels rotated rasters by their pixels, to which the transform applies
    names = [next((dim for dim in known if dim in moved), None) for known in (_COLUMNS, _ROWS)]
    # A new pixel is as wide as samples are apart, and its corner half of that before its middle.
    corners, steps = [], []
    for dim in names:
        first, step = moved.get(dim, (0, 1))
        corners.append(first + 0.5 - step / 2)
        steps.append(step)
    changed: dict[Hashable, xr.Variable] = {}
    for name, coord in coords.variables.items():
        if not _is_placed(coord):
            continue
        changed[name] = _placeless(coord)
        numbers = _numbers(coord.attrs.get(_TRANSFORM))
        if len(numbers) == 6 and any(names):
            new = []
            for corner, *slopes in (numbers[:3], numbers[3:]):
                new.append(corner + sum(map(float.__mul__, slopes, corners)))
                new += [slope * step for slope, step in zip(slopes, steps, strict=True)]
            changed[name].attrs[_TRANSFORM] = " ".join(map(repr, new))
    return changed


def without_transforms(coords: xr.Coordinates) -> xr.Coordinates:
    """Drop every GeoTransform, and ground control points."""
    changed = {
        name: _placeless(coord) for name, coord in coords.variables.items() if _is_placed(coord)
    }
    return _assign(coords, changed) if changed else coords


def _is_placed(coord: xr.Variable) -> bool:
    return not coord.attrs.keys().isdisjoint(_PLACES)


def _placeless(coord: xr.Variable) -> xr.Variable:
    """Give a coord without what says where the pixels of the whole image lie."""
    changed = coord.copy(deep=False)
    changed.attrs = {key: value for key, value in coord.attrs.items() if key not in _PLACES}
    return changed


_TRANSFORM = "GeoTransform"
_PLACES = (_TRANSFORM, "gcps")
"""Attrs of a CRS that say where the pixels of the whole image lie."""
_COLUMNS, _ROWS = ("x", "longitude", "lon"), ("y", "latitude", "lat")
"""Names by which rioxarray, too, knows the dims of a raster."""


def _numbers(text: object) -> list[float]:
    """Parse numbers; none where it is not what GDAL writes."""
    try:
        return [float(number) for number in str(text).split()]
    except Exception:  # whatever a type raises that is asked for a text
        return []


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
    made = xr.Coordinates({name: _indexable(new[name]) for name in indexed})
    kept = {name: index for name, index in coords.xindexes.items() if name not in new}
    variables = {
        **coords.variables,
        **{name: variable.to_base_variable() for name, variable in new.items()},
        **made.variables,
    }
    return xr.Coordinates(variables, {**kept, **made.xindexes})


def _indexable(variable: xr.Variable) -> xr.Variable:
    """Give labels of a dtype of which pandas makes an index: none of half precision."""
    return variable.astype("f4") if variable.dtype == np.dtype("f2") else variable


def _pad_missing(variable: xr.Variable, pads: Mapping[Hashable, tuple[int, int]]) -> xr.Variable:
    """Surround a variable with missing labels, lazily where it is lazy."""
    variable = chunk_lazy(variable)
    kind = getattr(variable.dtype, "kind", "O")
    data = variable.data
    if kind not in "fcmM":
        data = data.astype(float if kind in "iu" else object)
    padded = xr.Variable(list(map(str, range(data.ndim))), data)  # concat takes no other names
    missing = {"m": "NaT", "M": "NaT", "O": None}.get(padded.dtype.kind, np.nan)
    for along, lengths in pads.items():
        dim, parts = str(variable.get_axis_num(along)), []
        for length in lengths:
            shape = {**padded.sizes, dim: length}
            filler = np.full([*shape.values()], missing, padded.dtype)
            part = xr.Variable(padded.dims, filler)
            parts.append(part if padded.chunks is None else part.chunk(shape))
        padded = xr.Variable.concat([parts[0], padded, parts[1]], dim)
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


SAMPLE_DIM = "sample"
"""Dim along which the layout "samples" lays the patches, the grid's last dim running fastest."""
