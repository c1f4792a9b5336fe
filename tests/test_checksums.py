from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec

import xpatches

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
    IMAGE.patches(y=8, x=8).map(np.copy, store=tmp_path / "b", reduce="max", **QUIET)
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
