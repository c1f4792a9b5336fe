import json
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner, Result

import xpatches
from xpatches import PatchError
from xpatches.cli.main import main
from xpatches.display import plots as pictures


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


def opened(store: Any) -> xr.DataArray:
    """Open what was made of a single variable."""
    array = xpatches.open_patches(store)
    assert isinstance(array, xr.DataArray)
    return array


def test_no_scale_or_budget_takes_long_to_be_refused(source: str, tmp_path: Path) -> None:
    func = ("--func", "numpy:copy", "--size", "y=16,x=16", "--reduce", "first", "--dry-run")
    for text in ("1e9999999", "y=1e9999999", "1e-9999999", "1/1e99999", "1/0", "nan", "3/2"):
        result = run("map", source, tmp_path / "out.zarr", *func, "--scale", text)
        assert result.exit_code == 2
        assert "is no number of that kind" in result.stderr
    for text in ("1e400", "1e9999999 GB"):
        result = run("map", source, tmp_path / "out.zarr", *func, "--max-bytes", text)
        assert result.exit_code == 2
        assert "--max-bytes must be a number of bytes" in result.stderr
    assert run("map", source, tmp_path / "out.zarr", *func, "--scale", "1/4").exit_code == 0


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
    failed(2, "holds no zarr group or array", "info", tmp_path)
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
    assert isinstance(result.exception, PatchError)


def test_info_tells_images_and_datasets_apart(source: str, tmp_path: Path) -> None:
    told = json.loads(run("info", source, "--json").stdout)
    assert told["holds"] == "image"
    assert told["variables"]["image"]["dims"] == {"y": 64, "x": 96}
    assert told["variables"]["image"]["chunks"] == [32, 32]
    run("extract", source, tmp_path / "out", *SIZE)
    root = tmp_path / "out" / "zarr.json"
    assert '\\"complete\\": true' in root.read_text()
    root.write_text(root.read_text().replace('\\"complete\\": true', '\\"complete\\": false'))
    told = json.loads(run("info", tmp_path / "out", "--json").stdout)
    assert (told["holds"], told["state"], told["missing"]) == ("patches", "incomplete", 1)
    text = run("info", tmp_path / "out").stdout
    assert "state: incomplete" in text
    assert "missing: 1" in text


def test_verify_names_what_is_damaged_and_resume_writes_it_again(
    source: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("extract", source, out, *SIZE)
    sound = run("verify", out, "--json")
    assert sound.exit_code == 0
    assert json.loads(sound.stdout)["damaged"] == {}
    (chunk,) = (path for path in (out / "image" / "c").rglob("*") if path.is_file())
    content = chunk.read_bytes()
    chunk.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    for options in ((), ("--repair",)):
        told = run("verify", out, *options, "--quiet")
        assert told.exit_code == 1
        assert f"damaged: 1\n{chunk.relative_to(out)}: " in told.stdout
    assert json.loads(run("info", out, "--json").stdout)["state"] == "incomplete"
    assert run("extract", source, out, *SIZE, "--resume").exit_code == 0
    assert chunk.read_bytes() == content
    assert run("verify", out).exit_code == 0
    image = run("verify", source)
    assert image.exit_code == 2
    assert "holds no patch dataset" in image.stderr


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


def test_padding_is_what_pad_value_says(source: str, tmp_path: Path) -> None:
    whole = ("--size", "y=64,x=96", "--padding", "y=1:0,x=0:0", "--pad-value", 777)
    assert run("extract", source, tmp_path / "out", "--var", "image", *whole).exit_code == 0
    image = xr.open_zarr(source, consolidated=False)["image"].values
    patch = opened(tmp_path / "out").values[0, 0]
    assert (patch[0] == 777).all()
    np.testing.assert_array_equal(patch[1:], image[:63])
    wrong = run("extract", source, tmp_path / "no", *SIZE, "--pad-value", "nan")
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
    assert "--pad-value must be a value that uint16 can hold, got nan" in wrong.stderr


def test_integers_are_padded_exactly(tmp_path: Path) -> None:
    line = xr.DataArray(np.arange(4, dtype="i8"), dims="x", name="line")
    line.to_dataset().to_zarr(tmp_path / "line.zarr", consolidated=False)
    given = ("--size", "x=2", "--padding", "1:1", "--pad-value", 2**62 + 1)
    assert run("extract", tmp_path / "line.zarr", tmp_path / "out", *given).exit_code == 0
    assert int(xpatches.open_patches(tmp_path / "out")[0, 0]) == 2**62 + 1


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Zarr as other tools write it: arrays alone, without names of dims, in groups of groups."""
    samples = np.arange(40 * 60, dtype="u2").reshape(40, 60)
    for name, names, version in (
        ("plain.zarr", None, 3),
        ("old.zarr", None, 2),
        ("named.zarr", ("y", "x"), 3),
        ("deep.zarr/a/plain", None, 3),
        ("deep.zarr/a/half", None, 3),
        ("sizes.zarr/one", ("y", "x"), 3),
        ("sizes.zarr/two", ("y", "x"), 3),
    ):
        zarr.create_array(
            tmp_path / name,
            data=samples[: 20 if name.endswith(("half", "two")) else 40],
            chunks=(16, 16),
            zarr_format=version,  # type: ignore[arg-type]
            dimension_names=names,
        )
    for group in ("deep.zarr", "deep.zarr/a", "deep.zarr/b", "sizes.zarr"):
        zarr.open_group(tmp_path / group, mode="a")
    (tmp_path / "deep.zarr" / "thumbnails").mkdir()  # none of zarr's
    return tmp_path


TILES = ("--size", "y=16,x=16", "--quiet")


@pytest.mark.parametrize(
    ("workers", "place"),
    [
        (("--workers", 1), ("plain.zarr", "--dims", "y,x")),
        ((), ("plain.zarr", "--dims", "y,x")),
        ((), ("old.zarr", "--dims", "y, x")),
        ((), ("named.zarr",)),
        ((), ("deep.zarr", "--group", "a/plain", "--dims", "y,x")),
        ((), ("deep.zarr/a/plain", "--dims", "y,x")),
        ((), ("sizes.zarr", "--group", "/one/")),
    ],
)
def test_arrays_of_zarr_are_images(odd: Path, workers: Any, place: tuple[str, ...]) -> None:
    result = run("extract", odd / place[0], odd / "out", *place[1:], *TILES, *workers)
    assert result.exit_code == 0, result.output
    image = xr.DataArray(np.arange(40 * 60, dtype="u2").reshape(40, 60), dims=("y", "x"))
    expected = image.patches(y=16, x=16).extract()
    xr.testing.assert_equal(xpatches.open_patches(odd / "out"), expected)
    told = json.loads(run("info", odd / place[0], *place[1:], "--json").stdout)
    (variable,) = told["variables"].values()
    assert (variable["dims"], variable["chunks"]) == ({"y": 40, "x": 60}, [16, 16])


@pytest.mark.parametrize("version", [2, 3])
def test_an_array_of_an_image_is_decoded_as_the_image_is(tmp_path: Path, version: Any) -> None:
    image = xr.Dataset({"image": (("y", "x"), np.array([[1, 2], [3, np.nan]], "f4"))})
    image.image.encoding = {"_FillValue": 65535, "dtype": "u2"}
    image.to_zarr(tmp_path / "image.zarr", zarr_format=version, consolidated=False)
    places: list[list[str]] = [
        ["image.zarr"],
        ["image.zarr/image"],
        ["image.zarr", "--group", "image"],
    ]
    for name, *more in places:
        size = ("--size", "y=2,x=2", "--padding", "0:1", "--overwrite", "--quiet")
        assert run("extract", tmp_path / name, tmp_path / "out", *more, *size).exit_code == 0
        patches = xpatches.open_patches(tmp_path / "out")
        patches = patches.image if isinstance(patches, xr.Dataset) else patches
        np.testing.assert_array_equal(patches[0, 0], image.image)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("plain.zarr",), "plain.zarr of shape (40, 60) have no names; give them: --dims y,x"),
        (("plain.zarr", "--dims", "y"), "of shape (40, 60) once, got y"),
        (("plain.zarr", "--dims", "y,y"), "of shape (40, 60) once, got y,y"),
        (("deep.zarr",), "is no image: it holds the groups 'a', 'b'; choose one with --group"),
        (("deep.zarr", "--group", "b"), "is no image: it holds nothing"),
        (("deep.zarr", "--group", "c"), "holds no 'c'; it holds the groups 'a', 'b'"),
        (("deep.zarr", "--group", "a"), "the arrays 'half' (20, 60), 'plain' (40, 60), choose one"),
        (("deep.zarr", "--dims", "y,x"), "is a group; it holds the groups 'a', 'b'"),
        (("sizes.zarr",), "it holds the arrays 'one' (40, 60), 'two' (20, 60), choose one with"),
        (("text", "--dims", "y,x"), "--dims names the dims of a zarr array"),
        (("text",), "is of no format that xarray opens here"),
    ],
)
def test_what_is_no_image_is_told_in_a_line(
    odd: Path, place: tuple[str, ...], message: str
) -> None:
    (odd / "text").write_text("...")
    for command, more in (("info", ()), ("extract", (odd / "out", *TILES))):
        result = run(command, odd / place[0], *more, *place[1:])
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_groups_of_files_are_chosen_and_listed(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    path = tmp_path / "groups.nc"
    image = xr.DataArray(np.arange(12.0).reshape(3, 4), dims=("y", "x"), name="image")
    image.to_dataset().to_netcdf(path, group="winter", engine="h5netcdf")
    result = run("info", path)
    assert (result.exit_code, "the groups /winter; choose one with" in result.stderr) == (2, True)
    told = json.loads(run("info", path, "--group", "winter", "--json").stdout)
    assert told["variables"]["image"]["dims"] == {"y": 3, "x": 4}


def test_packed_numbers_are_decoded_unless_told_otherwise(tmp_path: Path) -> None:
    image = xr.DataArray([[0.5, 1.0], [1.5, np.nan]], dims=("y", "x"), name="image")
    packing = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}
    place = tmp_path / "packed.zarr"
    image.to_dataset().to_zarr(place, encoding={"image": packing}, consolidated=False)
    for given, dtype, last in (((), "float64", np.nan), (("--no-decode",), "int16", -1)):
        for at in (place, place / "image"):
            out = ("--size", "y=2,x=2", "--overwrite", *given)
            assert run("extract", at, tmp_path / "out", *out).exit_code == 0
            patches = xpatches.open_patches(tmp_path / "out")
            assert patches.dtype == dtype
            np.testing.assert_equal(float(patches[0, 0, 1, 1]), float(last))


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
import functools
import numpy as np

def brighter(batch):
    return batch.astype("f4") * 2

def make():
    return brighter

def same(batch):
    return batch

def north(batch):
    return batch.astype("f4") * 0 + batch.y.astype("f4")

def failing(batch):
    raise RuntimeError("no weights")

def blend(batch, weights):
    return batch

def weighted(func):
    @functools.wraps(func)
    def weighs(batch):
        return func(batch, 1)
    return weighs

class Network:
    def __init__(self):
        open("called", "w").close()

    def __call__(self, batch):
        return batch

blended, positive, levels = weighted(blend), np.positive, 3
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
    assert re.search(r"func must return the shape \((\d), 8, 12\) for \1 patch", result.stderr)
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


@pytest.mark.parametrize(
    ("func", "message"),
    [
        (("mymodels:brighter",), None),
        (("mymodels:blended",), None),
        (("mymodels:positive",), None),
        (("builtins:max",), None),
        (("mymodels:make", "--factory"), None),
        (("mymodels:Network", "--factory"), None),
        (("mymodels:levels",), "--func must name a function, got 3"),
        (
            ("mymodels:blend",),
            "must take one argument, a batch of patches, without --factory, got ",
        ),
        (("mymodels:Network",), "must take one argument, a batch of patches, without --factory"),
        (("mymodels:brighter", "--factory"), "must take no argument with --factory, got (batch)"),
        (("broken:model",), "--func: 'broken' cannot be imported: SystemExit: 0 (--debug shows"),
        (("random:model",), f"--func: 'random' has no 'model' ({random.__file__})"),
    ],
)
def test_a_dry_run_says_whether_the_function_fits_and_calls_nothing(
    source: str, models: None, func: tuple[str, ...], message: str | None
) -> None:
    Path("broken.py").write_text("raise SystemExit(0)")
    result = run("map", source, "out.zarr", "--func", *func, *MAP, "--dry-run")
    assert result.exit_code == (0 if message is None else 2), result.output
    assert message is None or message in result.stderr
    assert not Path("called").exists()


@pytest.mark.parametrize("workers", [(), ("--workers", "1")])
def test_modules_of_the_current_folder_stand_behind_all_others(
    source: str, models: None, workers: tuple[str, ...]
) -> None:
    for name in ("random", "numpy", "click", "distributed"):
        Path(f"{name}.py").write_text("raise RuntimeError('not this one')")
    command = Path(sys.executable).parent / "xpatches"
    given = ["map", source, "out.zarr", "--func", "mymodels:brighter", *MAP, *workers]
    done = subprocess.run([command, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_workers_import_the_model_from_where_the_command_runs(source: str, models: None) -> None:
    command = Path(sys.executable).parent / "xpatches"
    given = ["map", source, "out.zarr", "--func", "mymodels:brighter", *MAP, "--workers", "1"]
    done = subprocess.run([command, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    image = xr.open_zarr(source, consolidated=False).image
    xr.testing.assert_allclose(xpatches.open_patches("out.zarr"), image * 2.0)


def test_the_model_sees_the_pad_value_and_fill_value_is_for_what_it_never_saw(
    source: str, models: None
) -> None:
    """Half of the first patch is padding, which is cropped; behind the last one there is none."""
    (Path("probe.py")).write_text(
        "def padding(batch):\n    return batch[:, :1, :1] + 0 * batch[:, :32, :32]\n"
    )
    given = ("--func", "probe:padding", "--size", "y=32,x=32", "--padding", "y=32:0,x=32:0")
    values = ("--pad-value", 500, "--fill-value", 7, "--taper", "flat", "--stride", "y=64,x=64")
    result = run("map", source, "out.zarr", "--var", "image", *given, *values, "--quiet")
    assert result.exit_code == 0, result.output
    image = xr.open_zarr(source, consolidated=False)["image"].values
    made = opened("out.zarr").values
    assert (made[:32] == 7).all()
    assert (made[32:, :32] == 7).all()
    assert (made[32:, 32:64] == image[32, 32]).all()


def test_labelled_models_are_given_labels(source: str, models: None) -> None:
    result = run("map", source, "out.zarr", "--func", "mymodels:north", "--labelled", *MAP)
    assert result.exit_code == 0, result.output
    made = xpatches.open_patches("out.zarr")
    assert 40 <= float(made.min()) < float(made.max()) <= 50


@pytest.mark.parametrize(
    "name", ["out.tif", "out.png", "out.nc", "memory://bucket/out.TIF", "a.zarr.x"]
)
def test_images_are_written_as_zarr_alone(source: str, models: None, name: str) -> None:
    given = ("--func", "mymodels:same", *SIZE, "--quiet")
    for result in (
        run("map", source, name, *given),
        run("map", source, "out.zarr", *given, "--materialize", name),
        run("extract", source, name, *SIZE),
    ):
        assert result.exit_code == 2
        assert f"must end with .zarr or have no suffix, got {name!r}; write " in result.stderr
    assert {path.name for path in Path().iterdir()} == {"mymodels.py"}


def test_what_is_zarr_already_may_have_any_name(source: str, models: None) -> None:
    zarr.open_group("tiles.v2", mode="w")
    result = run("extract", source, "tiles.v2", *SIZE, "--quiet", "--overwrite")
    assert result.exit_code == 0, result.output


def test_show_draws_images_that_were_mapped(
    tmp_path: Path, models: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    cube = xr.DataArray(
        np.arange(2 * 60 * 40, dtype="f4").reshape(2, 60, 40),
        {"time": np.array(["2024-05-01T10:30", "2024-06-01"], "M8[ns]")},
        ("time", "y", "x"),
        "cube",
    )
    cube.to_dataset().to_zarr("cube.zarr", consolidated=False)
    given = ("--func", "mymodels:same", "--size", "y=20,x=20", "--quiet")
    assert run("map", "cube.zarr", "out.zarr", *given).exit_code == 0
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "draw_image", lambda image, *_: drawn.append(image))
    shown = ("show", "out.zarr", "-o", "a.png", "--json")
    told = json.loads(run(*shown, "--sel", "time=2024-06-02").stdout)
    assert (told["chosen"], told["steps"]) == ({"time": "2024-06-01"}, {"y": 1, "x": 1})
    np.testing.assert_array_equal(drawn[-1], cube[1])
    monkeypatch.setattr(pictures, "READ", 4 * 20 * 14)  # every third sample
    told = json.loads(run(*shown, "--isel", "time=0").stdout)
    assert told["steps"] == {"y": 3, "x": 3}
    np.testing.assert_array_equal(drawn[-1], cube[0, ::3, ::3])
    monkeypatch.undo()
    assert run("show", tmp_path / "out.zarr", "-o", tmp_path / "a.png").exit_code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    result = run("show", tmp_path / "out.zarr", "-o", tmp_path / "a.png", "--isel", "y=0")
    assert "two of the dims ('y', 'x') are drawn, ('x',) are left" in result.stderr


def test_show_refuses_what_a_model_made_of_single_patches(source: str, models: None) -> None:
    runs = ("--materialize", "runs.zarr")
    result = run("map", source, "out.zarr", "--func", "mymodels:brighter", *MAP, *runs)
    assert result.exit_code == 0, result.output
    result = run("show", "runs.zarr", "-o", "a.png")
    assert (result.exit_code, "what a model made of single patches" in result.stderr) == (2, True)


def test_titles_are_short_and_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    titles: list[str] = []
    monkeypatch.setattr(
        figures.Figure, "savefig", lambda self, *_, **__: titles.append(self.axes[0].get_title())
    )
    image = xr.DataArray(
        np.zeros((2, 3, 3)),
        {
            "time": np.array(["2024-05-01T10:30", "2024-06-01"], "M8[ns]"),
            "y": [5123456.785, 5123446.785, 5123436.785],
            "x": [0.1 + 0.2, 1.3, 2.3],
            "gain": np.float32(0.1),
            "spatial_ref": ((), 0, {"crs_wkt": "..."}),
            "platform": "a satellite " * 9,
        },
        ("time", "y", "x"),
        "image",
    )
    patches = image.patches(y=1, x=1).extract()
    patch, chosen = pictures.choose(patches, {"time": "2024-05-01"}, {"y": 0, "x": 0})
    pictures.draw(patch, chosen, "a.png")
    first, *rest = titles[0].split("\n")
    assert first == "y 5123456.79,  x 0.3,  time 2024-05-01 10:30,  gain 0.1"
    assert len(rest) == 1
    assert rest[0].startswith("platform a satellite a satellite")
    assert rest[0].endswith(" ...")
    assert len(rest[0]) <= 56


def test_patches_are_labelled_by_what_label_says(source: str, tmp_path: Path) -> None:
    result = run("extract", source, tmp_path / "out", *SIZE[:-1], "valid", "--label", "origin")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(opened(tmp_path / "out").x, np.arange(0.0, 81.0, 8.0))


@pytest.mark.parametrize(
    ("given", "missing"), [((), False), (("--skipna",), False), (("--no-skipna",), True)]
)
def test_missing_samples_count_for_nothing_unless_told_otherwise(
    source: str, models: None, given: Any, missing: bool
) -> None:
    Path("holes.py").write_text(
        "import numpy as np\n"
        "def drop_first(batch):\n"
        "    made = batch.astype('f4')\n"
        "    made[batch.shape[0] - 1] = np.nan\n"
        "    return made\n"
    )
    how = ("--func", "holes:drop_first", *MAP, "--batch-size", "96", *given)
    result = run("map", source, "out.zarr", *how)
    assert result.exit_code == 0, result.output
    # Of the last patch, which reaches into its neighbours, these lie in others as well.
    assert bool(np.isnan(opened("out.zarr").values[-9:-5, -9:-5]).all()) == missing


def test_errors_name_what_is_typed(source: str, models: None) -> None:
    for given, message in (
        ((), "--reduce must be given for uint16"),
        ((), "or --taper crop, for labels"),
        (("--reduce", "max", "--taper", "hann"), "taper is for --reduce mean, got --reduce max"),
    ):
        result = run("map", source, "out.zarr", "--func", "mymodels:same", *SIZE, *given)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    uncovered = ("--size", "y=48,x=48", "--reduce", "first", "--var", "image")
    result = run("map", source, "out.zarr", "--func", "mymodels:same", *uncovered)
    assert "uint16 has no missing value; give --fill-value, or" in result.stderr
    wrong: tuple[tuple[Any, str], ...] = (
        (("--size", "y=900,x=4", "--padding", "valid"), "xpatches: --size on 'y' is too large"),
        (("--chunks", "y=0"), "xpatches: --chunks on 'y' must be >= 1, or -1 for all"),
    )
    for options, message in wrong:
        result = run("extract", source, "out.zarr", *SIZE, *options)
        assert (result.exit_code, message in result.stderr) == (2, True), result.output


REDUCE = ("--how", "mean", "--ignore-padding", "--min-count", "9", *SIZE)


def test_reduce_writes_what_the_library_reduces(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    dry = run("reduce", source, out, *REDUCE, "--dry-run", "--json")
    assert not out.exists()
    plan = json.loads(dry.stdout)
    assert (plan["patches"], plan["dims"], plan["tasks"]) == (96, {"y": 8, "x": 12}, 1)
    assert plan["missing"] is None
    result = run("reduce", source, out, *REDUCE, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["state"], told["layout"], told["holds"]) == (
        "complete",
        "reduced",
        "reductions of patches",
    )
    image = xr.open_zarr(source, consolidated=False).image
    p = image.patches(y=16, x=16, stride=8, padding="same")
    expected = p.reduce("mean", ignore_padding=True, min_count=9)
    xr.testing.assert_identical(xpatches.open_patches(out).compute(), expected.compute())
    again = run("reduce", source, out, *REDUCE)
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
    assert run("reduce", source, out, *REDUCE, "--resume", "--quiet").output == ""
    other = run("reduce", source, out, *REDUCE, "--resume", "--min-count", "8")
    assert (other.exit_code, "reduce.image.min_count, stored 9" in other.stderr) == (2, True)
    assert run("verify", out, "--quiet").exit_code == 0


def test_errors_of_reduce(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    for given, message in (
        (("--how", "mode"), "Invalid value for '--how'"),
        (("--how", "median", "--min-count", "3"), "--min-count is not for --how median of uint16"),
        (("--max-bytes", "9"), "--max-bytes must be >= "),
    ):
        result = run("reduce", source, out, *REDUCE[3:], *SIZE, "--how", "mean", *given)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    assert not out.exists()


def test_show_draws_reductions(source: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "out.zarr", tmp_path / "a.png"
    assert run("reduce", source, out, *REDUCE, "--quiet").exit_code == 0
    assert run("show", out, "-o", picture).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
