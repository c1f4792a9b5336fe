import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import LocalStore

import xpatches
from stores import FailingStore, files
from xpatches.errors import JobError, PatchError
from xpatches.jobs import blocks
from xpatches.jobs import job as jobs
from xpatches.jobs.folder import JOB

QUIET: dict[str, Any] = {"progress": False}


def image_of(length: int = 60, dtype: str = "uint16") -> xr.DataArray:
    samples = np.random.default_rng(0).integers(0, 999, (length, length + 10)).astype(dtype)
    coords = {
        "y": np.linspace(50, 40, length),
        "x": np.linspace(0, 9, length + 10),
        "lat": (("y", "x"), np.random.default_rng(1).random((length, length + 10))),
    }
    return xr.DataArray(samples, coords, ("y", "x"), "image", {"units": "K"})


def patches_of(image: Any, **given: Any) -> Any:
    return image.patches(**{"y": 8, "x": 8, "stride": 4, "padding": "same", **given})


pytestmark = pytest.mark.usefixtures("single_objects")

# Small stored objects: many blocks.
SMALL: dict[str, Any] = {"chunks": {"y": 2, "x": 2}, "shards": {"y": 4, "x": 4}}


def test_the_dataset_is_what_extract_gives(tmp_path: Path) -> None:
    p = patches_of(image_of())
    made = p.to_zarr(tmp_path / "out.zarr", **SMALL, **QUIET)
    assert made.chunks is not None
    xr.testing.assert_identical(made.compute(), p.extract())
    assert JOB not in made.attrs
    assert not [name for name in files(tmp_path) if JOB in name]


def test_samples_lie_along_one_dim_with_their_labels(tmp_path: Path) -> None:
    p = patches_of(image_of())
    made = p.to_zarr(tmp_path / "out.zarr", layout="samples", **QUIET).compute()
    assert made.dims == ("sample", "y_patch", "x_patch")
    assert made.sizes["sample"] == len(p)
    for i in (0, 17, len(p) - 1):
        patch, sample = p[i], made[i]
        np.testing.assert_array_equal(sample, patch)
        assert sample.y_origin == patch.y_index[0]
        assert sample.x_origin == patch.x_index[0]
        center = p.extract().stack(s=("y", "x")).isel(s=i)
        for name in ("y", "x", "lat"):
            assert sample[name] == center[name]


@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_a_dataset_of_several_variables(tmp_path: Path, layout: str) -> None:
    image = image_of()
    cube = xr.DataArray(
        np.arange(3 * 60 * 70 * 2).reshape(3, 60, 70, 2), dims=("time", "y", "x", "band")
    )
    dataset = xr.Dataset(
        {"image": image, "cube": cube, "table": ("n", [1, 2])}, attrs={"title": "t"}
    )
    p = patches_of(dataset)
    made = p.to_zarr(tmp_path / "out.zarr", layout=layout, **QUIET).compute()
    if layout == "grid":
        xr.testing.assert_identical(made, p.extract())
        return
    assert made.cube.dims == ("sample", "y_patch", "x_patch", "time", "band")
    whole = p.extract().cube.transpose("y", "x", "y_patch", "x_patch", "time", "band")
    np.testing.assert_array_equal(made.cube, whole.values.reshape(made.cube.shape))
    assert made.attrs == dataset.attrs
    assert made.table.values.tolist() == [1, 2]


DTYPES = ["?", "i1", "u8", "f2", "f8", "c8", "M8[ns]", "M8[s]", "m8[ms]", ">i2"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    from strategies import image_of as bits_of

    image = xr.DataArray(bits_of((9, 11), dtype, 3), dims=("y", "x"))
    p = image.patches(y=4, x=4, stride=3, padding="same")
    made = p.to_zarr(tmp_path / "out.zarr", **QUIET)
    assert made.dtype == image.dtype.newbyteorder("=")
    assert made.values.tobytes() == p.extract().values.astype(made.dtype).tobytes()


def test_patches_that_look_like_nothing_are_written_bit_for_bit(tmp_path: Path) -> None:
    missing = np.full((8, 8), 0x7FC01234, "u4").view("f4")  # NaN, but not the usual one
    for name, samples in {"zeros": np.zeros((8, 8), "u1"), "missing": missing}.items():
        p = xr.DataArray(samples, dims=("y", "x"), name="image").patches(y=4, x=4)
        made = p.to_zarr(tmp_path / name, chunks={"y": 1, "x": 1}, shards=False, **QUIET)
        assert made.values.tobytes() == p.extract().values.tobytes()
        assert len([key for key in files(tmp_path / name) if key.startswith("image/c/")]) == 4


def test_images_in_memory_opened_and_computed_give_the_same_objects(tmp_path: Path) -> None:
    image = image_of()
    image.chunk(y=16, x=16).to_dataset().to_zarr(tmp_path / "image.zarr", consolidated=False)
    ways: list[dict[str, int] | None] = [None, {}]
    stored = {
        str(chunks): xr.open_zarr(tmp_path / "image.zarr", chunks=chunks, consolidated=False).image
        for chunks in ways
    }
    sources = {"memory": image, **stored, "computed": stored["{}"] + np.uint16(0)}
    sources["computed"].attrs = image.attrs
    found = {}
    for name, source in sources.items():
        source = source.compute() if name == "none" else source
        patches_of(source).to_zarr(tmp_path / name, **SMALL, **QUIET)
        found[name] = files(tmp_path / name)
    assert all(of == found["memory"] for of in found.values())


def test_what_fails_is_reported_and_the_rest_is_done(
    tmp_path: Path, failing: type[FailingStore]
) -> None:
    p = patches_of(image_of())
    p.to_zarr(tmp_path / "peace.zarr", **SMALL, **QUIET)
    failing.refuse = staticmethod(lambda key: "/c/1/2/" in key or "/c/0/3/" in key)
    store = failing(tmp_path / "out.zarr")
    with pytest.raises(JobError) as caught:
        p.to_zarr(store, **SMALL, **QUIET)
    error = caught.value
    assert [failure.block for failure in error.failures] == [3, 7]
    assert error.blocks == 20
    assert str(error).splitlines()[0].startswith("2 of 20 blocks of store ")
    assert "'image', patches y=4:8, x=8:12 from samples y=14:34, x=29:49" in str(error)
    assert "OSError: [Errno 28] No space left on device" in str(error)
    with pytest.raises(PatchError, match="is incomplete: 2 of 20 blocks are missing"):
        xpatches.open_patches(tmp_path / "out.zarr")

    failing.refuse = staticmethod(lambda key: False)
    failing.written.clear()
    p.to_zarr(store, **SMALL, **QUIET, resume=True)
    assert sorted(key for key in failing.written if "/c/" in key) == [
        "image/c/0/3/0/0",
        "image/c/1/2/0/0",
    ]
    assert files(tmp_path / "out.zarr") == files(tmp_path / "peace.zarr")


def test_a_block_is_tried_again(tmp_path: Path, failing: type[FailingStore]) -> None:
    tries: list[str] = []

    def refuse(key: str) -> bool:
        tries.append(key)
        return "/c/1/1" in key and tries.count(key) <= 2

    failing.refuse = staticmethod(refuse)
    p = patches_of(image_of())
    p.to_zarr(failing(tmp_path / "out.zarr"), **SMALL, **QUIET)
    assert tries.count("image/c/1/1/0/0") == 3
    failing.refuse = staticmethod(lambda key: "/c/1/1" in key)
    with pytest.raises(JobError, match=r"^1 of 20 blocks"):
        p.to_zarr(failing(tmp_path / "other.zarr"), **SMALL, **QUIET, retries=0)


def test_an_existing_store_is_not_touched(tmp_path: Path) -> None:
    p = patches_of(image_of())
    out = tmp_path / "out.zarr"
    p.to_zarr(out, **QUIET)
    before = files(out)
    with pytest.raises(PatchError, match="exists already, a patch dataset; resume=True finishes"):
        p.to_zarr(out, **QUIET)
    p.to_zarr(out, **QUIET, resume=True)  # nothing is left to do
    assert files(out) == before
    with pytest.raises(PatchError, match="exclude each other"):
        p.to_zarr(out, **QUIET, resume=True, overwrite=True)

    other = patches_of(image_of() + np.uint16(1))
    other.to_zarr(out, **QUIET, overwrite=True)
    np.testing.assert_array_equal(xpatches.open_patches(out), other.extract())

    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("...")
    for overwrite in (False, True):
        with pytest.raises(PatchError, match="holds files that are no zarr"):
            p.to_zarr(tmp_path / "papers", **QUIET, overwrite=overwrite)
    assert files(tmp_path / "papers") == {"thesis.tex": b"..."}

    image_of().to_dataset().to_zarr(tmp_path / "image.zarr", consolidated=False)
    before = files(tmp_path / "image.zarr")
    with pytest.raises(PatchError, match="exists already, a zarr store"):
        p.to_zarr(tmp_path / "image.zarr", **QUIET)
    with pytest.raises(PatchError, match="holds no patch dataset that could be resumed"):
        p.to_zarr(tmp_path / "image.zarr", **QUIET, resume=True)
    assert files(tmp_path / "image.zarr") == before


@pytest.mark.parametrize("chunks", [None, {}])
def test_the_image_is_never_overwritten(tmp_path: Path, chunks: Any) -> None:
    path = tmp_path / "image.zarr"
    image_of().to_dataset().to_zarr(path, consolidated=False)
    image = xr.open_zarr(path, chunks=chunks, consolidated=False).image
    before = files(path)
    for store in (path, str(path), LocalStore(path), path / "image", tmp_path):
        with pytest.raises(PatchError, match=r"is where the image lies|holds files that are no"):
            patches_of(image).to_zarr(store, **QUIET, overwrite=True)
    assert files(path) == before


def test_an_image_without_samples_is_refused(tmp_path: Path) -> None:
    image = xr.DataArray(np.zeros((0, 9, 9)), dims=("band", "y", "x"))
    with pytest.raises(PatchError, match="there is nothing to write"):
        image.patches(y=3, x=3).to_zarr(tmp_path / "out.zarr", **QUIET)
    assert not (tmp_path / "out.zarr").exists()


@pytest.fixture
def half(tmp_path: Path, failing: type[FailingStore]) -> Path:
    """A dataset of which a few blocks are missing."""
    failing.refuse = staticmethod(lambda key: "/c/1/2/" in key or "/c/4/" in key)
    with pytest.raises(JobError):
        patches_of(image_of()).to_zarr(failing(tmp_path / "out.zarr"), **SMALL, **QUIET, retries=0)
    return tmp_path / "out.zarr"


def test_another_job_is_not_resumed(half: Path) -> None:
    image, before = image_of(), files(half)

    def refused(p: Any, message: str, **given: Any) -> None:
        with pytest.raises(PatchError, match=message):
            p.to_zarr(half, **{**SMALL, **QUIET, **given}, resume=True)
        assert files(half) == before

    refused(patches_of(image, stride=2), r"axes\[0\].stride, stored 4, now 2")
    refused(patches_of(image, rate=2), r"axes\[0\].rate, stored 1, now 2")
    refused(patches_of(image, fill_value=7), r"fill_value, stored 0, now 7")
    refused(patches_of(image), r"layout, stored 'grid', now 'samples'", layout="samples", **NONE)
    refused(patches_of(image), r"chunk_shape\[1\], stored 2, now 4", chunks={"y": 2, "x": 4})
    coding = {"image": {"compressors": None}}
    refused(patches_of(image), r"codecs", encoding=coding)
    refused(patches_of(image.astype("f4")), r"dtype, stored 'uint16', now 'float32'")
    refused(patches_of(image.assign_attrs(units="C")), r"units, stored 'K', now 'C'")
    refused(patches_of(image.assign_coords(y=image.y + 1)), r"values of 'y'")
    changed = image.copy(deep=True)
    changed[0, 0] += 1
    refused(patches_of(changed), r"the image has changed: block 0 of .*, 'image', patches y=0:4")


NONE: dict[str, Any] = {"chunks": None, "shards": None}


def test_resuming_says_what_differs_and_then_finishes(half: Path, tmp_path: Path) -> None:
    p = patches_of(image_of())
    p.to_zarr(half, **SMALL, **QUIET, resume=True)
    p.to_zarr(tmp_path / "peace.zarr", **SMALL, **QUIET)
    assert files(half) == files(tmp_path / "peace.zarr")


def test_marks_that_are_torn_foreign_or_of_other_objects_say_nothing(
    half: Path, tmp_path: Path
) -> None:
    marks = sorted((half / JOB / "blocks" / "image").glob("*"))
    whole = json.loads(marks[3].read_bytes())
    foreign = json.dumps({**whole, "run": "0" * 32}).encode()
    larger = json.dumps({**whole, "objects": dict.fromkeys(whole["objects"], 1)}).encode()
    for mark, content in zip(marks, (b"", b"12", b"\0" * 10, foreign, larger), strict=False):
        mark.write_bytes(content)
    (half / JOB / "blocks" / "image" / "9999").write_bytes(b"0" * 10)
    p = patches_of(image_of())
    FailingStore.refuse = staticmethod(lambda key: False)
    written = FailingStore.written
    written.clear()
    p.to_zarr(FailingStore(half), **SMALL, **QUIET, resume=True)
    missing = 1  # see `half`
    assert len([name for name in written if "/c/" in name]) >= missing + 5
    np.testing.assert_array_equal(xpatches.open_patches(half), p.extract())


def test_a_copy_without_marks_is_incomplete(half: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(half, copy, ignore=shutil.ignore_patterns(JOB))
    with pytest.raises(PatchError, match="is incomplete: 20 of 20 blocks are missing"):
        xpatches.open_patches(copy)
    patches_of(image_of()).to_zarr(copy, **SMALL, **QUIET, resume=True)
    np.testing.assert_array_equal(xpatches.open_patches(copy), patches_of(image_of()).extract())


@pytest.mark.parametrize("harm", ["emptied", "removed"])
def test_objects_that_were_harmed_behind_their_marks_are_written_again(
    half: Path, harm: str, tmp_path: Path
) -> None:
    harmed = half / "image" / "c" / "0" / "0" / "0" / "0"
    harmed.write_bytes(b"") if harm == "emptied" else harmed.unlink()
    p = patches_of(image_of())
    p.to_zarr(half, **SMALL, **QUIET, resume=True)
    p.to_zarr(tmp_path / "peace.zarr", **SMALL, **QUIET)
    assert files(half) == files(tmp_path / "peace.zarr")


def test_samples_that_cannot_be_read_now_and_then_are_read_again(
    half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, plain = [0], blocks.Job.checksum

    def sometimes(job: blocks.Job, number: int) -> int:
        tries[0] += 1
        if tries[0] == 1:
            raise OSError("503")
        return plain(job, number)

    monkeypatch.setattr(blocks.Job, "checksum", sometimes)
    monkeypatch.setattr(jobs, "_PAUSE", 0.0)
    patches_of(image_of()).to_zarr(half, **SMALL, **QUIET, resume=True)
    assert tries[0] > 1


def test_a_job_that_lost_its_store_does_not_finish_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain = tmp_path / "out.zarr", blocks.Job.write
    monkeypatch.setattr("xpatches.jobs.lock.LEASE", 0.1)

    def lose(job: blocks.Job, number: int) -> int:
        if number == len(job) - 1:
            (out / JOB / "writer" / "2").write_text(json.dumps({"id": "0" * 32}))
        return plain(job, number)

    monkeypatch.setattr(blocks.Job, "write", lose)
    with pytest.raises(PatchError, match="is being written by someone else by now"):
        patches_of(image_of()).to_zarr(out, **SMALL, **QUIET)
    assert (out / JOB / "ready").exists()


def test_a_finished_dataset_of_another_image_is_not_taken_for_this_one(tmp_path: Path) -> None:
    image, out = image_of(), tmp_path / "out.zarr"
    patches_of(image).to_zarr(out, **SMALL, **QUIET)
    before = files(out)
    patches_of(image).to_zarr(out, **SMALL, **QUIET, resume=True)
    with pytest.raises(PatchError, match="the image has changed: block "):
        patches_of(image + np.uint16(1)).to_zarr(out, **SMALL, **QUIET, resume=True)
    assert files(out) == before


@pytest.mark.parametrize("layout", ["grid", "samples"])
@pytest.mark.parametrize("dtype", ["u2", "M8[s]", "m8[ms]"])
def test_single_samples_are_read_without_dask(tmp_path: Path, dtype: str, layout: str) -> None:
    p = patches_of(image_of().drop_attrs().astype("i8").astype(dtype))
    made = p.to_zarr(tmp_path / "out.zarr", layout=layout, **QUIET)
    opened = xpatches.open_patches(tmp_path / "out.zarr", chunks=None)
    assert opened.chunks is None
    assert opened.dtype == np.dtype(dtype)
    xr.testing.assert_identical(opened[3].load(), made[3].compute())
    chunked = xpatches.open_patches(tmp_path / "out.zarr", chunks={opened.dims[0]: 2})
    assert chunked.chunks is not None
    assert set(chunked.chunks[0][:-1]) == {2}


def test_the_second_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on, plain = threading.Event(), threading.Event(), blocks.Job.write

    def wait(job: blocks.Job, number: int) -> int:
        inside.set()
        go_on.wait(30)
        return plain(job, number)

    monkeypatch.setattr(blocks.Job, "write", wait)
    p, out = patches_of(image_of()), tmp_path / "out.zarr"
    first = threading.Thread(target=lambda: p.to_zarr(out, **SMALL, **QUIET))
    first.start()
    assert inside.wait(30)
    try:
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(PatchError, match=rf"is being written by process {os.getpid()} on "):
                p.to_zarr(out, **SMALL, **QUIET, **how)
    finally:
        go_on.set()
        first.join()
    np.testing.assert_array_equal(xpatches.open_patches(out), p.extract())


LEFT: dict[str, Any] = {"id": "0" * 32, "host": "far", "pid": 1, "boot": "another"}


@pytest.mark.parametrize("claim", [b"{torn", b"[" * 10**5, json.dumps(LEFT).encode()])
def test_who_is_silent_for_a_lease_is_dead(
    half: Path, claim: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xpatches.jobs.lock.LEASE", 0.2)
    (half / JOB / "writer").mkdir()
    (half / JOB / "writer" / "7").write_bytes(claim)
    home = half / JOB / "runs" / LEFT["id"]
    home.mkdir(parents=True)
    (home / "beat").write_bytes(b"1")
    p = patches_of(image_of())
    p.to_zarr(half, **SMALL, resume=True)
    assert "may be writing to store" in capsys.readouterr().err
    np.testing.assert_array_equal(xpatches.open_patches(half), p.extract())
    assert not (half / JOB).exists()


def test_whose_heart_beats_is_alive(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = iter(range(10**6))

    def beat(*_: Any) -> bytes:
        return b"%d" % next(beats)

    monkeypatch.setattr("xpatches.jobs.lock._beat", beat)
    (half / JOB / "writer").mkdir()
    (half / JOB / "writer" / "7").write_text(json.dumps(LEFT))
    (half / JOB / "runs" / LEFT["id"]).mkdir(parents=True)
    before = files(half)
    with pytest.raises(PatchError, match="is being written by process 1 on far; wait until"):
        patches_of(image_of()).to_zarr(half, **SMALL, **QUIET, resume=True)
    assert files(half) == before


def fields_of(order: str) -> xr.Dataset:
    """Two images that differ in their samples alone, zero in large parts, in an order."""
    samples = np.zeros((2, 60, 70), "uint16")
    samples[:, :12] = np.random.default_rng(0).integers(1, 999, (2, 12, 70))
    images = {
        name: xr.DataArray(image, dims=("y", "x"), attrs={"units": "K", "long_name": name})
        for name, image in zip("ab", samples, strict=True)
    }
    coords = {"y": np.linspace(50, 40, 60), "lat": (("y", "x"), samples[0] / 2), "when": 3}
    attrs = {"title": "t", "source": "s"}
    if order == "another":
        images = {name: images[name] for name in "ba"}
        images = {name: image.drop_attrs() for name, image in images.items()}
        for name, image in images.items():
            image.attrs = {"long_name": name, "units": "K"}
        coords = {name: coords[name] for name in ("when", "lat", "y")}
        attrs = {"source": "s", "title": "t"}
    return xr.Dataset(images, coords, attrs)


@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_a_job_goes_on_with_its_variables_in_another_order(
    tmp_path: Path, failing: type[FailingStore], layout: str
) -> None:
    how: dict[str, Any] = {"layout": layout, **(SMALL if layout == "grid" else {}), **QUIET}
    if layout == "samples":
        how |= {"chunks": {"sample": 16}, "shards": False}
    one, other = (patches_of(fields_of(order)) for order in ("one", "another"))
    one.to_zarr(tmp_path / "peace.zarr", **how)
    failing.refuse = staticmethod(lambda key: key.startswith("b/c/"))
    with pytest.raises(JobError) as caught:
        one.to_zarr(failing(tmp_path / "out.zarr"), **how, retries=0)
    half = caught.value.blocks // 2
    assert {failure.block for failure in caught.value.failures} == set(range(half, 2 * half))
    failing.refuse = staticmethod(lambda key: False)
    failing.written.clear()
    with pytest.raises(PatchError, match=rf"incomplete: {half} of {2 * half} blocks are missing"):
        xpatches.open_patches(tmp_path / "out.zarr")
    other.to_zarr(failing(tmp_path / "out.zarr"), **how, resume=True)
    assert {key.split("/")[0] for key in failing.written if "/c/" in key} == {"b"}
    assert files(tmp_path / "out.zarr") == files(tmp_path / "peace.zarr")
    other.to_zarr(tmp_path / "out.zarr", **how, resume=True)  # and nothing is left to do
    assert files(tmp_path / "out.zarr") == files(tmp_path / "peace.zarr")
    changed = fields_of("another")
    changed["b"] = changed.b + np.uint16(1)
    with pytest.raises(PatchError, match=r"the image has changed: block .*, 'b', "):
        patches_of(changed).to_zarr(tmp_path / "out.zarr", **how, resume=True)


def test_a_map_goes_on_with_its_variables_in_another_order(
    tmp_path: Path, failing: type[FailingStore]
) -> None:
    def go(order: str, store: Any, **given: Any) -> None:
        p = patches_of(fields_of(order))
        how = {"chunks": {"y": 20, "x": 20}, "shards": False, **QUIET}
        p.map_to_zarr(store, np.copy, reduce="max", taper="flat", **how, **given)

    go("one", tmp_path / "peace.zarr")
    failing.refuse = staticmethod(lambda key: key.startswith("b/c/"))
    with pytest.raises(JobError):
        go("another", failing(tmp_path / "out.zarr"), retries=0)
    failing.refuse = staticmethod(lambda key: False)
    failing.written.clear()
    go("one", failing(tmp_path / "out.zarr"), resume=True)
    assert {key.split("/")[0] for key in failing.written if "/c/" in key} == {"b"}
    made: list[Any] = [xpatches.open_patches(tmp_path / at) for at in ("peace.zarr", "out.zarr")]
    xr.testing.assert_identical(made[0].compute(), made[1].compute())


@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_an_image_whose_bands_lie_together_is_read_once(
    tmp_path: Path, counting_store: type[Any], layout: str
) -> None:
    samples = np.random.default_rng(0).integers(0, 255, (3, 512, 512)).astype("u1")
    image = xr.DataArray(samples, dims=("band", "y", "x"), name="image")
    image.chunk(band=3, y=128, x=128).to_dataset().to_zarr(tmp_path / "a", consolidated=False)
    opened = xr.open_zarr(counting_store(tmp_path / "a"), chunks=None, consolidated=False).image
    p = opened.patches(y=64, x=64)
    how: dict[str, Any] = {"layout": layout}
    if layout == "samples":
        how["chunks"] = {"sample": 16}  # two rows of patches, as many as a chunk of the image has
    else:
        how["chunks"] = {"y": 2, "x": 2}
    plan = p.plan("to_zarr", **how, shards=False)
    assert plan["read_amplification"] == 1.0
    assert plan["chunks"][[*plan["dims"]].index("band")] == 3
    p.to_zarr(tmp_path / "b", **how, shards=False, **QUIET)
    assert set(counting_store.chunk_reads("image").values()) == {1}


@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_patches_may_be_labelled_by_their_first_samples(tmp_path: Path, layout: str) -> None:
    image = image_of()
    p, how = image.patches(y=8, x=8, stride=4), {"layout": layout, **QUIET}
    made = p.to_zarr(tmp_path / "out.zarr", label="origin", **how)
    if layout == "grid":
        xr.testing.assert_identical(made.compute(), p.extract(label="origin"))
    for i in (0, 17, len(p) - 1):
        y, x = 4 * (i // 16), 4 * (i % 16)  # 14 patches along y, 16 along x
        sample = made[i] if layout == "samples" else made[i // 16, i % 16]
        assert sample.y == image.y[y]
        assert sample.x == image.x[x]
        assert sample.lat == image.lat[y, x]
    p.to_zarr(tmp_path / "out.zarr", label="origin", resume=True, **how)
    with pytest.raises(PatchError, match="label, stored 'origin', now 'center'"):
        p.to_zarr(tmp_path / "out.zarr", resume=True, **how)
    stitched = made.patches.stitch(like=image, reduce="max", fill_value=0)
    np.testing.assert_array_equal(stitched[:, :68], image[:, :68])  # the rest is in no patch
    with pytest.raises(PatchError, match="label must be 'center' or 'origin', got 'middle'"):
        p.to_zarr(tmp_path / "b", label="middle", **how)
