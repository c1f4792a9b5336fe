"""The spec of an extraction: JSON in an attr, from which the geometry can be rebuilt."""

import json
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from xpatches.arguments import shown
from xpatches.documents import (
    MOST,
    Unfit,
    dtype,
    either,
    integer,
    list_of,
    long_text,
    number,
    one_of,
    parse,
    record,
    refuse,
    text,
    tuple_of,
    version_of,
)
from xpatches.dtypes import Array
from xpatches.errors import PatchError
from xpatches.geometry.grid import AxisGrid, PatchGrid
from xpatches.images.even_labels import Line

SPEC_ATTR = "xpatches"
"""Attr of an extracted array that holds its spec."""

_VERSION = 2
_SAMPLES = 1 << 58
"""Of an image, at most: their bytes can be counted in 64 bits."""


@dataclass(frozen=True)
class Spec:
    """What is known of an extracted array."""

    dims: tuple[Hashable, ...]
    """Dims of the image."""
    grid: PatchGrid
    label: str
    """Which sample gave a patch its labels: ``"center"`` or ``"origin"``."""
    flattened: Mapping[Hashable, int]
    """Dims that were joined into one, and their lengths."""
    layout: str
    """``"grid"`` or ``"samples"``."""
    even: Mapping[Hashable, np.dtype[Any]] = field(default_factory=dict)
    """Dims of the grid whose labels are evenly spaced in the image, and the dtypes of those."""
    outer: str | None = None
    """The spec of the image, where that is an extracted array itself."""


def write_spec(
    dims: Iterable[Hashable],
    grid: PatchGrid,
    fill_value: Array,
    label: str,
    flattened: Mapping[Hashable, int],
    layout: str = "grid",
    even: Mapping[Hashable, Line] = MappingProxyType({}),
    attrs: Mapping[Any, Any] = MappingProxyType({}),
) -> str:
    """Describe an extraction as JSON: all that it takes to find every sample's source again.

    The attrs are the image's: if they hold a spec, this one holds that.
    """
    outer = attrs.get(SPEC_ATTR)
    return json.dumps(
        {
            "version": _VERSION,
            "dims": list(dims),
            "axes": [asdict(axis) for axis in grid.axes],
            "fill_value": _as_json(fill_value),
            "label": label,
            "flattened": list(flattened.items()),
            "layout": layout,
            "even": [[dim, str(even[dim].dtype)] for dim in grid.dims if dim in even],
            **({"outer": outer} if isinstance(outer, str) else {}),
        }
    )


def read_spec(attrs: Mapping[Any, Any]) -> Spec:
    """Read the spec of an extracted array from its attrs, which anyone may have written.

    Raises
    ------
    PatchError
        If the attrs hold no spec, one of another version, or anything in it is not of the kind and
        size that it must be.

    Examples
    --------
    >>> import numpy as np
    >>> grid = PatchGrid((AxisGrid("x", length=10, size=3, stride=5, padding=(1, 2)),))
    >>> spec = read_spec({"xpatches": write_spec(["x"], grid, np.array(0), "center", {})})
    >>> spec.grid == grid, spec.layout
    (True, 'grid')
    """
    if SPEC_ATTR not in attrs:
        raise PatchError(
            f"the array has no attr {SPEC_ATTR!r}: it does not come from extract(), "
            "or its attrs were lost on the way (see xarray.set_options(keep_attrs=True))"
        )
    try:
        spec = parse(attrs[SPEC_ATTR])
        if version_of(spec) != _VERSION:
            raise PatchError(
                f"the attr {SPEC_ATTR!r} is of version {spec['version']}, this xpatches reads "
                f"{_VERSION}; use the one that wrote it, or extract again"
            )
        return _checked(_record("", spec))
    except Unfit as error:
        raise PatchError(
            f"the attr {SPEC_ATTR!r} is damaged, {error}; keep it as extract() gave it"
        ) from error


_record = record(
    {
        "version": integer,
        "dims": list_of(text, most=64),
        "axes": list_of(
            record(
                {
                    "dim": text, "length": integer, "size": integer, "stride": integer,
                    "rate": integer,
                    "padding": either(one_of("valid", "same"), tuple_of(integer, integer)),
                }
            ),
            least=1, most=64,
        ),
        "fill_value": either(one_of(True, False), either(number, long_text)),
        "label": one_of("center", "origin"),
        "flattened": list_of(tuple_of(text, integer), most=64),
        "layout": one_of("grid", "samples"),
        "even": list_of(tuple_of(text, either(one_of("object"), dtype)), most=64),
    },
    {"outer": long_text},
)  # fmt: skip


def _checked(spec: Mapping[str, Any]) -> Spec:
    """Make a spec of what is of the right kinds, if it also fits together."""
    dims, axes = spec["dims"], spec["axes"]
    names = [axis["dim"] for axis in axes]
    for place, items in (("dims", dims), ("dims of axes", names)):
        if len(set(items)) < len(items):
            refuse(place, "different from each other", items)
    for place, items in (
        ("dims of axes", names),
        ("dims of even", [dim for dim, _ in spec["even"]]),
    ):
        if not set(items) <= set(dims):
            refuse(place, f"among the dims {shown(dims)}", items)
    try:
        grid = PatchGrid(tuple(AxisGrid(**axis) for axis in axes))
    except PatchError as error:
        raise Unfit(str(error)) from error
    for axis in grid:
        if axis.effective_size > MOST:
            refuse(f"effective size on {axis.dim!r}", f"at most {MOST}", axis.effective_size)
    for place, counts in (
        ("samples of the image", [axis.length for axis in grid]),
        ("samples of a patch", [length for _, length in spec["flattened"]]),
    ):
        if prod(counts) > _SAMPLES:
            refuse(place, f"at most {_SAMPLES}", prod(counts))
    return Spec(
        tuple(dims),
        grid,
        spec["label"],
        dict(spec["flattened"]),
        spec["layout"],
        {dim: np.dtype(name) for dim, name in spec["even"]},
        spec.get("outer"),
    )


def _as_json(value: Array) -> bool | int | float | str:
    """Give a JSON value; what JSON has no type for (NaN, complex, times, bytes) is text."""
    item = value.item()
    plain = isinstance(item, bool | int | str) and value.dtype.kind not in "mM"
    finite = isinstance(item, float) and math.isfinite(item)
    return item if plain or finite else str(value)
