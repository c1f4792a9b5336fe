import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

import xpatches
from xpatches.cli import main


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("source") / "image.zarr"
    samples = np.random.default_rng(0).integers(0, 999, (64, 96)).astype("uint16")
    labelled = xr.DataArray(
        samples, {"y": np.linspace(50, 40, 64), "x": np.arange(96.0)}, ("y", "x"), "image"
    )
    labelled.chunk(y=32, x=32).to_dataset().to_zarr(path, consolidated=False)
    return str(path)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


SIZE = ("--var", "image", "--size", "y=16,x=16", "--stride", "8", "--padding", "same")


def test_extract_writes_what_the_library_extracts(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    result = run("extract", source, out, *SIZE)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "blocks are written" in result.stderr
    image = xr.open_zarr(source, consolidated=False).image
    expected = image.patches(y=16, x=16, stride=8, padding="same").extract()
    xr.testing.assert_equal(xpatches.open_patches(out), expected)


def test_extract_quietly_and_as_json(source: str, tmp_path: Path) -> None:
    result = run("extract", source, tmp_path / "a", *SIZE, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    options = ("--layout", "samples", "--stride", "y=8,x=16", "--rate", "2", "--padding", "y=3:4")
    result = run("extract", source, tmp_path / "b", *SIZE, *options, "--quiet", "--json")
    told = json.loads(result.stdout)
    assert told["state"] == "complete"
    assert told["variables"]["image"]["patches"]["y"]["padding"] == [3, 4]
    assert xpatches.open_patches(tmp_path / "b").dims == ("sample", "y_patch", "x_patch")


def test_a_dry_run_says_what_would_be_done(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    result = run("extract", source, out, *SIZE, "--dry-run", "--json")
    assert not out.exists()
    told = json.loads(result.stdout)
    assert told["patches"] == 96
    assert told["bytes"] == 96 * 16 * 16 * 2
    assert told["tasks"] == 1
    assert told["bytes_per_task"] > told["bytes"]
    assert told["read_amplification"] == 1.0
    assert "patches: 96" in run("extract", source, out, *SIZE, "--dry-run").stdout


BOTH = ("--resume", "--overwrite")


def test_exit_codes_and_messages_of_one_line(source: str, tmp_path: Path) -> None:
    out, picture = tmp_path / "out.zarr", str(tmp_path / "a.png")
    file = tmp_path / "file"
    file.write_text("...")

    def failed(code: int, message: str, *arguments: Any) -> None:
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert message in result.stderr
        assert "Traceback" not in result.stderr

    failed(2, "Missing option '--size'", "extract", source, out)
    failed(2, "'y' is not of the form", "extract", source, out, "--size", "y")
    failed(2, "--var no is not among ('image',)", "extract", source, out, *SIZE, "--var", "no")
    failed(2, "size on 'y' is too large", "extract", source, out, "--size", "y=900,x=4")
    failed(2, "absent does not exist", "extract", tmp_path / "absent", out, *SIZE)
    failed(2, "OUT must not be SOURCE", "extract", source, source, *SIZE, "--overwrite")
    failed(2, "exclude each other", "extract", source, out, *SIZE, "--workers", 1, "--scheduler", 1)
    failed(2, "holds no zarr group", "info", tmp_path)
    failed(2, "holds no patch dataset", "show", source, "-o", tmp_path / "a.png")
    assert not out.exists()
    run("extract", source, out, *SIZE)
    for more in ((), ("--dry-run",), ("--workers", 1)):
        failed(2, "; --resume finishes an incomplete", "extract", source, out, *SIZE, *more)
    failed(2, "--resume and --overwrite exclude", "extract", source, out, *SIZE, *BOTH)
    failed(2, "must be a folder, got the file", "extract", source, file, *SIZE)
    failed(2, "'8:a' is no", "extract", source, out, *SIZE, "--padding", "8:a")
    failed(2, "choose one patch along 'y', 'x'", "show", out, "-o", picture)
    failed(2, "choose one patch along 'x'", "show", out, "--isel", "y=0", "-o", picture)
    failed(2, "'sample' names nothing", "show", out, "--isel", "sample=0", "-o", picture)
    failed(
        2,
        "index on 'y' must lie in [-8, 8), got 8",
        "show",
        out,
        "--isel",
        "y=8,x=0",
        "-o",
        picture,
    )
    failed(2, "'y' holds float64, got 'abc'", "show", out, "--sel", "y=abc,x=1", "-o", picture)
    failed(2, "is outside the image", "show", out, "--sel", "y=90,x=1", "-o", picture)
    assert not Path(picture).exists()
    chunk = Path(source) / "image" / "c" / "0" / "0"
    content = chunk.read_bytes()
    chunk.write_bytes(b"")
    try:
        failed(1, "of 1 blocks", "extract", source, tmp_path / "b", *SIZE, "--retries", "0")
    finally:
        chunk.write_bytes(content)
    result = run("info", tmp_path / "absent", "--debug")
    assert isinstance(result.exception, FileNotFoundError)


def test_info_tells_images_and_datasets_apart(source: str, tmp_path: Path) -> None:
    told = json.loads(run("info", source, "--json").stdout)
    assert told["holds"] == "image"
    assert told["variables"]["image"]["dims"] == {"y": 64, "x": 96}
    assert told["variables"]["image"]["chunks"] == [32, 32]
    run("extract", source, tmp_path / "out", *SIZE)
    (tmp_path / "out" / "xpatches_job").mkdir()
    group = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}})
    (tmp_path / "out" / "xpatches_job" / "zarr.json").write_text(group)
    told = json.loads(run("info", tmp_path / "out", "--json").stdout)
    assert (told["holds"], told["state"], told["missing"]) == ("patches", "incomplete", 1)
    text = run("info", tmp_path / "out").stdout
    assert "state: incomplete" in text
    assert "missing: 1" in text


@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_show_draws_the_patch_that_is_nearest(source: str, tmp_path: Path, layout: str) -> None:
    pytest.importorskip("matplotlib")
    run("extract", source, tmp_path / "out", *SIZE, "--layout", layout)
    picture = tmp_path / "patch.png"
    result = run("show", tmp_path / "out", "--sel", "y=45.1,x=40", "-o", picture, "--json")
    assert result.exit_code == 0, result.output
    image = xr.open_zarr(source, consolidated=False).image
    patch = image.patches(y=16, x=16, stride=8, padding="same").sel(y=45.1, x=40, method="nearest")
    told = json.loads(result.stdout)
    assert told["origin"] == {"y": int(patch.y_index[0]), "x": int(patch.x_index[0])}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_show_chooses_along_all_dims(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cube = xr.DataArray(
        np.random.default_rng(0).integers(0, 9999, (3, 32, 32, 2)).astype("uint16"),
        {"band": ["red", "green", "blue"], "y": np.arange(32.0), "x": np.arange(32.0)},
        ("band", "y", "x", "time"),
        "cube",
    )
    with warnings.catch_warnings(action="ignore"):  # zarr's, of strings
        cube.to_dataset().to_zarr(tmp_path / "cube", consolidated=False)
    size = ("--size", "y=8,x=8", "--quiet")
    for layout in ("grid", "samples"):
        out = tmp_path / layout
        assert run("extract", tmp_path / "cube", out, *size, "--layout", layout).exit_code == 0
        given = ("--sel", "y=20,x=4,band=green", "--isel", "time=1", "-o", tmp_path / "a")
        result = run("show", out, *given, "--json")
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert told["chosen"] == {"band": "green", "time": "index 1"}
        assert told["origin"] == {"y": 16, "x": 0}
        assert told["picture"] == str(tmp_path / "a.png")
        result = run("show", out, "--sel", "y=20,x=4,band=no", "-o", tmp_path / "a")
        assert "'band' has no label 'no', but red, green, blue" in result.stderr


@pytest.mark.parametrize("command", ["extract", "info", "show"])
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: xpatches {command} " in result.stdout


def test_the_command_is_installed(source: str) -> None:
    command = Path(sys.executable).with_name("xpatches")
    done = subprocess.run([command, "info", source], capture_output=True, text=True, check=True)
    assert "holds: image" in done.stdout


@pytest.mark.parametrize("workers", [(), ("--workers", 1)])
def test_files_that_xarray_opens_are_read(source: str, tmp_path: Path, workers: Any) -> None:
    pytest.importorskip("h5netcdf")
    image = xr.open_zarr(source, consolidated=False).image.load()
    image.encoding = {}
    path, out = tmp_path / "image.nc", tmp_path / "out.zarr"
    image.to_dataset().to_netcdf(path, engine="h5netcdf")
    assert json.loads(run("info", path, "--json").stdout)["holds"] == "image"
    result = run("extract", path, out, *SIZE, *workers, "--quiet")
    assert result.exit_code == 0, result.output
    expected = image.patches(y=16, x=16, stride=8, padding="same").extract()
    xr.testing.assert_equal(xpatches.open_patches(out), expected)


def test_zip_files_are_read_but_not_written(source: str, tmp_path: Path) -> None:
    zipped = shutil.make_archive(str(tmp_path / "image.zarr"), "zip", source)
    out = tmp_path / "out.zarr"
    assert json.loads(run("info", zipped, "--json").stdout)["holds"] == "image"
    assert run("extract", zipped, out, *SIZE).exit_code == 0
    dataset = shutil.make_archive(str(tmp_path / "patches.zarr"), "zip", out)
    xr.testing.assert_identical(
        xpatches.open_patches(dataset).compute(), xpatches.open_patches(out).compute()
    )
    assert json.loads(run("info", dataset, "--json").stdout)["state"] == "complete"
    result = run("extract", source, tmp_path / "new.zip", *SIZE)
    assert result.exit_code == 2
    assert "zip is for reading only" in result.stderr


MODELS = """
def brighter(batch):
    return batch.astype("f4") * 2

def make():
    return brighter

def failing(batch):
    raise RuntimeError("no weights")
"""
MAP = (*SIZE, "--output-dtype", "float32", "--quiet")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mymodels.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mymodels", raising=False)


@pytest.mark.parametrize("func", [("mymodels:brighter",), ("mymodels:make", "--factory")])
def test_map_writes_what_the_model_makes(source: str, models: None, func: Any) -> None:
    result = run("map", source, "out.zarr", "--func", *func, *MAP, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["state"], told["layout"]) == ("complete", "image")
    image = xr.open_zarr(source, consolidated=False).image
    made = xpatches.open_patches("out.zarr")
    assert made.dtype == "float32"
    xr.testing.assert_allclose(made, image * 2.0)
    again = run("map", source, "out.zarr", "--func", *func, *MAP)
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
    resumed = run("map", source, "out.zarr", "--func", *func, *MAP, "--resume")
    assert resumed.exit_code == 0, resumed.output


def test_map_takes_what_the_library_takes(source: str, models: None) -> None:
    options = ("--taper", "flat", "--output-sizes", "y=8,x=12", "--batch-size", "3")
    how = (*options, "--scale", "1", "--fill-value", "9", "--chunks", "y=10,x=20")
    dry = run("map", source, "out.zarr", "--func", "mymodels:brighter", *MAP, *how, "--dry-run")
    assert "runs_per_patch: 1.00" in dry.stdout, dry.output
    both = run("map", source, "out.zarr", "--func", "mymodels:brighter", *MAP, *how, "--dry-run",
               "--materialize", "runs.zarr")  # fmt: skip
    assert both.exit_code == 2
    assert "--dry-run plans maps without --materialize" in both.stderr
    assert not Path("out.zarr").exists()
    runs = ("--materialize", "runs.zarr")
    result = run("map", source, "out.zarr", "--func", "mymodels:brighter", *MAP, *how, *runs)
    # The model does not cut its patches, as it was told to say.
    assert result.exit_code == 1
    assert "func must return the shape (3, 8, 12) for 3 patches" in result.stderr
    fitting = ("--reduce", "max", "--output-dims", "y,x")
    result = run("map", source, "out.zarr", "--func", "mymodels:brighter", *MAP, *fitting)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("func", "code", "message"),
    [
        ("brighter", 2, "--func must be MODULE:NAME, got 'brighter'"),
        ("nowhere:brighter", 2, "--func: No module named 'nowhere'"),
        ("mymodels:darker", 2, "--func: 'mymodels' has no 'darker'"),
        ("mymodels:failing", 1, "func failed on the patch with origin y=-4, x=-4 (center y="),
    ],
)
def test_errors_of_map(source: str, models: None, func: str, code: int, message: str) -> None:
    result = run("map", source, "out.zarr", "--func", func, *MAP, "--retries", "0")
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_workers_import_the_model_from_where_the_command_runs(source: str, models: None) -> None:
    command = Path(sys.executable).parent / "xpatches"
    given = ["map", source, "out.zarr", "--func", "mymodels:brighter", *MAP, "--workers", "1"]
    done = subprocess.run([command, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    image = xr.open_zarr(source, consolidated=False).image
    xr.testing.assert_allclose(xpatches.open_patches("out.zarr"), image * 2.0)
