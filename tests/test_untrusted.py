"""What comes from a store is data: nothing in it does more than refuse to be opened."""

import json
import resource
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import xpatches
from xpatches.documents import TEXT, Unfit, parse
from xpatches.errors import PatchError
from xpatches.spec import read_spec
from xpatches.store import JOB

QUIET: dict[str, Any] = {"progress": False}


def image_of(n: int = 6) -> xr.DataArray:
    labels = {"y": np.arange(float(n)), "x": np.arange(n), "crs": 7}
    return xr.DataArray(np.arange(n * n, dtype="u2").reshape(n, n), labels, ("y", "x"), "image")


def spec_of(**changes: Any) -> dict[str, str]:
    """Attrs with a spec, some of which is replaced; ``...`` removes."""
    spec = json.loads(image_of().patches(y=3, x=3).extract().attrs["xpatches"])
    spec = {key: value for key, value in {**spec, **changes}.items() if value is not ...}
    return {"xpatches": json.dumps(spec)}


AXIS = {"dim": "y", "length": 6, "size": 3, "stride": 3, "rate": 1, "padding": "valid"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": True}, "version must be an integer from 0 to .*, got True"),
        ({"version": ...}, "it must be an object with a version"),
        ({"dims": "yx"}, "dims must be a list of 0 to 64, got 'yx'"),
        ({"dims": ["y", ["x"]]}, r"dims\[1\] must be text of at most 1024 characters, got \['x'\]"),
        ({"dims": ["y", "x", "y"]}, "dims must be different from each other"),
        ({"dims": ["y"]}, r"dims of axes must be among the dims \['y'\]"),
        ({"dims": ["\ud800", "y", "x"]}, r"dims\[0\] must be Unicode"),
        ({"axes": [{**AXIS, "length": 10**30}]}, r"axes\[0\].length must be an integer .* got 1000"),
        ({"axes": [{**AXIS, "size": 0}]}, "size on 'y' must be >= 1, got 0"),
        ({"axes": [{**AXIS, "size": 2.0}]}, r"axes\[0\].size must be an integer .* got 2.0"),
        ({"axes": [{**AXIS, "shape": 1}]}, r"axes\[0\] has the unknown keys 'shape'"),
        ({"axes": [{"dim": "y"}]}, r"axes\[0\] lacks 'length', 'size', 'stride', 'rate'"),
        ({"axes": [{**AXIS, "padding": [1]}]}, r"axes\[0\].padding must be a list of 2, got \[1\]"),
        ({"axes": [{**AXIS, "size": 1 << 40, "rate": 1 << 40}]}, "effective size on 'y' must be at"),
        (
            {"axes": [{**AXIS, "dim": dim, "length": 1 << 40} for dim in "yx"]},
            "samples of the image must be at most",
        ),
        ({"label": "middle"}, "label must be one of 'center', 'origin', got 'middle'"),
        ({"layout": None}, "layout must be one of 'grid', 'samples', got None"),
        ({"flattened": [["y", 1]] * 10**6}, "flattened must be a list of 0 to 64, got"),
        ({"flattened": [["y", 1 << 40], ["x", 1 << 40]]}, "samples of a patch must be at most"),
        ({"flattened": {"y": 3}}, "flattened must be a list of 0 to 64"),
        ({"even": [["y", "O"]]}, r"even\[0\]\[1\] must be the name of a NumPy dtype"),
        ({"even": [["y", "V99999999999"]]}, r"even\[0\]\[1\] must be the name of a NumPy dtype of fixed width"),
        ({"even": [["y", "U999999999"]]}, r"even\[0\]\[1\] must be the name of a NumPy dtype of fixed width"),
        ({"even": [["y", "i4,f8"]]}, r"even\[0\]\[1\] must be the name of a NumPy dtype of fixed width"),
        ({"even": [["y", "datetime64[nope]"]]}, r"even\[0\]\[1\] must be the name of a NumPy dtype"),
        ({"even": [["z", "int64"]]}, "dims of even must be among the dims"),
        ({"outer": {"version": 2}}, "outer must be text of at most"),
        ({"fill_value": [1]}, "fill_value must be text"),
        ({"colour": 1, "shape": 2}, "it has the unknown keys 'colour', 'shape'"),
    ],
)  # fmt: skip
def test_a_spec_that_is_not_as_extract_wrote_it_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PatchError, match=rf"^the attr 'xpatches' is damaged, {message}"):
        read_spec(spec_of(**changes))


@pytest.mark.parametrize(
    ("attr", "message"),
    [
        (None, "it must be text, got NoneType"),
        ({"version": 2}, "it must be text, got dict"),
        (np.arange(3), "it must be text, got ndarray"),
        ("", "it is no JSON, Expecting value"),
        ("[" * 10**6, "it must be nested at most 64 deep"),
        ('{"a":' * 10**6, "it must be nested at most 64 deep"),
        ('"' + '\\"' * 10**6 + "[" * 100, "it is no JSON, Unterminated string"),
        ('{"version": NaN}', "it holds NaN, which is no finite number"),
        ('{"version": -Infinity}', "it holds -Infinity, which is no finite number"),
        ('{"version": 1e999}', "it holds 1e999, which is no finite number"),
        ('{"version": ' + "9" * 10**5 + "}", "it is no JSON, Exceeds the limit"),
        ('{"version": 2, "version": 2}', "it has the key 'version' twice"),
        (" " * (TEXT + 1), "it must be at most 33554432 characters long, got 33554433"),
        ("2", "it must be an object with a version, got 2"),
    ],
    ids=range(14),
)
def test_a_spec_that_is_no_plain_json_is_refused(attr: Any, message: str) -> None:
    with pytest.raises(PatchError, match=f"^the attr 'xpatches' is damaged, {message}"):
        read_spec({"xpatches": attr})


def test_a_spec_of_many_dims_and_one_of_patches_of_patches_of_patches_are_read() -> None:
    dims = [f"d{number}" for number in range(12)]
    wide = xr.DataArray(np.zeros([2] * 12, "u1"), dims=dims)
    assert len(read_spec(wide.patches(dict.fromkeys(dims, 1)).extract().attrs).grid.axes) == 12
    image = made = image_of(12)
    for _ in range(4):
        made = made.patches(y=1, x=1).extract().isel(y_patch=0, x_patch=0).drop_vars(
            ["y_patch", "x_patch", "y_origin", "x_origin"]
        )  # fmt: skip
    for _ in range(4):
        made = made.expand_dims(["y_patch", "x_patch"]).patches.stitch()
    np.testing.assert_array_equal(made, image)


@given(st.text(alphabet='[]{}":\\, a1', max_size=40))
def test_depth_is_found_before_anything_recurses(text: str) -> None:
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = ...
    try:
        assert parse(text) == parsed
    except Unfit:
        assert parsed is ... or len(set(text)) > 2  # the same key twice


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -1, 0, 10**18, 1 << 62, 2**64, float("nan"), 1e308])
    | st.floats()
    | st.text()
    | st.sampled_from(
        ["O", "V99999999999", "i4,i4", "M8[ns]", "../..", "zarr.json", "image", "\0"]
    ),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places of a document, those inside of texts that are documents included."""
    yield path
    items = document.items() if isinstance(document, dict) else ()
    items = enumerate(document) if isinstance(document, list) else items
    for key, value in items:
        yield from places(value, (*path, key))


def put(document: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> None:
    """Change what a document holds at a place."""
    for key in path[:-1]:
        document = document[key]
    change(document, path[-1])


@st.composite
def tampered(draw: st.DrawFn, document: Any) -> Any:
    """A document with keys that are deleted, replaced and added."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(sorted(places(document), key=repr)))
        if not path:
            document = draw(JUNK) if draw(st.integers(0, 9)) == 0 else document
            continue
        kind = draw(st.sampled_from(["delete", "replace", "add", "replace"]))
        value = draw(JUNK)
        if kind == "delete":
            put(document, path, lambda of, key: of.pop(key))
        elif kind == "replace":
            put(document, path, partial(_set, value))
        else:
            put(document, path, partial(_add, value, draw(st.text())))
        if not isinstance(document, dict | list):
            break
    return document


def _set(value: Any, document: Any, key: Any) -> None:
    document[key] = value


def _add(value: Any, name: str, document: Any, key: Any) -> None:
    if isinstance(document[key], dict):
        document[key][name] = value
    elif isinstance(document[key], list):
        document[key].append(value)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Datasets of every kind: patches, an image, of a DataArray and of a Dataset, and one begun."""
    folder = tmp_path_factory.mktemp("written")
    image = image_of().assign_coords(time=("y", np.arange(6).astype("M8[D]").astype("M8[ns]")))
    patches = image.patches(y=3, x=3)
    patches.to_zarr(folder / "grid", **QUIET)
    patches.to_zarr(folder / "samples", layout="samples", **QUIET)
    patches.map(np.copy, store=folder / "map", **QUIET)
    both = xr.Dataset({"a": image, "b": image.astype("f4"), "words": ("x", [*"abcdef"])})
    with warnings.catch_warnings(action="ignore"):  # of text among the variables
        both.patches(y=3, x=3).to_zarr(folder / "dataset", **QUIET)
    shutil.copytree(folder / "grid", folder / "begun")
    (folder / f"begun/{JOB}/blocks/image").mkdir(parents=True)
    (folder / f"begun/{JOB}/ready").touch()
    return {path.name: path for path in folder.iterdir()}


def opens_or_refuses(store: Path, kind: str) -> None:
    sizes = xpatches.open_patches(store.parent / kind).sizes
    with warnings.catch_warnings(action="ignore"):
        for chunks in (None, {}):
            try:
                opened = xpatches.open_patches(store, chunks=chunks)
            except PatchError as error:
                assert len(str(error)) < 3000
                continue
            assert isinstance(opened, xr.DataArray | xr.Dataset)
            repr(opened)
            assert opened.sizes.items() <= sizes.items() or store.name == "array"


KINDS = ["grid", "samples", "map", "dataset"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_description_that_was_tampered_with_opens_or_is_refused(
    kind: str, data: st.DataObject, written: dict[str, Path]
) -> None:
    store = written[kind].parent / "tampered"
    shutil.copytree(written[kind], store)
    try:
        root = json.loads((store / "zarr.json").read_bytes())
        job = data.draw(tampered(json.loads(root["attributes"][JOB])))
        root["attributes"][JOB] = json.dumps(job) if data.draw(st.integers(0, 9)) else job
        (store / "zarr.json").write_text(json.dumps(root))
        opens_or_refuses(store, kind)
    finally:
        shutil.rmtree(store)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_metadata_that_were_tampered_with_open_or_are_refused(
    kind: str, data: st.DataObject, written: dict[str, Path]
) -> None:
    store = written[kind].parent / "array"
    shutil.copytree(written[kind], store)
    try:
        names = sorted(store.rglob("zarr.json"))
        path = data.draw(st.sampled_from(names))
        if data.draw(st.integers(0, 3)):
            path.write_text(json.dumps(data.draw(tampered(json.loads(path.read_bytes())))))
        else:
            path.write_bytes(data.draw(st.binary()))
        opens_or_refuses(store, kind)
    finally:
        shutil.rmtree(store)
