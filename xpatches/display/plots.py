"""Pictures of patches and of images: what of them is drawn, and how; for the command line."""

import textwrap
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from xpatches.dtypes import Array
from xpatches.errors import PatchError

READ = 8 * 2**20
"""Bytes of an image that are drawn, at most; of larger ones every second sample, or fewer."""
_WIDTH, _LINES = 56, 4
"""Of a title: characters of a line, and lines."""


def choose(
    patches: xr.DataArray, labels: Mapping[str, Any], indices: Mapping[str, int]
) -> tuple[xr.DataArray, dict[str, str]]:
    """Take one patch, by the labels nearest to those given and by indices.

    Returns
    -------
    DataArray
        On its patch dims, and on a dim of colours if there is one; in memory.
    dict
        What was chosen along other dims than those of the grid, in words.

    Raises
    ------
    PatchError
        If a label or an index is not there, or several patches are left.
    """
    origins = [str(name) for name in patches.coords if str(name).endswith("_origin")]
    grid = {str(dim) for name in origins for dim in patches[name].dims}
    taken = _taken(patches, labels, indices)
    many = [dim for dim in taken.dims if dim in grid]
    if many:
        raise PatchError(
            f"choose one patch along {', '.join(map(repr, many))}: --sel y=...,x=... by the labels "
            f"of its center, or --isel {many[0]}=0"
        )
    axes = [str(dim) for dim in taken.dims if str(dim).endswith("_patch")]
    shown = _coloured(taken.load(), axes)
    return shown, _chosen(patches, shown, indices, grid)


def choose_image(
    image: xr.DataArray,
    dims: Sequence[str],
    labels: Mapping[str, Any],
    indices: Mapping[str, int],
) -> tuple[xr.DataArray, dict[str, int], dict[str, str]]:
    """Take two dims of an image, as far as they fit `READ`.

    Parameters
    ----------
    image
        Opened without dask: no more is read than what is drawn, and the chunks that hold it.
    dims
        Those along which patches were cut, which are drawn.
    labels, indices
        What is taken along others.

    Returns
    -------
    DataArray
        On the two dims, and on a dim of colours if there is one; in memory.
    dict
        Distance of the samples that were taken along the two.
    dict
        What was chosen along other dims, in words.

    Raises
    ------
    PatchError
        If a label or an index is not there, or other than two of the dims are left.
    """
    taken = _taken(image, labels, indices)
    axes = [dim for dim in map(str, taken.dims) if dim in dims]
    if len(axes) != 2:
        raise PatchError(
            f"two of the dims {tuple(dims)} are drawn, {tuple(axes)} are left; choose along all "
            "others with --sel or --isel"
        )
    rest = {dim: n for dim, n in taken.sizes.items() if dim not in axes}
    if len(rest) != 1 or next(iter(rest.values())) not in (3, 4):
        taken = taken.isel(dict.fromkeys(rest, 0))

    def fits(step: int) -> bool:
        lengths = (-(-n // step) if dim in axes else n for dim, n in taken.sizes.items())
        return taken.dtype.itemsize * prod(lengths) <= READ

    step = 1 + bisect_left(range(1, max(taken.sizes.values())), True, key=fits)
    taken = taken.isel({dim: slice(None, None, step) for dim in axes})
    shown = _coloured(taken.load(), axes)
    return shown, dict.fromkeys(axes, step), _chosen(image, shown, indices, set())


def draw(patch: xr.DataArray, chosen: Mapping[str, str], output: str) -> dict[str, int]:
    """Draw a patch, taken by `choose`, on its positions in the image; gives its origin.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    PatchError
        If the patch has not two dims, or cannot be drawn.
    """
    axes = [str(dim) for dim in patch.dims if str(dim).endswith("_patch")]
    if len(axes) != 2:
        raise PatchError(f"only patches of two dims are drawn, got {axes}")
    dims = [dim.removesuffix("_patch") for dim in axes]
    origin = {dim: int(patch[f"{dim}_origin"]) for dim in dims}
    last = [int(patch[f"{dim}_patch"][-1]) for dim in dims]
    bounds = [(start, start + n + 1) for start, n in zip(origin.values(), last, strict=True)]
    _draw(patch, axes, dims, bounds, chosen, output)
    return origin


def draw_image(
    image: xr.DataArray, steps: Mapping[str, int], chosen: Mapping[str, str], output: str
) -> None:
    """Draw an image, taken by `choose_image`.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    PatchError
        If it cannot be drawn.
    """
    bounds = [(0, image.sizes[dim] * step) for dim, step in steps.items()]
    _draw(image, [*steps], [*steps], bounds, chosen, output)


def _draw(
    samples: xr.DataArray,
    axes: Sequence[str],
    dims: Sequence[str],
    bounds: Sequence[tuple[int, int]],
    chosen: Mapping[str, str],
    output: str,
) -> None:
    """Draw samples along two axes, from the first index to before the last of the image's dims."""
    from matplotlib.figure import Figure

    if samples.dtype.kind not in "biuf":
        raise PatchError(f"only numbers are drawn, got {samples.dtype}")
    shown = samples.transpose(*axes, ...)
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    known = figure.canvas.get_supported_filetypes()
    if output.rpartition(".")[2].lower() not in known:
        raise PatchError(f"output must end with one of {', '.join(known)}, got {output!r}")
    plot = figure.add_subplot()
    (top, bottom), (left, right) = ((first - 0.5, end - 0.5) for first, end in bounds)
    image = plot.imshow(
        shown.values,
        extent=(left, right, bottom, top),
        cmap="viridis",
        interpolation="nearest",  # what lies between two classes is none
    )
    if shown.ndim == 2:
        units = f" ({samples.attrs['units']})" if "units" in samples.attrs else ""
        figure.colorbar(image, shrink=0.8, label=_short(f"{samples.name or ''}{units}"))
    plot.set_title(_title(samples, dims, chosen), fontsize=10)
    plot.set_ylabel(f"{dims[0]} (index)")
    plot.set_xlabel(f"{dims[1]} (index)")
    figure.savefig(output, dpi=150)


def _title(samples: xr.DataArray, dims: Sequence[str], chosen: Mapping[str, str]) -> str:
    """Give the labels that all samples share, in a few lines: along the dims, what was chosen."""
    shared = {
        str(name): _text(coord.values)
        for name, coord in samples.coords.items()
        if coord.ndim == 0
        and str(name).removesuffix("_origin") not in dims
        and coord.attrs.keys().isdisjoint(("crs_wkt", "grid_mapping_name"))
    }
    center = {
        dim: _text(samples[dim].values)
        for dim in dims
        if dim in samples.coords and samples[dim].ndim == 0
    }
    labels = [_short(f"{name} {text}") for name, text in {**center, **chosen, **shared}.items()]
    lines: list[str] = []
    for label in labels:
        if lines and len(lines[-1]) + len(label) + 3 <= _WIDTH:
            lines[-1] += f",  {label}"
        else:
            lines.append(label)
    more = [f"{lines[_LINES - 1]}, ..."] if len(lines) > _LINES else lines[_LINES - 1 : _LINES]
    return "\n".join([*lines[: _LINES - 1], *more])


def _taken(
    samples: xr.DataArray, labels: Mapping[str, Any], indices: Mapping[str, int]
) -> xr.DataArray:
    """Take what lies at indices, and at the labels nearest to those given."""
    for dim in {*labels, *indices}:
        if dim not in (samples.coords if dim in labels else samples.dims):
            raise PatchError(
                f"{dim!r} names nothing that can be chosen from; the dims are {samples.dims}"
            )
    for dim, index in indices.items():
        if not -samples.sizes[dim] <= index < samples.sizes[dim]:
            n = samples.sizes[dim]
            raise PatchError(f"index on {dim!r} must lie in [{-n}, {n}), got {index}")
        if dim in labels:
            raise PatchError(f"{dim!r} is given by label and by index; give one of them")
    taken = samples.isel(indices)
    along: dict[str, dict[str, Any]] = {}
    for name, label in labels.items():
        dims = taken[name].dims
        if len(dims) != 1:
            raise PatchError(f"{name!r} must be a coord along one dim, got {dims}; use --isel")
        along.setdefault(str(dims[0]), {})[name] = label
    for dim, wanted in along.items():
        away = sum(_away(taken, name, label) ** 2 for name, label in wanted.items())
        taken = taken.isel({dim: int(np.argmin(away))})
    return taken


def _coloured(taken: xr.DataArray, axes: Sequence[str]) -> xr.DataArray:
    """Keep a dim of colours, and take the first along all others than the axes."""
    rest = [dim for dim in taken.dims if dim not in axes]
    coloured = len(rest) == 1 and taken.sizes[rest[0]] in (3, 4) and _are_colours(taken)
    return taken if coloured else taken.isel(dict.fromkeys(rest, 0))


def _chosen(
    samples: xr.DataArray, taken: xr.DataArray, indices: Mapping[str, int], grid: set[str]
) -> dict[str, str]:
    """Say what was taken along dims that are gone, but for those of the grid."""
    chosen: dict[str, str] = {}
    for dim in map(str, samples.dims):
        if dim not in taken.dims and dim not in grid:
            labelled = dim in taken.coords
            at = f"index {indices.get(dim, 0)}"
            chosen[dim] = _text(taken[dim].values) if labelled else at
    return chosen


def _away(patches: xr.DataArray, name: str, label: Any) -> Array:
    """Give how far every label is from the one given, in units of the distance between them."""
    values = patches[name].values
    if values.dtype.kind not in "iufmM":
        found = values.astype(str) == str(label)
        if not found.any():
            raise PatchError(f"{name!r} has no label {label!r}, but {', '.join(map(str, values))}")
        return np.where(found, 0.0, 1.0)
    try:
        times = values.dtype.kind in "mM"
        values = values if times else values.astype(float)
        given = np.asarray(str(label) if times else label, values.dtype)
    except ValueError:
        raise PatchError(f"{name!r} holds {values.dtype}, got {label!r}") from None
    distance = np.abs(values - given).astype(float)
    gaps = np.diff(np.unique(values)).astype(float)
    spacing = float(np.nanmax(gaps)) if gaps.size else np.inf
    if not np.nanmin(distance) <= spacing:
        least, most = (_text(edge) for edge in (np.nanmin(values), np.nanmax(values)))
        raise PatchError(f"{name}={label} is outside the image, labels lie in {least} to {most}")
    return np.where(np.isnan(distance), np.inf, distance / max(spacing, 1e-300))


def _are_colours(patch: xr.DataArray) -> bool:
    """Whether samples can be drawn as red, green and blue as they are."""
    if patch.dtype == np.dtype("u1"):
        return True
    return patch.dtype.kind == "f" and bool((patch >= 0).all() and (patch <= 1).all())


def _text(value: Any) -> str:
    """Write a label as one reads it: numbers to their last digit that matters, times no finer."""
    value = np.asarray(value)[()]
    if isinstance(value, np.floating):
        return f"{value:.{7 if value.dtype.itemsize < 8 else 9}g}"
    if isinstance(value, np.datetime64):
        return str(np.datetime_as_string(value, unit="auto")).replace("T", " ")
    return str(value)


def _short(text: str) -> str:
    return textwrap.shorten(text, _WIDTH, placeholder=" ...")
