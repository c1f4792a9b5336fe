"""The spec of an extraction: JSON in an attr, from which the geometry can be rebuilt."""

import json
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from xpatches.arrays import Array
from xpatches.errors import PatchError
from xpatches.geometry import AxisGrid, PatchGrid
from xpatches.lines import Line

SPEC_ATTR = "xpatches"
"""Attr of an extracted array that holds its spec."""


_VERSION = 2


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
    """Read the spec of an extracted array from its attrs.

    Raises
    ------
    PatchError
        If the attrs hold no spec, or one of a later version.

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
        spec = json.loads(attrs[SPEC_ATTR])
        if spec["version"] == _VERSION:
            return Spec(
                tuple(spec["dims"]),
                PatchGrid(tuple(AxisGrid(**axis) for axis in spec["axes"])),
                spec["label"],
                dict(spec["flattened"]),
                spec["layout"],
                {dim: np.dtype(dtype) for dim, dtype in spec["even"]},
                spec.get("outer"),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise PatchError(
            f"the attr {SPEC_ATTR!r} is damaged, {error!r}; keep it as extract() gave it"
        ) from error
    raise PatchError(
        f"the attr {SPEC_ATTR!r} is of version {spec['version']}, this xpatches reads {_VERSION}; "
        "use the one that wrote it, or extract again"
    )


def _as_json(value: Array) -> bool | int | float | str:
    """Give a JSON value; what JSON has no type for (NaN, complex, times, bytes) is text."""
    item = value.item()
    plain = isinstance(item, bool | int | str) and value.dtype.kind not in "mM"
    finite = isinstance(item, float) and math.isfinite(item)
    return item if plain or finite else str(value)
