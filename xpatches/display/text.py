"""How `Patches` shows itself: as text and as HTML."""

from collections.abc import Mapping
from html import escape
from typing import Any

import xarray as xr

from xpatches.arguments import shown
from xpatches.geometry.grid import AxisGrid, PatchGrid

_COLUMNS = ("dim", "count", "size", "stride", "rate", "padding")


def text(
    source: xr.DataArray | xr.Dataset, grid: PatchGrid, fills: Mapping[Any, Any], nbytes: int
) -> str:
    """Describe patches in lines of text."""
    rows = [_COLUMNS, *map(_row, grid.axes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for dim, *numbers, padding in rows:
        cells = [f"{number:>{width}}" for number, width in zip(numbers, widths[1:-1], strict=True)]
        lines.append("  ".join([f"    {dim:<{widths[0]}}", *cells, padding]))
    return "\n".join([_headline(grid, nbytes), *_about(source, fills), "Grid:", *lines])


def html(
    source: xr.DataArray | xr.Dataset, grid: PatchGrid, fills: Mapping[Any, Any], nbytes: int
) -> str:
    """Describe patches as an HTML table."""
    head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _row(axis)) + "</tr>"
        for axis in grid.axes
    )
    about = "".join(f"<div>{escape(line)}</div>" for line in _about(source, fills))
    return (
        f"<div><strong>{escape(_headline(grid, nbytes))}</strong></div>{about}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def readable(nbytes: int) -> str:
    """Write a number of bytes with a unit.

    Examples
    --------
    >>> readable(9), readable(1_900_000_000)
    ('9 bytes', '1.9 GB')
    """
    size, units = float(nbytes), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"


def _headline(grid: PatchGrid, nbytes: int) -> str:
    patches = "1 patch" if grid.total == 1 else f"{grid.total} patches"
    return f"<xpatches.Patches: {patches}, {readable(nbytes)} in all>"


def _about(source: xr.DataArray | xr.Dataset, fills: Mapping[Any, Any]) -> list[str]:
    sizes = ", ".join(f"{dim}: {length}" for dim, length in source.sizes.items())
    if isinstance(source, xr.Dataset):
        filled = ", ".join(f"{name} {value}" for name, value in fills.items())
        return [f"Source: Dataset ({sizes})", f"Fill:   {filled}"]
    name = "" if source.name is None else f" {shown(source.name)}"
    (fill,) = fills.values()
    return [f"Source: DataArray{name} {source.dtype} ({sizes})", f"Fill:   {fill}"]


def _row(axis: AxisGrid) -> tuple[str, ...]:
    padding = str(axis.pads) if isinstance(axis.padding, tuple) else axis.padding
    if axis.padding == "same":
        padding = f"same {axis.pads}"
    return (str(axis.dim), *map(str, (axis.count, axis.size, axis.stride, axis.rate)), padding)
