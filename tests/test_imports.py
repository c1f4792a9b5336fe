import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import xpatches

PACKAGE = Path(__file__).parents[1] / "xpatches"

# Imports point up this list only: a module may import those above it.
ORDER = [
    *("redaction", "errors", "arguments", "documents", "arrays", "lines", "packing"),
    *("geometry", "plan", "covers", "tiles", "kernel"),
    *("reductions", "tapers", "accumulate", "lazy", "labels", "spec", "variables", "take"),
    *("reprs", "parity", "layout", "workers", "exclusive", "store", "descriptions"),
    *("writer", "lock", "nodes", "states", "blocks", "jobs", "storable", "copies"),
    *("datasets", "cuts"),
    *("located", "gather", "stitching", "runs", "models", "mapping", "parts", "painted"),
    *("progress", "verification", "patches", "accessor", "pictures", "opening", "cli", "__init__"),
]
ARRAY_LIBRARIES = {"numpy", "dask", "xarray", "zarr"}
CORE = {"numpy", "dask", "xarray", "xpatches"}
OTHERS = {
    "workers": {"cloudpickle", "distributed"},
    "exclusive": {"zarr", "obstore"},
    "store": {"zarr", "obstore"},
    "writer": {"zarr"},
    "lock": {"filelock"},
    "blocks": {"zarr", "google_crc32c"},
    "states": {"zarr"},
    "storable": {"zarr"},
    "datasets": {"zarr"},
    "progress": {"click"},
    "verification": {"zarr"},
    "pictures": {"matplotlib"},
    "opening": {"zarr"},
    "cli": {"click", "zarr", "distributed"},
}
EXTRAS = {"distributed", "obstore", "matplotlib"}


def imported(module: str, *, top_level: bool = False) -> set[str]:
    """Full names of what a module imports."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            plain = node.module == "xpatches"
            names |= {f"xpatches.{a.name}" if plain else str(node.module) for a in node.names}
    return names


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_up_only(module: str) -> None:
    above = set(ORDER[: ORDER.index(module)])
    ours = {name.split(".")[1] for name in imported(module) if name.startswith("xpatches.")}
    assert ours <= above, f"{module} imports {ours - above} from below it"


@pytest.mark.parametrize("module", ORDER)
def test_only_core_dependencies_are_imported(module: str) -> None:
    roots = {name.split(".")[0] for name in imported(module)}
    assert roots - set(sys.stdlib_module_names) <= CORE | OTHERS.get(module, set())


@pytest.mark.parametrize("module", ORDER)
def test_extras_are_imported_where_they_are_used(module: str) -> None:
    assert not EXTRAS & {name.split(".")[0] for name in imported(module, top_level=True)}


@pytest.mark.parametrize("module", ["redaction", "errors", "arguments", "geometry", "plan"])
def test_geometry_and_plans_are_integers_only(module: str) -> None:
    assert not {name.split(".")[0] for name in imported(module)} & ARRAY_LIBRARIES


def test_dir_shows_the_public_names_alone() -> None:
    names = "BlockFailure JobError MapError PatchError PatchIndexError Patches extract_patches"
    assert dir(xpatches) == [*names.split(), "open_patches", "stitch", "verify"]
    assert all(hasattr(xpatches, name) for name in dir(xpatches))


def test_lazy_is_the_only_module_that_knows_dask() -> None:
    knows = {m for m in ORDER if any(name.split(".")[0] == "dask" for name in imported(m))}
    assert knows == {"lazy"}
    top = {m for m in ORDER if "xpatches.lazy" in imported(m, top_level=True)}
    assert top == {
        "datasets",
        "cuts",
        "parts",
        "painted",
    }  # which are themselves imported for jobs only


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_numpy_in_numpy_out_imports_no_dask() -> None:
    run(
        """
        import sys
        import numpy as np, xpatches
        xpatches.extract_patches(np.ones((1, 4, 4, 1)), [1, 2, 2, 1], [1] * 4, [1] * 4, "SAME")
        loaded = {name.split(".")[0] for name in sys.modules}
        assert not loaded & {"dask", "distributed", "matplotlib", "zarr"}, loaded
        """
    )


def test_images_in_memory_need_no_dask() -> None:
    run(
        """
        import sys
        sys.modules["dask"] = None  # xarray itself imports it where it can
        import numpy as np, xarray as xr, xpatches
        image = xr.DataArray(np.arange(12.0).reshape(3, 4), dims=("y", "x"), coords={"x": range(4)})
        p = image.patches(y=2, x=2, stride=1, padding="same")
        p.extract(), p.extract(flatten="patch", label="origin"), p[0], p.plan(), repr(p)
        assert len(list(p)) == 12
        assert p.map(lambda batch: batch + 0 * batch.x, labelled=True).equals(image)
        assert "xpatches.lazy" not in sys.modules
        """
    )


@pytest.mark.parametrize("absent", ["distributed", "matplotlib"])
def test_extras_may_be_absent(absent: str) -> None:
    run(
        f"""
        import sys
        sys.modules[{absent!r}] = None
        import numpy as np, xarray as xr, xpatches
        image = xr.DataArray(np.arange(12.0).reshape(3, 4), dims=("y", "x")).chunk(x=2)
        assert image.patches(y=2, x=2).extract().compute().shape == (1, 2, 2, 2)
        """
    )
