import re
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from xpatches import PatchError, PatchIndexError, extract_patches

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"


def table() -> list[Any]:
    """Rows of the documented table: what is written, and what the error says."""
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    return [pytest.param(code, message, id=code) for code, message in rows]


def names(chunked: bool) -> dict[str, Any]:
    """Run the page's own definitions."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    scope: dict[str, Any] = {"np": np, "xr": xr, "extract_patches": extract_patches}
    exec(code, scope)
    if chunked:
        for name in ("image", "empty", "dataset"):
            scope[name] = scope[name].chunk(y=7, x=8)
        scope["images"] = da.from_array(scope["images"], chunks=7)
    return scope


@pytest.mark.parametrize("chunked", [False, True], ids=["numpy", "dask"])
@pytest.mark.parametrize(("code", "message"), table())
def test_bad_input_raises_the_documented_error(
    code: str, message: str, chunked: bool, no_compute: None
) -> None:
    with pytest.raises(PatchError) as caught:
        eval(code, names(chunked))
    assert str(caught.value) == message


def test_the_table_covers_what_can_go_wrong() -> None:
    assert len(table()) > 60


def test_an_index_outside_the_grid_is_an_index_error_too() -> None:
    p = xr.DataArray(np.zeros(9), dims="x").patches(x=3)
    with pytest.raises(IndexError):
        p[3]
    assert issubclass(PatchIndexError, PatchError)
    assert issubclass(PatchError, ValueError)


def test_other_array_libraries_are_named() -> None:
    masked = np.ma.masked_array(np.zeros(9), mask=False)

    class Duck(np.ndarray):
        pass

    duck = xr.DataArray(np.zeros(9).view(Duck), dims="x")
    assert len(duck.patches(x=3)) == 3
    with pytest.raises(PatchError, match="images must be a NumPy or dask array, got MaskedArray"):
        extract_patches(masked.reshape(1, 9, 1), [1, 3, 1], [1, 3, 1], [1, 1, 1], "VALID")
