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
    *("redaction", "errors", "arguments", "documents", "dtypes", "images.lines", "images.packing"),
    *(
        "geometry.grid",
        "extraction.plan",
        "geometry.coverage",
        "extraction.small_patches",
        "extraction.kernel",
    ),
    *(
        "reduction.kernel",
        "stitching.tapers",
        "stitching.overlay",
        "lazy.graphs",
        "images.labels",
        "images.spec",
        "extraction.labelled",
        "extraction.single",
    ),
    *(
        "display.text",
        "tensorflow",
        "datasets.layout",
        "jobs.workers",
        "jobs.exclusive",
        "jobs.folder",
        "datasets.descriptions",
    ),
    *(
        "jobs.writer",
        "jobs.lock",
        "jobs.nodes",
        "jobs.state",
        "jobs.blocks",
        "jobs.job",
        "datasets.encoding",
        "datasets.copies",
    ),
    *("datasets.write", "datasets.patches"),
    *(
        "stitching.locate",
        "stitching.gather",
        "stitching.labelled",
        "mapping.plan",
        "mapping.model",
        "mapping.labelled",
        "datasets.outputs",
        "datasets.image",
    ),
    *(
        "jobs.progress",
        "datasets.verification",
        "patches",
        "accessor",
        "display.plots",
        "cli.opening",
        "cli.main",
        "__init__",
    ),
]
ARRAY_LIBRARIES = {"numpy", "dask", "xarray", "zarr"}
CORE = {"numpy", "dask", "xarray", "xpatches"}
OTHERS = {
    "jobs.workers": {"cloudpickle", "distributed"},
    "jobs.exclusive": {"zarr", "obstore"},
    "jobs.folder": {"zarr", "obstore"},
    "jobs.writer": {"zarr"},
    "jobs.lock": {"filelock"},
    "jobs.blocks": {"zarr", "google_crc32c"},
    "jobs.state": {"zarr"},
    "datasets.encoding": {"zarr"},
    "datasets.write": {"zarr"},
    "jobs.progress": {"click"},
    "datasets.verification": {"zarr"},
    "display.plots": {"matplotlib"},
    "cli.opening": {"zarr"},
    "cli.main": {"click", "zarr", "distributed"},
}
EXTRAS = {"distributed", "obstore", "matplotlib"}


def path_of(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


def imported(module: str, *, top_level: bool = False) -> set[str]:
    """Full names of what a module imports."""
    tree = ast.parse(path_of(module).read_text())
    names = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = path_of(full.removeprefix("xpatches.")).exists()
                names.add(full if is_module else str(node.module))
    return names


def test_every_module_has_its_place() -> None:
    modules = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")}
    wings = {path for path in modules if path.name == "__init__" and path.parent.name}
    assert {".".join(path.parts) for path in modules - wings} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_up_only(module: str) -> None:
    above = set(ORDER[: ORDER.index(module)])
    ours = {n.removeprefix("xpatches.") for n in imported(module) if n.startswith("xpatches.")}
    assert ours <= above, f"{module} imports {ours - above} from below it"


@pytest.mark.parametrize("module", ORDER)
def test_only_core_dependencies_are_imported(module: str) -> None:
    roots = {name.split(".")[0] for name in imported(module)}
    assert roots - set(sys.stdlib_module_names) <= CORE | OTHERS.get(module, set())


@pytest.mark.parametrize("module", ORDER)
def test_extras_are_imported_where_they_are_used(module: str) -> None:
    assert not EXTRAS & {name.split(".")[0] for name in imported(module, top_level=True)}


@pytest.mark.parametrize(
    "module", ["redaction", "errors", "arguments", "geometry.grid", "extraction.plan"]
)
def test_geometry_and_plans_are_integers_only(module: str) -> None:
    assert not {name.split(".")[0] for name in imported(module)} & ARRAY_LIBRARIES


def test_dir_shows_the_public_names_alone() -> None:
    names = "BlockFailure JobError MapError PatchError PatchIndexError Patches extract_patches"
    assert dir(xpatches) == [*names.split(), "open_patches", "stitch", "verify"]
    assert all(hasattr(xpatches, name) for name in dir(xpatches))


def test_lazy_is_the_only_module_that_knows_dask() -> None:
    knows = {m for m in ORDER if any(name.split(".")[0] == "dask" for name in imported(m))}
    assert knows == {"lazy.graphs"}
    top = {m for m in ORDER if "xpatches.lazy.graphs" in imported(m, top_level=True)}
    written = {"write", "patches", "outputs", "image"}  # which are imported for jobs only
    assert top == {f"datasets.{name}" for name in written}


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
        assert "xpatches.lazy.graphs" not in sys.modules
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
