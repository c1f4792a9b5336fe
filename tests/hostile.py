"""What nobody expects, and what is done with whatever comes of it."""

from collections.abc import Iterator
from typing import Any

import xarray as xr

from xpatches import Patches


def raising(*names: str) -> Any:
    """An object of which these methods raise what nobody expects."""

    def refuse(self: object, *args: object) -> Any:
        raise ZeroDivisionError("asked")

    members: dict[str, Any] = dict.fromkeys(names, refuse)
    if "__eq__" in names and "__hash__" not in names:
        members["__hash__"] = lambda self: hash("y")
    return type(f"Raising{''.join(names)}", (), members)()


DUNDERS = [
    *("__eq__", "__hash__", "__index__", "__bool__", "__repr__", "__str__", "__len__", "__iter__"),
    *("__array__", "__float__", "__int__", "__fspath__", "__call__", "__getitem__", "__format__"),
]


def copied(batch: Any) -> Any:
    return batch


def settle(result: Any) -> None:
    """Compute what is lazy, and show what is made."""
    if isinstance(result, Iterator):
        result = next(result)
    if isinstance(result, xr.DataArray | xr.Dataset) or hasattr(result, "compute"):
        result.compute()
    elif isinstance(result, Patches):
        repr(result), result._repr_html_(), result.plan()
