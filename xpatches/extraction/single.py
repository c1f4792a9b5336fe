"""Single patches of a labelled image, and how it is read where all of them are taken in turn."""

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from xpatches.arguments import said, shown
from xpatches.dtypes import Array, is_dask
from xpatches.edges import pad_block
from xpatches.errors import PatchError
from xpatches.geometry.boxes import clip
from xpatches.geometry.grid import AxisGrid, PatchGrid, walk
from xpatches.geometry.lengths import shrink
from xpatches.images import even_labels, labels
from xpatches.images.even_labels import Line
from xpatches.images.geotransform import moved_transforms
from xpatches.images.packing import kept_encoding
from xpatches.images.spec import SPEC_ATTR, write_spec
from xpatches.private_names import held, is_loaded

Part: TypeAlias = tuple[xr.Dataset, Mapping[Hashable, int]]
"""A part of an image, and the index in the image of its first sample along dims of the grid."""


def take_patch(
    part: Part,
    fill_values: Mapping[Hashable, Array],
    samples: Mapping[Hashable, range],
    known: Mapping[Hashable, Line],
) -> xr.Dataset:
    """Take one patch, from no more than the samples under it.

    Parameters
    ----------
    part
        What holds the patch's samples, with ``{dim}_index``, of any int64, as a coord along every
        dim of the grid if the patch is to have it.
    fill_values
        0-d array of the dtype of every variable that is cut, by name, for samples that are padding.
    samples
        Index in the image of the patch's samples along every dim of the grid.
    known
        The coords of the image whose labels are evenly spaced.

    Returns
    -------
    xarray.Dataset
        On the image's own dims; dask arrays stay lazy, all else along the grid is in memory.
    """
    image, start = part
    at = {
        dim: range(along.start - start[dim], along.stop - start[dim], along.step)
        for dim, along in samples.items()
    }
    clipped = {dim: clip(positions, image.sizes[dim]) for dim, positions in at.items()}
    taken = image.isel({dim: inside for dim, (_, inside, _) in clipped.items()})
    if any(at.keys().isdisjoint(variable.dims) for variable in image.variables.values()):
        taken = taken.copy(deep=False)  # isel gives variables without the dims as they are
    pads = {dim: (before, after) for dim, (before, _, after) in clipped.items() if before or after}
    patches = {
        name: _patch(taken.variables[name], at, pads, fill_value)
        for name, fill_value in fill_values.items()
    }
    if pads:
        coords = labels.sample_coords(image.coords, at, samples, known)
        made = xr.Dataset({**taken.data_vars.variables, **patches}, coords, image.attrs)
        return _georeferenced(made, samples)
    # No label is missing: what was taken is whole, and setting it up anew would take most time.
    taken.attrs, taken.encoding = image.attrs, {}
    labels.settle(taken.coords, at)
    variables = taken.variables
    for dim, along in samples.items():
        if f"{dim}_index" in variables:
            indices = np.arange(along.start, along.stop, along.step, dtype=np.int64)
            variables[f"{dim}_index"].data = indices
    for name, patch in patches.items():
        variables[name].data = patch.data
        variables[name].encoding = patch.encoding
    return _georeferenced(taken, samples)


def _georeferenced(patch: xr.Dataset, samples: Mapping[Hashable, range]) -> xr.Dataset:
    """Give a patch, in place, its own GeoTransform where the image has one."""
    moved = {dim: (along.start, along.step) for dim, along in samples.items()}
    for name, coord in moved_transforms(patch.coords, moved).items():
        patch[name].attrs = coord.attrs
    return patch


def take_patches(
    image: xr.Dataset,
    name: Hashable,
    fill_value: Array,
    grid: PatchGrid,
    even: Mapping[Hashable, Line],
    at: Mapping[Hashable, xr.Variable],
) -> xr.Variable:
    """Take several patches of a variable, in the dims in which xarray would take them of all.

    Parameters
    ----------
    image, name, fill_value
        The image, and a variable that is cut.
    grid
        The patches.
    even
        The coords whose labels are evenly spaced.
    at
        Indices of patches along every dim of the grid, 0-d or along any dims.
    """
    variable = image.variables[name]
    arranged = grid.arrange(variable.dims)
    along = {dim: at[dim] for dim in arranged.dims}
    indices = xr.broadcast(*map(xr.DataArray, along.values()))
    plain, start = image.drop_vars(image.coords)[[name]], dict.fromkeys(arranged.dims, 0)
    sizes = [f"{dim}_patch" if dim in along else dim for dim in variable.dims]
    patches = []
    for index in zip(*(along_all.values.ravel().tolist() for along_all in indices), strict=True):
        samples = {axis.dim: axis.samples(i) for axis, i in zip(arranged, index, strict=True)}
        patch = take_patch((plain, start), {name: fill_value}, samples, {}).variables[name]
        patches.append(xr.Variable(sizes, patch.data))
    taken = xr.Variable.concat(patches, _PICKED).unstack({_PICKED: dict(indices[0].sizes)})
    # One sample along the other dims suffices to ask xarray for the order.
    dims = labels.patch_dims(variable.dims, arranged, flat=False)
    sample = np.broadcast_to(np.int8(0), [arranged.counts.get(dim, 1) for dim in dims])
    taken = taken.transpose(*xr.Variable(dims, sample).isel(along).dims)
    numbered = grid.restrict(variable.dims)
    attrs = variable.attrs
    spec = write_spec(variable.dims, numbered, fill_value, "center", {}, even=even, attrs=attrs)
    attrs = {**attrs, SPEC_ATTR: spec}
    return xr.Variable(taken.dims, taken.data, attrs, kept_encoding(variable))


def find(
    coords: xr.Coordinates,
    axis: AxisGrid,
    even: Mapping[Hashable, Line],
    label: Any,
    method: str | None,
    tolerance: Any,
) -> xr.Variable:
    """Find the patches along a dim whose centers have labels; looked up by xarray itself.

    Parameters
    ----------
    coords, axis
        Of the image, and the patches along the dim.
    even
        The coords whose labels are evenly spaced.
    label, method, tolerance
        As in `Patches.sel`.

    Returns
    -------
    Variable
        The index of the one patch, or as many as there are labels, along their dims.

    Raises
    ------
    PatchError
        If the dim has no coord, or a label is not that of exactly one patch.
    """
    dim = axis.dim
    dims = coords[dim].dims if dim in coords else "none"
    if dims != (dim,):
        raise PatchError(f"sel needs a coord on {dim!r}, got {dims}; use isel, or assign one")
    known = coords.to_dataset()[dim].coords
    centers = labels.patch_coords(known, PatchGrid((axis,)), "center", even).variables[dim]
    present = np.flatnonzero(centers.notnull())
    numbers = xr.DataArray(present, coords={dim: centers[present].to_base_variable()}, dims=[dim])
    given = (
        shown(label) if tolerance is None else f"{shown(label)} with tolerance {shown(tolerance)}"
    )
    index = numbers.indexes.get(dim)
    try:
        several = not isinstance(label, tuple) and np.ndim(label) > 0
        if isinstance(index, xr.CFTimeIndex) and (method or several):
            label = _as_cftime(label, index)
        found = numbers.sel({dim: label}, method=method, tolerance=tolerance)
    except KeyError as error:
        raise PatchError(
            f"sel found no patch whose center has {dim}={given}; "
            "use method='nearest' with a wide enough tolerance, or isel"
        ) from error
    except Exception as error:  # whatever an index raises for what it cannot look up
        raise PatchError(
            f"sel on {dim!r} cannot look up {given}, {type(error).__name__}: {said(error)}; "
            "use isel"
        ) from error
    if not several and found.size == 1:  # some indexes find a text as a range of times
        found = found.squeeze()
    if not found.size or (found.ndim and (not several or found.shape != np.shape(label))):
        raise PatchError(
            f"sel on {dim!r} must name one patch, got {given}, which names {found.size}; "
            "give one label for each, or use isel"
        )
    if method == "nearest" and tolerance is None:
        _check_near(known[dim], axis, label, centers.to_numpy()[found.values])
    return found.variable


def _as_cftime(label: Any, index: xr.CFTimeIndex) -> Any:
    """Parse texts as times of a calendar, which xarray does for single exact ones only."""

    def parsed(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        return xr.date_range(text, periods=1, calendar=index.calendar, use_cftime=True)[0]

    if not np.ndim(label):
        return parsed(label)
    times = np.array([parsed(text) for text in np.ravel(label).tolist()], dtype=object)
    times = times.reshape(np.shape(label))
    return label.copy(data=times) if isinstance(label, xr.DataArray) else times


def _check_near(known: xr.DataArray, axis: AxisGrid, label: Any, centers: Array) -> None:
    """Refuse labels outside the image that are further from a center than half a stride."""
    of_samples = known.to_numpy()
    if not even_labels.is_quantity(of_samples):
        return
    wanted, kind = np.asarray(label), of_samples.dtype.kind
    try:
        if kind in "iufmM":
            wanted = wanted.astype(of_samples.dtype if kind in "mM" else float)
    except (TypeError, ValueError) as error:
        raise PatchError(
            f"sel on {axis.dim!r} cannot tell how far {shown(label)} is from a center; give a "
            "tolerance"
        ) from error
    of_samples = of_samples[known.notnull().to_numpy()]
    low, high = of_samples.min(), of_samples.max()
    with np.errstate(over="ignore", invalid="ignore"):  # of infinite ones
        steps = np.abs(np.diff(of_samples))
        reach = max(steps[0], steps[-1]) * axis.stride / 2 if steps.size else high - low
        outside = (wanted < low) | (wanted > high)
        far = outside & (np.abs(wanted - centers) > reach)
    if far.any():
        raise PatchError(
            f"sel found no patch near {axis.dim}={shown(label)}, outside the image, whose labels "
            f"go from {low} to {high}; give a tolerance to take the nearest one"
        )


def read_ahead(
    image: xr.Dataset, names: Container[Hashable], grid: PatchGrid
) -> Iterator[tuple[Part, Iterator[tuple[int, ...]]]]:
    """Go through the image part by part, each with the indices of patches that it holds, in order.

    Parts of an image that was opened without dask are read, half of dask's ``array.chunk-size`` at
    a time; anything else is one part as it is, and so is an image of which most is in no patch.

    Parameters
    ----------
    image
        As in `Part`.
    names
        The variables that are cut.
    grid
        The patches.
    """
    read = {
        name: variable
        for name, variable in image.variables.items()
        if (name in names or name in image.coords)
        and not (is_loaded(variable) or is_dask(held(variable)))
        and not set(variable.dims).isdisjoint(grid.dims)
    }
    counts = [axis.count for axis in grid.axes]
    if read:
        from xpatches.lazy.sources import as_budget  # dask is loaded for lazy images only

        budget = as_budget(None) // 2

        def lengths(counts: Sequence[int]) -> list[int]:
            return [
                min(axis.length, (count - 1) * axis.stride + axis.effective_size)
                for axis, count in zip(grid.axes, counts, strict=True)
            ]

        def nbytes(counts: Sequence[int]) -> int:
            sizes = dict(zip(grid.dims, lengths(counts), strict=True))
            return sum(
                variable.dtype.itemsize
                * prod(sizes.get(dim, n) for dim, n in variable.sizes.items())
                for variable in read.values()
            )

        counts = shrink(counts, range(len(counts)), lambda counts: nbytes(counts) <= budget)
        taken = prod(axis.size * count for axis, count in zip(grid.axes, counts, strict=True))
        if nbytes(counts) > budget or 2 * taken < prod(lengths(counts)):
            read = {}  # one patch is too large, or most samples are in none
    if not read:
        yield (image, dict.fromkeys(grid.dims, 0)), walk([range(axis.count) for axis in grid.axes])
        return
    pairs = [*zip(grid.axes, counts, strict=True)]
    for firsts in walk([range(0, axis.count, count) for axis, count in pairs]):
        block = [
            range(first, min(first + count, axis.count))
            for first, (axis, count) in zip(firsts, pairs, strict=True)
        ]
        regions = {
            axis.dim: slice(*axis.region(of[0], len(of))[:2])
            for axis, of in zip(grid.axes, block, strict=True)
        }
        part = image.isel(regions)
        for variable in map(part.variables.__getitem__, read):
            if variable.size:  # a store may refuse to read nothing
                variable.load()
        yield (part, {dim: of.start for dim, of in regions.items()}), walk(block)


def _patch(
    inside: xr.Variable,
    dims: Iterable[Hashable],
    pads: Mapping[Hashable, tuple[int, int]],
    fill_value: Array,
) -> xr.Variable:
    """Copy the samples inside the image, and surround them along the dims with the fill value."""
    by_axis = {
        inside.get_axis_num(dim): pads.get(dim, (0, 0)) for dim in dims if dim in inside.dims
    }
    if is_dask(held(inside)):
        from xpatches.lazy import graphs as lazy  # dask is loaded for dask arrays only

        data = lazy.pad(inside.data, by_axis, fill_value)
    else:
        samples = inside.to_numpy() if inside.size else np.empty(inside.shape, inside.dtype)
        data = pad_block(samples, by_axis, fill_value) if pads else np.array(samples, order="C")
    return xr.Variable(inside.dims, data, inside.attrs, kept_encoding(inside))


METHODS = (None, "nearest", "pad", "ffill", "backfill", "bfill")

_PICKED = "<picked>"
"""Dim of several patches, until it is split."""
