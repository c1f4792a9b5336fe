"""Pictures of single patches: which one to draw, and how; for the command line."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from xpatches.arrays import Array
from xpatches.errors import PatchError


def choose(
    patches: xr.DataArray, labels: Mapping[str, Any], indices: Mapping[str, int]
) -> tuple[xr.DataArray, dict[str, str]]:
    """Take one patch, by the labels nearest to those given and by indices.

    Returns
    -------
    DataArray
        On its patch dims, and on a dim of colours if there is one.
    dict
        What was chosen along other dims than those of the grid, in words.

    Raises
    ------
    PatchError
        If a label or an index is not there, or several patches are left.
    """
    origins = [str(name) for name in patches.coords if str(name).endswith("_origin")]
    grid = {str(dim) for name in origins for dim in patches[name].dims}
    for dim in {*labels, *indices}:
        if dim not in (patches.coords if dim in labels else patches.dims):
            raise PatchError(
                f"{dim!r} names nothing that can be chosen from; the dims are {patches.dims}"
            )
    for dim, index in indices.items():
        if not -patches.sizes[dim] <= index < patches.sizes[dim]:
            n = patches.sizes[dim]
            raise PatchError(f"index on {dim!r} must lie in [{-n}, {n}), got {index}")
        if dim in labels:
            raise PatchError(f"{dim!r} is given by label and by index; give one of them")
    taken = patches.isel(indices)
    along: dict[str, dict[str, Any]] = {}
    for name, label in labels.items():
        dims = taken[name].dims
        if len(dims) != 1:
            raise PatchError(f"{name!r} must be a coord along one dim, got {dims}; use --isel")
        along.setdefault(str(dims[0]), {})[name] = label
    for dim, given in along.items():
        away = sum(_away(taken, name, label) ** 2 for name, label in given.items())
        taken = taken.isel({dim: int(np.argmin(away))})
    many = [dim for dim in taken.dims if dim in grid]
    if many:
        raise PatchError(
            f"choose one patch along {', '.join(map(repr, many))}: --sel y=...,x=... by the labels "
            f"of its center, or --isel {many[0]}=0"
        )
    rest = [dim for dim in taken.dims if not str(dim).endswith("_patch")]
    coloured = len(rest) == 1 and taken.sizes[rest[0]] in (3, 4) and _are_colours(taken)
    taken = taken if coloured else taken.isel(dict.fromkeys(rest, 0))
    chosen: dict[str, str] = {}
    for other in map(str, patches.dims):
        if other not in taken.dims and other not in grid:
            labelled = other in taken.coords
            at = f"index {indices.get(other, 0)}"
            chosen[other] = _text(taken[other].values) if labelled else at
    return taken, chosen


def draw(patch: xr.DataArray, output: str) -> dict[str, int]:
    """Draw a patch on its positions in the image; gives its origin.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    PatchError
        If the patch has not two dims, or cannot be drawn.
    """
    from matplotlib.figure import Figure

    if patch.dtype.kind not in "biuf":
        raise PatchError(f"only numbers are drawn, got {patch.dtype}")

    axes = [str(dim) for dim in patch.dims if str(dim).endswith("_patch")]
    if len(axes) != 2:
        raise PatchError(f"only patches of two dims are drawn, got {axes}")
    shown = patch.transpose(*axes, ...)
    dims = [dim.removesuffix("_patch") for dim in axes]
    origin = {dim: int(patch[f"{dim}_origin"]) for dim in dims}
    (top, bottom), (left, right) = (
        (origin[dim] - 0.5, origin[dim] + int(patch[f"{dim}_patch"][-1]) + 0.5) for dim in dims
    )
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    known = figure.canvas.get_supported_filetypes()
    if output.rpartition(".")[2].lower() not in known:
        raise PatchError(f"output must end with one of {', '.join(known)}, got {output!r}")
    plot = figure.add_subplot()
    image = plot.imshow(shown.values, extent=(left, right, bottom, top), cmap="viridis")
    if shown.ndim == 2:
        units = f" ({patch.attrs['units']})" if "units" in patch.attrs else ""
        figure.colorbar(image, shrink=0.8, label=f"{patch.name or ''}{units}")
    named = [dim for dim in [*dims, *patch.coords] if dim in patch.coords]
    labels = [
        f"{name} {_text(patch[name].values)}"
        for name in dict.fromkeys(map(str, named))
        if patch[name].ndim == 0 and name not in (f"{dim}_origin" for dim in dims)
    ]
    lines = [", ".join(labels[start : start + 2]) for start in range(0, len(labels), 2)]
    plot.set_title("\n".join(lines[:4]), fontsize=10)
    plot.set_ylabel(f"{dims[0]} (index)")
    plot.set_xlabel(f"{dims[1]} (index)")
    figure.savefig(output, dpi=150)
    return origin


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
        raise PatchError(f"{name}={label} is outside the image, centers lie in {least} to {most}")
    return np.where(np.isnan(distance), np.inf, distance / max(spacing, 1e-300))


def _are_colours(patch: xr.DataArray) -> bool:
    """Whether samples can be drawn as red, green and blue as they are."""
    if patch.dtype == np.dtype("u1"):
        return True
    return patch.dtype.kind == "f" and bool((patch >= 0).all() and (patch <= 1).all())


def _text(value: Any) -> str:
    value = np.asarray(value)[()]
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
