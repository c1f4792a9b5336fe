import ast
import re
import subprocess
import sys
import textwrap
from graphlib import TopologicalSorter
from itertools import takewhile
from pathlib import Path

import pytest

import xpatches

PACKAGE = Path(xpatches.__file__).parent

# A module imports from its own room and those above it in this list.
ROOMS = [
    *("credentials", "errors", "arguments", "documents", "dtypes", "threads", "private_names"),
    *("geometry", "edges", "display", "lazy", "jobs", "images"),
    *("extraction", "reduction", "stitching", "mapping", "datasets"),
    *("tensorflow", "sequence", "verbs", "patches", "accessor", "cli", "__init__"),
]
PACKAGE_FILES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py" or path.parent == PACKAGE
}
MODULES = [*PACKAGE_FILES]
LAYERS = ["plan", "kernel", "labelled"]
ARRAY_LIBRARIES = {"numpy", "dask", "xarray", "zarr"}
CORE = {"numpy", "dask", "xarray", "xpatches"}
OTHERS = {
    "private_names": {"zarr"},
    "jobs.workers": {"cloudpickle", "distributed"},
    "jobs.conditional_puts": {"zarr", "obstore"},
    "jobs.folder": {"zarr"},
    "jobs.open": {"zarr", "obstore"},
    "jobs.writer": {"zarr"},
    "jobs.lock": {"filelock"},
    "jobs.blocks": {"zarr", "google_crc32c"},
    "datasets.encoding": {"zarr"},
    "datasets.source_stores": {"zarr"},
    "datasets.write": {"zarr"},
    "jobs.progress": {"click"},
    "datasets.verification": {"zarr"},
    "display.plots": {"matplotlib"},
    "cli.opening": {"zarr"},
    "cli.describe": {"click", "zarr"},
    "cli.options": {"click", "zarr"},
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


def room_of(module: str) -> str:
    return module.split(".")[0]


def test_every_module_lies_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} == set(ROOMS)


def test_the_internals_tell_of_every_room_and_of_files_that_are_there() -> None:
    page = (Path(__file__).parents[1] / "docs" / "internals.md").read_text()
    _, table = page.split("| room | says |\n|---|---|\n")
    rows = takewhile(bool, table.splitlines())
    assert [row.split("`")[1] for row in rows] == ROOMS[:-1]
    told = re.findall(rf"`((?:{'|'.join(ROOMS)})/\w+)(?:\.py)?`", page)
    assert told
    assert {name.replace("/", ".") for name in told} <= {*MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_up_only(module: str) -> None:
    ours = {n.removeprefix("xpatches.") for n in imported(module) if n.startswith("xpatches.")}
    above = ROOMS[: ROOMS.index(room_of(module)) + 1]
    below = {name for name in ours if room_of(name) not in above}
    assert not below, f"{module} imports {below} from below it"


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[-1] in LAYERS])
def test_in_a_wing_plans_know_no_kernel_and_kernels_no_labels(module: str) -> None:
    wing, layer = module.split(".")
    below = {f"xpatches.{wing}.{name}" for name in LAYERS[LAYERS.index(layer) + 1 :]}
    assert not imported(module) & below


def test_imports_go_in_no_circle() -> None:
    ours = {
        module: {name.removeprefix("xpatches.") for name in imported(module)} & {*MODULES}
        for module in MODULES
    }
    TopologicalSorter(ours).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_only_core_dependencies_are_imported(module: str) -> None:
    roots = {name.split(".")[0] for name in imported(module)}
    assert roots - set(sys.stdlib_module_names) <= CORE | OTHERS.get(module, set())


@pytest.mark.parametrize("module", MODULES)
def test_extras_are_imported_where_they_are_used(module: str) -> None:
    assert not EXTRAS & {name.split(".")[0] for name in imported(module, top_level=True)}


@pytest.mark.parametrize(
    "module", ["credentials", "errors", "arguments", "geometry.grid", "extraction.plan"]
)
def test_geometry_and_plans_are_integers_only(module: str) -> None:
    assert not {name.split(".")[0] for name in imported(module)} & ARRAY_LIBRARIES


def test_dir_shows_the_public_names_alone() -> None:
    classes = "AxisGrid BlockFailure JobError MapError PatchError PatchGrid PatchIndexError Patches"
    functions = "extract_patches open_patches stitch verify"
    assert dir(xpatches) == [*classes.split(), *functions.split()]
    assert all(hasattr(xpatches, name) for name in dir(xpatches))


def test_lazy_is_the_only_module_that_knows_dask() -> None:
    knows = {m for m in MODULES if any(name.split(".")[0] == "dask" for name in imported(m))}
    assert knows == {"lazy.graphs", "lazy.sources"}
    top = {
        room_of(module)
        for module in MODULES
        if any(name.startswith("xpatches.lazy.") for name in imported(module, top_level=True))
    }
    assert top == {"lazy", "datasets"}  # the latter is itself imported for jobs only


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
