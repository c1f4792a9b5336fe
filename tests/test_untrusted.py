"""What comes from a store is data: nothing in it does more than refuse to be opened."""

import contextlib
import json
import shutil
import subprocess
import sys
import textwrap
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import ZstdCodec

import xpatches
from xpatches.cli.main import main
from xpatches.documents import TEXT, Unfit, parse
from xpatches.errors import PatchError
from xpatches.images.spec import read_spec
from xpatches.jobs.blocks import mark_in
from xpatches.jobs.folder import JOB

QUIET: dict[str, Any] = {"progress": False}


def image_of(n: int = 6) -> xr.DataArray:
    labels = {"y": np.arange(float(n)), "x": np.arange(n), "crs": 7}
    return xr.DataArray(np.arange(n * n, dtype="u2").reshape(n, n), labels, ("y", "x"), "image")


def spec_of(**changes: Any) -> dict[str, str]:
    """Attrs with a spec, some of which is replaced; ``...`` removes."""
    spec = json.loads(image_of().patches(y=3, x=3).extract().attrs["xpatches"])
    spec = {key: value for key, value in {**spec, **changes}.items() if value is not ...}
    return {"xpatches": json.dumps(spec)}


NAME = r"even\[0\]\[1\] must be the name of a NumPy dtype of fixed width"
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
        ({"axes": [{**AXIS, "length": 10**30}]}, r"axes\[0\].length must be an integer .* got 1"),
        ({"axes": [{**AXIS, "size": 0}]}, "size on 'y' must be >= 1, got 0"),
        ({"axes": [{**AXIS, "size": 2.0}]}, r"axes\[0\].size must be an integer .* got 2.0"),
        ({"axes": [{**AXIS, "shape": 1}]}, r"axes\[0\] has the unknown keys 'shape'"),
        ({"axes": [{"dim": "y"}]}, r"axes\[0\] lacks 'length', 'size', 'stride', 'rate'"),
        ({"axes": [{**AXIS, "padding": [1]}]}, r"axes\[0\].padding must be a list of 2, got"),
        ({"axes": [{**AXIS, "size": 1 << 40, "rate": 1 << 40}]}, "effective size on 'y' must be"),
        (
            {"axes": [{**AXIS, "dim": dim, "length": 1 << 40} for dim in "yx"]},
            "samples of the image must be at most",
        ),
        ({"label": "middle"}, "label must be one of 'center', 'origin', got 'middle'"),
        ({"layout": None}, "layout must be one of 'grid', 'samples', got None"),
        ({"flattened": [["y", 1]] * 10**6}, "flattened must be a list of 0 to 64, got"),
        ({"flattened": [["y", 1 << 40], ["x", 1 << 40]]}, "samples of a patch must be at most"),
        ({"flattened": {"y": 3}}, "flattened must be a list of 0 to 64"),
        ({"even": [["y", "O"]]}, NAME),
        ({"even": [["y", "V99999999999"]]}, NAME),
        ({"even": [["y", "U999999999"]]}, NAME),
        ({"even": [["y", "i4,f8"]]}, NAME),
        ({"even": [["y", "datetime64[nope]"]]}, NAME),
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
    """All places of a document."""
    yield path
    if isinstance(document, dict):
        pairs = [*document.items()]
    else:
        pairs = [*enumerate(document)] if isinstance(document, list) else []
    for key, value in pairs:
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


def timed() -> xr.DataArray:
    times = np.arange(6).astype("M8[D]").astype("M8[ns]")
    return image_of().assign_coords(time=("y", times))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Datasets of every kind: patches, an image, of a DataArray and of a Dataset, and one begun."""
    folder = tmp_path_factory.mktemp("written")
    image = timed()
    patches = image.patches(y=3, x=3)
    patches.to_zarr(folder / "grid", **QUIET)
    patches.to_zarr(folder / "samples", layout="samples", **QUIET)
    patches.map_to_zarr(folder / "map", np.copy, **QUIET)
    both = xr.Dataset({"a": image, "b": image.astype("f4"), "words": ("x", [*"abcdef"])})
    with warnings.catch_warnings(action="ignore"):  # of text among the variables
        both.patches(y=3, x=3).to_zarr(folder / "dataset", **QUIET)
    begun = folder / "begun"
    shutil.copytree(folder / "grid", begun)
    root = json.loads((begun / "zarr.json").read_bytes())
    job = {**json.loads(root["attributes"][JOB]), "complete": False}
    root["attributes"][JOB] = json.dumps(job, sort_keys=True)
    (begun / "zarr.json").write_text(json.dumps(root))
    (begun / JOB / "blocks/image").mkdir(parents=True)
    (begun / JOB / "ready").write_text('{"runs": [], "repair": false}')
    return {path.name: path for path in folder.iterdir()}


def opens_or_refuses(store: Path, kind: str) -> None:
    sizes = xpatches.open_patches(store.parent / kind).sizes
    with warnings.catch_warnings(action="ignore"):
        for how in ({"chunks": None}, {}):
            try:
                opened = xpatches.open_patches(store, **how)
            except PatchError:
                continue
            assert isinstance(opened, xr.DataArray | xr.Dataset)
            repr(opened)
            assert opened.sizes.items() <= sizes.items() or store.name == "array"


@contextlib.contextmanager
def copied(store: Path, name: str) -> Iterator[Path]:
    """Copy a store for one example."""
    copy = store.parent / name
    shutil.copytree(store, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


KINDS = ["grid", "samples", "map", "dataset"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_description_that_was_tampered_with_opens_or_is_refused(
    kind: str, data: st.DataObject, written: dict[str, Path]
) -> None:
    with copied(written[kind], "tampered") as store:
        root = json.loads((store / "zarr.json").read_bytes())
        job = data.draw(tampered(json.loads(root["attributes"][JOB])))
        root["attributes"][JOB] = json.dumps(job) if data.draw(st.integers(0, 9)) else job
        (store / "zarr.json").write_text(json.dumps(root))
        opens_or_refuses(store, kind)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_metadata_that_were_tampered_with_open_or_are_refused(
    kind: str, data: st.DataObject, written: dict[str, Path]
) -> None:
    with copied(written[kind], "array") as store:
        names = sorted(store.rglob("zarr.json"))
        path = data.draw(st.sampled_from(names))
        if data.draw(st.integers(0, 3)):
            path.write_text(json.dumps(data.draw(tampered(json.loads(path.read_bytes())))))
        else:
            path.write_bytes(data.draw(st.binary()))
        opens_or_refuses(store, kind)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 4}, "is a patch dataset of version 4, this xpatches reads 5; write it anew"),
        ({"layout": "images"}, "damaged, layout must be one of 'grid', 'samples', 'image', 'runs'"),
        ({"layout": "runs"}, "damaged, the layout 'runs' needs a map"),
        ({"map": {}}, "damaged, the layout 'grid' has no map"),
        (
            {"blocks": {"image": {"count": 10**30, "shape": [1]}}},
            r"damaged, blocks.image.count must be an integer from 0 to 281474976710656, got 10000",
        ),
        ({"blocks": {}}, "damaged, blocks must be an object of at least 1, got {}"),
        (
            {"blocks": {"../a": {"count": 1, "shape": []}}},
            "damaged, a key of blocks must be",
        ),
        (
            {"array": {"stored": "y", "name": None}},
            "array.stored must be a name of blocks",
        ),
        ({"array": "image"}, "damaged, array must be an object, got 'image'"),
        ({"coords": ["y", "z"]}, "lacks 'z', which its coords name; write it anew"),
        (
            {"links": {"image": ["dtype"]}},
            r"links.image\[0\] must be one of 'grid_map",
        ),
        (
            {"dtypes": {"image": "V99999999999"}},
            "dtypes.image must be the name of a NumPy",
        ),
        ({"checksums": {"image/0": 2**32}}, "damaged, checksums.image/0 must be an integer from 0"),
        ({"colour": 1}, "damaged, it has the unknown keys 'colour'"),
        ({"source": ...}, "damaged, it lacks 'source'"),
    ],
)
def test_a_description_says_what_is_wrong_with_it(
    changes: dict[str, Any], message: str, written: dict[str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "out"
    shutil.copytree(written["grid"], store)
    root = json.loads((store / "zarr.json").read_bytes())
    job = {**json.loads(root["attributes"][JOB]), **changes}
    job = {key: value for key, value in job.items() if value is not ...}
    root["attributes"][JOB] = json.dumps(job)
    (store / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(PatchError, match=message) as raised:
        xpatches.open_patches(store)
    assert str(store) in str(raised.value)
    with pytest.raises(PatchError):
        image_of().patches(y=3, x=3).to_zarr(store, resume=True, **QUIET)


@pytest.mark.parametrize("mark", ["image/" + "9" * 200, "image/01", "image/-1", "no/0"])
def test_marks_that_are_none_of_the_jobs_count_for_nothing(
    mark: str, written: dict[str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "out"
    shutil.copytree(written["begun"], store)
    path = store / JOB / "blocks" / mark
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"9" * 10**6)
    with pytest.raises(PatchError, match="is incomplete: 1 of 1 blocks are missing"):
        xpatches.open_patches(store)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10**5,
        b'{"id": 1, "host": [], "pid": -1}',
        b'{"pid": 1e999}',
        b'{"id": "' + b"a" * 32 + b'", "host": "b", "pid": 1' + b"0" * 4000 + b', "boot": 7}',
    ],
    ids=range(4),
)
def test_a_claim_that_says_nothing_sensible_is_that_of_a_dead_writer(
    content: bytes, written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xpatches.jobs.lock.LEASE", 0.01)
    store = tmp_path / "out"
    shutil.copytree(written["begun"], store)
    (store / JOB / "writer").mkdir()
    (store / JOB / "writer" / "1").write_bytes(content)
    timed().patches(y=3, x=3).to_zarr(store, resume=True, **QUIET)
    assert xpatches.open_patches(store).sizes["y"] == 2


@pytest.mark.parametrize("name", ["writer", "writer/1/2"])
def test_what_lies_where_claims_do_is_refused(
    name: str, written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xpatches.jobs.lock.LEASE", 0.01)
    store = tmp_path / "out"
    shutil.copytree(written["begun"], store)
    (store / JOB / name).parent.mkdir(parents=True, exist_ok=True)
    (store / JOB / name).write_text("mine")
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(PatchError, match=r"writer must be a directory|cannot be claimed"):
            image_of().patches(y=3, x=3).to_zarr(store, **how, **QUIET)
    assert (store / JOB / name).read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 10**5,
        b'{"run": "a", "checksum": 1e999, "objects": {}}',
        b'{"run": [], "checksum": 1, "objects": {}}',
        b'{"run": "a", "checksum": 1, "objects": {"../../etc/passwd": 1}}',
        b'{"run": "a", "checksum": 1, "objects": {"image/c/0": -1}}',
        b'{"run": "a", "checksum": 1, "objects": {}, "run": "b"}',
        b'{"run": "a", "checksum": 1, "objects": {}, "more": 1}',
    ],
    ids=range(8),
)
def test_a_mark_that_is_not_as_jobs_write_it_is_none(content: bytes) -> None:
    assert mark_in(content) is None


def changed(store: Path, name: str, **changes: Any) -> None:
    """Change the metadata of an array."""
    path = store / name / "zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def grid_of(*lengths: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": lengths}}


HUGE = 10**18
CRS = {"dimension_names": ["crs"], "chunk_grid": grid_of(1)}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("image", {"shape": [HUGE, 2, 3, 3]}, "conflicting sizes for dimension 'y'"),
        ("y", {"shape": [HUGE], "chunk_grid": grid_of(10**12)}, "conflicting sizes"),
        ("y", {"dimension_names": ["z"], "shape": [HUGE]}, None),
        ("image", {"chunk_grid": grid_of(*[10**12] * 4)}, None),
        ("image", {"shape": [2, 2, 3, HUGE], "dimension_names": [*"yx", "a", "b"]}, "stored objec"),
        ("image", {"chunk_grid": grid_of(0, 1, 1, 1)}, "chunks of the lengths|cannot be opened"),
        ("crs", {"shape": [HUGE], **CRS}, "labels of 8000.0 PB along"),
        ("crs", {"shape": [10**9], **CRS}, "labels of 8.0 GB along"),
        ("image", {"data_type": "float99"}, "cannot be opened"),
        ("image", {"codecs": [{"name": "nope"}]}, "cannot be opened"),
        ("image", {"attributes": {"_FillValue": [[]], "scale_factor": {}}}, "cannot be opened"),
    ],
)
def test_arrays_of_any_size_are_opened_lazily_or_refused(
    name: str, changes: dict[str, Any], message: str | None, written: dict[str, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    store = tmp_path / "out"
    shutil.copytree(written["grid"], store)
    changed(store, name, **changes)
    tracemalloc.start()
    try:
        opened: Any = xpatches.open_patches(store)
    except PatchError as error:
        opened = error
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24
    if message is None:
        assert isinstance(opened, xr.DataArray)
    else:
        assert any(part in str(opened) for part in message.split("|"))


def frame(nbytes: int, *, told: bool = True, content: bool = True) -> bytes:
    """A zstd frame of zeros that says how many, or does not, and holds them, or does not."""
    header = b"\xe0" + nbytes.to_bytes(8, "little") if told else b"\x00\x38"
    block = min(nbytes, 1 << 17) << 3 | 1 << 1
    blocks = [block] * max(1, nbytes >> 17) if content else []
    last = (blocks or [0])[-1] | 1
    body = b"".join(b.to_bytes(3, "little") + b"\0" for b in blocks[:-1])
    return b"\x28\xb5\x2f\xfd" + header + body + last.to_bytes(3, "little") + b"\0" * bool(blocks)


def with_chunk(store: Path, codec: Any, content: bytes) -> None:
    """Write a dataset of one chunk, and put something else in its place."""
    encoding = {"image": {"compressors": [codec]}}
    plain: dict[str, Any] = {"shards": False, "checksums": False, **QUIET}
    image_of().patches(y=3, x=3).to_zarr(store, encoding=encoding, **plain)
    chunks = [path for path in (store / "image/c").rglob("*") if path.is_file()]
    assert len(chunks) == 1
    chunks[0].write_bytes(content)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("nbytes", [4, 1 << 17, 1 << 22])
def test_a_chunk_that_decodes_to_another_size_is_an_error(
    told: bool, nbytes: int, tmp_path: Path
) -> None:
    with_chunk(tmp_path / "out", ZstdCodec(), frame(nbytes, told=told))
    with pytest.raises(ValueError, match="reshape"):
        xpatches.open_patches(tmp_path / "out", chunks=None).load()


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize(
    "content", [frame(8 << 30, content=False), frame(8 << 30), frame(1 << 31, told=False)],
    ids=["a size alone", "zstd", "zstd of a size that is not told"],
)  # fmt: skip
def test_a_limit_of_memory_holds_for_what_a_chunk_decodes_to(
    content: bytes, tmp_path: Path
) -> None:
    with_chunk(tmp_path / "out", ZstdCodec(), content)
    code = """
        import resource, sys
        import xpatches
        opened = xpatches.open_patches(sys.argv[1], chunks=None)
        opened[:, :, 0, 0].load  # what is imported for this is
        held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30), held + (1 << 30)))
        try:
            opened.load()
        except (MemoryError, RuntimeError) as error:
            print("refused")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert ended.stdout == "refused\n"


@pytest.mark.parametrize("chunks", [None, {}], ids=["memory", "dask"])
@pytest.mark.parametrize("flatten", [None, "patch"])
@given(data=st.data())
@settings(max_examples=60)
def test_a_spec_that_was_tampered_with_stitches_or_is_refused(
    flatten: Any, chunks: Any, data: st.DataObject
) -> None:
    patches = image_of().patches(y=3, x=3, stride=2).extract(flatten=flatten)
    spec = data.draw(tampered(json.loads(patches.attrs["xpatches"])))
    patches.attrs["xpatches"] = json.dumps(spec)
    patches = patches if chunks is None else patches.chunk(chunks)
    drop = data.draw(st.sets(st.sampled_from([*patches.coords])))
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(PatchError):
        patches.drop_vars(drop).patches.stitch(reduce="first").compute()


def test_an_image_that_is_much_larger_than_its_patches_is_no_ones_word_alone() -> None:
    axes = [{**AXIS, "dim": dim, "length": 10**5} for dim in "yx"]
    patches = image_of().patches(y=3, x=3).extract()
    patches.attrs.update(spec_of(axes=axes))
    for either in (patches, patches.chunk()):
        with pytest.raises(PatchError, match=r"like must be given for an image of 20.0 GB f"):
            either.patches.stitch()
    sparse = xr.DataArray(np.zeros(10**5, "u1"), dims="x").chunk(x=10**4)
    assert sparse.patches(x=1, stride=10**4).extract().patches.stitch(fill_value=0).sizes == {
        "x": 10**5
    }


def test_names_in_a_store_do_not_steer_a_terminal(tmp_path: Path) -> None:
    name = "\x1b[2J\x07image"
    image_of().rename(name).patches(y=3, x=3).to_zarr(tmp_path / "out", **QUIET)
    for arguments in (["info", str(tmp_path / "out")], ["info", f"{tmp_path}/\x1b[2J"]):
        ended = CliRunner().invoke(main, arguments, color=True)
        assert r"\x1b[2J" in ended.output
        assert "\x1b" not in ended.output


@pytest.mark.parametrize(
    "content",
    [
        b'{"zarr_format": 3, "node_type": "group", "attributes": 5}',
        b'{"zarr_format": 3}',
        b'{"zarr_format": 3, "node_type": "array", "shape": "x"}',
        b'{"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"multiscales": [7]}}}',
    ],
    ids=range(4),
)
def test_an_image_that_is_no_zarr_is_one_line_and_wrong_usage(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_bytes(content)
    ended = CliRunner().invoke(main, ["info", str(tmp_path / "a.zarr")])
    assert (ended.exit_code, ended.output.count("\n")) == (2, 1)
    assert "--debug" not in ended.output
