import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from stores import CountingStore
from xpatches.images.spec import read_spec


def dataset(n: int = 100) -> xr.Dataset:
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "image": (("y", "x", "band"), rng.integers(0, 65536, (n, n, 3)).astype("uint16")),
            "height": (("y", "x"), rng.normal(size=(n, n)).astype("float32")),
        },
        coords={
            "y": np.linspace(50, 40, n),
            "x": np.linspace(0, 10, n),
            "time": (
                "y",
                np.datetime64("2000-01-01", "ns") + np.arange(n) * np.timedelta64(1, "h"),
            ),
            "band": ["red", "green", "blue"],
            "lat": (("y", "x"), rng.random((n, n))),
            "crs": ((), 0, {"epsg": 4326}),
        },
        attrs={"title": "made up"},
    )


def write(ds: xr.Dataset, path: Path, y: int = 16, x: int = 20) -> Path:
    ds.assign_coords(band=[0, 1, 2]).chunk(y=y, x=x).to_zarr(path, consolidated=False)
    return path


def open_image(path: Path, chunks: Any, store: type[CountingStore]) -> xr.Dataset:
    ds: xr.Dataset = xr.open_zarr(store(path, read_only=True), chunks=chunks, consolidated=False)
    store.reads.clear()
    return ds


@pytest.mark.parametrize("chunks", [None, {}], ids=["without dask", "with dask"])
def test_building_reads_no_data(
    tmp_path: Path, chunks: Any, counting_store: type[CountingStore]
) -> None:
    ds = open_image(write(dataset(), tmp_path / "image.zarr"), chunks, counting_store)
    image = ds.image
    image.patches(y=8, x=8, stride=4).extract(flatten="patch")
    for source in (image, ds):
        p = source.patches(y=8, x=8, stride=4, rate=2, padding="same")
        p.extract()
        p.extract(label="origin")
        assert p.plan()
        assert repr(p)
        assert p.nbytes
    assert not counting_store.chunk_reads()


@pytest.mark.parametrize("chunks", [None, {}], ids=["without dask", "with dask"])
@pytest.mark.parametrize(
    ("size", "stride"), [(8, 8), (8, 4), (7, 3), (33, 5)], ids=lambda value: str(value)
)
def test_extraction_reads_every_stored_chunk_once(
    tmp_path: Path, chunks: Any, size: int, stride: int, counting_store: type[CountingStore]
) -> None:
    ds = dataset()
    lazy = open_image(write(ds, tmp_path / "image.zarr"), chunks, counting_store)
    p = lazy.image.drop_vars(["lat", "time"]).patches(y=size, x=size, stride=stride, padding="same")
    result = p.extract().compute()
    reads = counting_store.chunk_reads("image/")
    assert set(reads.values()) == {1}
    assert len(reads) == 7 * 5
    expected = ds.image.patches(y=size, x=size, stride=stride, padding="same").extract()
    assert np.array_equal(result.values, expected.values)


@pytest.mark.parametrize("chunks", [None, {}], ids=["without dask", "with dask"])
def test_one_patch_reads_only_the_chunks_under_it(
    tmp_path: Path, chunks: Any, counting_store: type[CountingStore]
) -> None:
    ds = open_image(write(dataset(), tmp_path / "image.zarr"), chunks, counting_store)
    p = ds.image.patches(y=12, x=12, stride=6, padding="same")
    for i, j in np.ndindex(*p.grid.counts.values()):
        if (i + j) % 3:
            continue
        patch = p[i, j].compute()
        rows, columns = (
            {int(k) // n for k in patch[f"{dim}_index"] if 0 <= k < 100}
            for dim, n in (("y", 16), ("x", 20))
        )
        reads = counting_store.chunk_reads("image/")
        assert set(reads) == {f"image/c/{r}/{c}/0" for r in rows for c in columns}
        assert set(reads.values()) == {1}


@pytest.mark.parametrize("chunks", [None, {}], ids=["without dask", "with dask"])
@pytest.mark.parametrize("stride", [4, 5, 7])
@pytest.mark.parametrize("flatten", [None, "patch"])
def test_the_result_saves_and_reads_back_identical(
    tmp_path: Path,
    chunks: Any,
    stride: int,
    flatten: str | None,
    counting_store: type[CountingStore],
) -> None:
    ds = open_image(write(dataset(), tmp_path / "image.zarr"), chunks, counting_store)
    p = ds.image.patches(y=8, x=6, stride=stride, rate=2, padding="same", fill_value=9)
    result = p.extract(flatten=flatten)
    result.to_zarr(tmp_path / "patches.zarr", consolidated=False)
    back = xr.open_dataarray(tmp_path / "patches.zarr", engine="zarr", consolidated=False)
    xr.testing.assert_identical(back.load(), result.compute())
    assert read_spec(back.attrs).grid == p.grid


def test_a_dataset_saves_and_reads_back_identical(
    tmp_path: Path, counting_store: type[CountingStore]
) -> None:
    ds = open_image(write(dataset(), tmp_path / "image.zarr"), {}, counting_store)
    result = ds.patches(y=8, x=6, stride=5, padding="same").extract()
    result.to_zarr(tmp_path / "patches.zarr", consolidated=False)
    back = xr.open_zarr(tmp_path / "patches.zarr", consolidated=False, chunks=None)
    xr.testing.assert_identical(back.load(), result.compute())


def test_missing_labels_save_too(tmp_path: Path) -> None:
    result = dataset().image.patches(y=8, x=6, stride=5, padding="same").extract(label="origin")
    result = result.drop_vars("band")
    result.to_zarr(tmp_path / "patches.zarr", consolidated=False)
    back = xr.open_dataarray(tmp_path / "patches.zarr", engine="zarr", consolidated=False)
    xr.testing.assert_identical(back.load(), result)


def test_a_single_patch_saves(tmp_path: Path, counting_store: type[CountingStore]) -> None:
    ds = open_image(write(dataset(), tmp_path / "image.zarr"), {}, counting_store)
    patch = ds.image.patches(y=30, x=30, padding="same")[1, 1]
    patch.to_zarr(tmp_path / "patch.zarr", consolidated=False)
    back = xr.open_dataarray(tmp_path / "patch.zarr", engine="zarr", consolidated=False)
    xr.testing.assert_identical(back.load(), patch.compute())


@pytest.mark.parametrize("chunk", [1024, 512], ids=["256 chunks", "1024 chunks"])
def test_a_patch_of_a_large_image_reads_at_most_four_chunks(
    tmp_path: Path, chunk: int, counting_store: type[CountingStore], no_compute: None
) -> None:
    n = 16384
    array = zarr.create_array(
        tmp_path / "large.zarr" / "image",
        shape=(n, n),
        chunks=(chunk, chunk),
        dtype="uint16",
        dimension_names=("y", "x"),
    )
    zarr.open_group(tmp_path / "large.zarr", mode="a")
    columns = np.arange(n, dtype="uint16")
    for row in range(0, n, chunk):
        array[row : row + chunk] = np.arange(row, row + chunk, dtype="uint16")[:, None] ^ columns
    ds = open_image(tmp_path / "large.zarr", None, counting_store)
    p = ds.image.patches(y=256, x=256, stride=128)
    assert len(p) == 127**2
    assert p.extract().shape == (127, 127, 256, 256)
    assert not counting_store.chunk_reads()
    for i, j in [(0, 0), (3, 3), (7, 7), (126, 126), (7, 0)]:
        patch = p[i, j]
        reads = counting_store.chunk_reads()
        assert len(reads) <= 4
        assert set(reads.values()) == {1}
        rows, cols = patch.y_index.values.astype("uint16"), patch.x_index.values.astype("uint16")
        assert np.array_equal(patch.values, rows[:, None] ^ cols)


def test_flattening_reads_no_lazy_coords(
    tmp_path: Path, counting_store: type[CountingStore]
) -> None:
    ds = dataset().assign_coords(gain=(("y", "band"), np.ones((100, 3))))
    lazy = open_image(write(ds, tmp_path / "image.zarr"), None, counting_store)
    lazy.image.patches(y=8, x=8).extract(flatten="patch")
    assert not counting_store.chunk_reads()


@pytest.mark.parametrize("renamed", [{}, {"y": "row", "x": "column"}], ids=str)
def test_chunks_of_an_image_opened_without_dask_can_be_those_of_its_storage(
    tmp_path: Path, renamed: dict[str, str], counting_store: type[CountingStore]
) -> None:
    ds = open_image(write(dataset(), tmp_path / "image.zarr"), None, counting_store)
    source = ds.image.rename(renamed)
    rows, columns = (renamed.get(dim, dim) for dim in ("y", "x"))
    result = source.patches({rows: 4, columns: 4}).extract(engine="map_overlap")
    assert result.chunksizes[rows] == (4, 4, 4, 4, 4, 4, 1)
    assert result.chunksizes[columns] == (5,) * 5


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_regions_read_little_twice_and_give_the_same_bits(
    tmp_path: Path, padding: str, counting_store: type[CountingStore]
) -> None:
    samples = np.random.default_rng(0).integers(0, 2**16, (256, 256)).astype("uint16")
    image = xr.Dataset({"image": (("y", "x"), samples)})
    image.chunk(y=8, x=8).to_zarr(tmp_path / "image.zarr", consolidated=False)
    lazy = open_image(tmp_path / "image.zarr", None, counting_store).image
    p = lazy.patches(y=5, x=5, stride=1, padding=padding)
    plan = p.plan(max_bytes=2**20)
    assert plan["engine"] == "region"
    assert plan["blocks"] > 1
    assert plan["tasks"] == plan["blocks"] + 1  # and one that holds the source
    regions = p.extract(max_bytes=2**20)
    assert not counting_store.chunk_reads()
    values = regions.values
    reads = counting_store.chunk_reads()
    assert sum(reads.values()) / len(reads) == pytest.approx(plan["read_amplification"])
    assert sum(reads.values()) / len(reads) < 1.3
    assert np.array_equal(values, p.extract(engine="map_overlap"))
    chunked = open_image(tmp_path / "image.zarr", {}, counting_store).image
    again = chunked.patches(y=5, x=5, stride=1, padding=padding)
    assert again.plan()["engine"] == "map_overlap"
    assert again.plan(engine="region", max_bytes=2**20)["tasks"] == plan["tasks"]
    assert np.array_equal(values, again.extract(engine="region", max_bytes=2**20))
    whole = image.image.patches(y=5, x=5, stride=1, padding=padding)
    assert np.array_equal(values, whole.extract())


def test_chunks_are_computed_once_where_regions_would_read_much_twice(
    tmp_path: Path, counting_store: type[CountingStore]
) -> None:
    lazy = open_image(write(dataset(), tmp_path / "image.zarr"), None, counting_store).image
    p = lazy.patches(y=65, x=65, stride=1, padding="same")
    budget = 200_000
    assert p.plan(max_bytes=budget)["engine"] == "map_overlap"
    assert p.plan(engine="region", max_bytes=budget)["read_amplification"] > 1.3
    counting_store.chunk_reads()
    p.extract(max_bytes=budget).max(["y_patch", "x_patch"]).compute()
    assert set(counting_store.chunk_reads("image/").values()) == {1}


def test_a_patch_in_the_padding_of_a_reversed_image_reads_nothing(
    tmp_path: Path, counting_store: type[CountingStore]
) -> None:
    ds = open_image(write(dataset(), tmp_path / "image.zarr"), None, counting_store)
    source = ds.image.isel(y=slice(None, None, -1))
    assert (source.patches(y=3, padding=(30, 0), fill_value=7)[0] == 7).all()
    assert not counting_store.chunk_reads("image/")


def test_reducing_patches_takes_less_memory_than_the_image(tmp_path: Path) -> None:
    image = xr.DataArray(np.ones((4096, 4096), "uint16"), dims=("y", "x"), name="image")
    image.chunk(y=512, x=512).to_zarr(tmp_path / "image.zarr", consolidated=False)
    lazy = xr.open_zarr(tmp_path / "image.zarr", consolidated=False).image
    p = lazy.patches(y=64, x=64, stride=32)
    assert p.nbytes > 3 * image.nbytes
    tracemalloc.start()
    assert (p.extract().max(["y_patch", "x_patch"]).compute() == 1).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < image.nbytes
