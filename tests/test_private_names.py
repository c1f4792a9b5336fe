"""Private names of other libraries stand in `xpatches.private_names` alone, and are still there."""

import ast
import asyncio
import threading
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import MemoryStore

from xpatches import private_names
from xpatches.lazy.graphs import PLANNED

PACKAGE = Path(private_names.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
# The asynchronous methods of fsspec's file systems are public under such names.
FSSPEC = {"_info", "_pipe_file"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined() -> set[str]:
    """Private names that this package gives to things of its own."""
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = {node.name for node in nodes if isinstance(node, definitions)}
    # In frozen objects they are set by name.
    names |= {
        node.value for node in nodes if isinstance(node, ast.Constant) and type(node.value) is str
    }
    targets = [node.targets for node in nodes if isinstance(node, ast.Assign)]
    targets += [[node.target] for node in nodes if isinstance(node, ast.AnnAssign)]
    for target in (target for several in targets for target in several):
        for part in ast.walk(target):
            if isinstance(part, ast.Attribute):
                names.add(part.attr)
            elif isinstance(part, ast.Name):
                names.add(part.id)
    return {name for name in names if is_private(name)}


@pytest.mark.parametrize(
    "path", [path for path in TREES if path.name != "private_names.py"], ids=str
)
def test_nothing_private_of_others_is_used_elsewhere(path: Path) -> None:
    nodes = [*ast.walk(TREES[path])]
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not {name for name in attributes if is_private(name)} - defined() - FSSPEC
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    foreign = {name for name in modules if not name.startswith("xpatches.")}
    assert not {name for name in foreign if any(map(is_private, name.split(".")))}
    # zarr and xarray say so of these.
    assert not {name for name in foreign if name.startswith(("zarr.core.", "xarray.core."))}


def test_what_was_opened_lazily_is_held_and_not_loaded(tmp_path: Path) -> None:
    image = xr.DataArray(np.arange(12).reshape(3, 4), dims=("y", "x"), name="image")
    image.to_dataset().to_zarr(tmp_path / "image.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "image.zarr", chunks=None, consolidated=False).image.variable
    assert not private_names.is_loaded(opened)
    assert not isinstance(private_names.held(opened), np.ndarray)
    assert private_names.held(opened).shape == (3, 4)
    assert not private_names.is_loaded(opened)
    opened.load()
    assert private_names.is_loaded(opened)
    assert private_names.held(image.variable) is image.values


@pytest.mark.skipif(PLANNED, reason="expressions do not show what an array was opened from")
def test_what_a_dask_array_was_opened_from_is_found() -> None:
    class Source:
        shape, dtype, ndim = (3, 4), np.dtype(int), 2

        def __getitem__(self, region: Any) -> Any:
            raise AssertionError

    samples, lock = Source(), threading.Lock()
    found = private_names.opened_from(da.from_array(samples, chunks=2, lock=lock, meta=np.empty(0)))
    assert found is not None
    assert found[0] is samples
    assert found[1] is lock
    assert private_names.opened_from(da.from_array(samples, chunks=2, meta=np.empty(0)) + 1) is None


def test_stores_are_asked_on_the_loop_of_zarr() -> None:
    async def loop() -> Any:
        return asyncio.get_running_loop()

    store = MemoryStore()
    zarr.create_array(store, shape=(1,), dtype="u1")
    assert private_names.sync(loop()) is private_names.sync(loop())
    assert private_names.sync(store.exists("zarr.json"))
