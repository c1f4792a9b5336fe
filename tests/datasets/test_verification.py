import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec

import xpatches
from stores import EndError, ending_after, files
from xpatches.jobs.blocks import Job

QUIET: dict[str, Any] = {"progress": False}
IMAGE = xr.DataArray(
    np.random.default_rng(0).integers(0, 999, (64, 64)).astype("u2"),
    {"y": np.linspace(0, 1, 64)},
    ("y", "x"),
    "image",
)


def codecs(store: Path, name: str) -> list[str]:
    metadata: Any = zarr.open_array(store, path=name, mode="r").metadata
    chain = metadata.codecs
    if type(chain[0]).__name__ == "ShardingCodec":
        chain = chain[0].codecs
    return [type(codec).__name__ for codec in chain]


@pytest.mark.parametrize("shards", [None, False])
@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_every_flipped_bit_of_a_chunk_is_noticed(tmp_path: Path, layout: str, shards: Any) -> None:
    p, out = IMAGE.patches(y=8, x=8), tmp_path / "out.zarr"
    expected: Any = p.to_zarr(out, layout=layout, shards=shards, **QUIET)
    expected = expected.compute()
    chunks = [path for path in (out / "image" / "c").rglob("*") if path.is_file()]
    chance = np.random.default_rng(0)
    for _ in range(60):
        path = chunks[chance.integers(len(chunks))]
        content = path.read_bytes()
        bit = int(chance.integers(8 * len(content)))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        opened: Any = xpatches.open_patches(out, chunks=None)
        with pytest.raises(Exception, match=r"(?i)checksum|crc|corrupt|invalid|unable|outside"):
            opened.load()
        path.write_bytes(content)
    xr.testing.assert_identical(xpatches.open_patches(out).compute(), expected)


def test_maps_copies_and_coords_have_checksums_too(tmp_path: Path) -> None:
    other = xr.DataArray(np.zeros((1024, 1024)), dims=("a", "b")).chunk(a=512)
    p = IMAGE.to_dataset().assign(other=other).patches(y=8, x=8)
    p.to_zarr(tmp_path / "a", **QUIET)
    IMAGE.patches(y=8, x=8).map_to_zarr(tmp_path / "b", np.copy, reduce="max", **QUIET)
    for store, name in (("a", "image"), ("a", "other"), ("a", "y"), ("b", "image"), ("b", "y")):
        assert codecs(tmp_path / store, name)[-1] == "Crc32cCodec"


@pytest.mark.parametrize(
    ("compressors", "expected"),
    [
        ("auto", ["BytesCodec", "ZstdCodec", "Crc32cCodec"]),
        (None, ["BytesCodec", "Crc32cCodec"]),
        (GzipCodec(), ["BytesCodec", "GzipCodec", "Crc32cCodec"]),
        (
            {"name": "gzip", "configuration": {"level": 1}},
            ["BytesCodec", "GzipCodec", "Crc32cCodec"],
        ),
        ([BloscCodec(), Crc32cCodec()], ["BytesCodec", "BloscCodec", "Crc32cCodec"]),
        ([{"name": "crc32c"}], ["BytesCodec", "Crc32cCodec"]),
    ],
)
def test_checksums_stand_behind_the_compressors_that_are_given(
    tmp_path: Path, compressors: Any, expected: list[str]
) -> None:
    p, encoding = IMAGE.patches(y=8, x=8), {"image": {"compressors": compressors}}
    made: Any = p.to_zarr(tmp_path / "a", encoding=encoding, **QUIET)
    assert codecs(tmp_path / "a", "image") == expected
    np.testing.assert_array_equal(made, p.extract())
    p.to_zarr(tmp_path / "b", encoding=encoding, checksums=False, **QUIET)
    given = ("Crc32cCodec" in expected) and "crc32c" in str(compressors).lower()
    assert ("Crc32cCodec" in codecs(tmp_path / "b", "image")) == given


def harm(path: Path, way: str) -> None:
    content = path.read_bytes()
    changed = {"emptied": b"", "cut": content[:-1], "changed": content[:-5] + b"ab" + content[-3:]}
    path.unlink() if way == "removed" else path.write_bytes(changed[way])


@pytest.mark.parametrize("way", ["removed", "emptied", "cut", "changed"])
@pytest.mark.parametrize("job", ["grid", "samples", "map", "materialized", "copy"])
def test_what_is_damaged_is_named_and_repaired(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    single_objects: None,
    job: str,
    way: str,
) -> None:
    out = tmp_path / "out.zarr"
    other = xr.DataArray(np.arange(2.0**18).reshape(512, 512), dims=("a", "b")).chunk(a=256)

    def go(**how: Any) -> None:
        p = IMAGE.patches(y=8, x=8)
        if job == "map":
            how |= {"chunks": {"y": 16, "x": 16}, "shards": False, "max_bytes": 4000}
            p.map_to_zarr(out, np.copy, reduce="max", **how, **QUIET)
        elif job == "materialized":
            p.map_to_zarr(
                None, np.copy, reduce="max", materialize=out, max_bytes="4 KiB", **how, **QUIET
            )
        elif job == "copy":
            both = IMAGE.to_dataset().assign(other=other).patches(y=8, x=8)
            encoding = {"other": {"chunks": (128, 512)}}
            both.to_zarr(out, encoding=encoding, **how, **QUIET)
        else:
            chunks = {"y": 2, "x": 2} if job == "grid" else {"sample": 8}
            p.to_zarr(out, layout=job, chunks=chunks, shards=False, **how, **QUIET)

    go()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    sound = xpatches.verify(out, progress=False)
    assert (sound["state"], sound["missing"], sound["damaged"]) == ("complete", 0, {})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    name = {"copy": "other", "materialized": "image"}.get(job, "image")
    objects = sorted(path for path in before if path.is_relative_to(out / name / "c"))
    assert len(objects) > 2
    for path in (objects[1], objects[-1]):
        harm(path, way)
    names = {str(path.relative_to(out)) for path in (objects[1], objects[-1])}
    assert xpatches.verify(out, progress=False)["damaged"].keys() == names
    told = xpatches.verify(out, repair=True, progress=False)
    assert told["damaged"].keys() == names
    with pytest.raises(xpatches.PatchError, match="is incomplete: "):
        xpatches.open_patches(out)
    written: list[int] = []
    plain = Job.write

    def counted(self: Any, number: int) -> int:
        written.append(number)
        return plain(self, number)

    monkeypatch.setattr(Job, "write", counted)
    go(resume=True)
    assert len(written) == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["y/c/0", "image/zarr.json", "y/zarr.json"])
def test_what_the_setup_wrote_is_repaired_too(tmp_path: Path, name: str) -> None:
    out, p = tmp_path / "out.zarr", IMAGE.patches(y=8, x=8)
    p.to_zarr(out, **QUIET)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / name).write_bytes(b"{")
    assert [*xpatches.verify(out, progress=False)["damaged"]] == [name]
    xpatches.verify(out, repair=True, progress=False)
    p.to_zarr(out, resume=True, **QUIET)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_repair_that_ends_at_any_step_is_finished(tmp_path: Path) -> None:
    peace, p = tmp_path / "peace.zarr", IMAGE.patches(y=16, x=16)
    p.to_zarr(peace, chunks={"y": 2, "x": 2}, shards=False, **QUIET)
    for last in range(1, 100):
        out = tmp_path / f"{last}.zarr"
        shutil.copytree(peace, out)
        harm(out / "image/c/0/0/0/0", "changed")
        harm(out / "image/c/1/1/0/0", "changed")
        try:
            with ending_after(last):
                xpatches.verify(out, repair=True, progress=False)
            break
        except EndError:
            p.to_zarr(out, chunks={"y": 2, "x": 2}, shards=False, resume=True, **QUIET)
            assert files(out) == files(peace)
    assert 3 < last < 99


def test_an_incomplete_dataset_is_repaired_as_far_as_it_is(
    tmp_path: Path, single_objects: None
) -> None:
    out, p = tmp_path / "out.zarr", IMAGE.patches(y=8, x=8)
    small: dict[str, Any] = {"chunks": {"y": 2, "x": 2}, "shards": False, **QUIET}
    with pytest.MonkeyPatch.context() as patch:
        plain = Job.write

        def fails(self: Any, number: int) -> int:
            if number > 10:
                raise OSError("gone")
            return plain(self, number)

        patch.setattr(Job, "write", fails)
        with pytest.raises(xpatches.JobError):
            p.to_zarr(out, retries=0, **small)
        harm(out / "image" / "c" / "0" / "0" / "0" / "0", "changed")
        told = xpatches.verify(out, repair=True, progress=False)
        assert told == {
            "state": "incomplete",
            "objects": told["objects"],
            "missing": 0,
            "damaged": {"image/c/0/0/0/0": told["damaged"]["image/c/0/0/0/0"]},
        }
        patch.setattr(Job, "write", plain)
        p.to_zarr(out, resume=True, **small)
    np.testing.assert_array_equal(xpatches.open_patches(out), p.extract())
    assert not xpatches.verify(out, progress=False)["damaged"]
