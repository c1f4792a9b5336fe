import tracemalloc
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import xpatches
from overlaps import HOWS, labelled, patches_of
from reference import same_bits
from xpatches.stitching.labelled import stitch


@pytest.mark.parametrize("layout", ["grid", "samples"])
@pytest.mark.parametrize("chunks", [None, {}, "computed", "memory"])
@pytest.mark.filterwarnings("ignore:.*FixedLengthUTF32")  # of bands' names, by older zarr
def test_datasets_are_stitched_however_they_are_opened(
    tmp_path: Path, layout: str, chunks: Any
) -> None:
    image = labelled()
    small = {"chunks": {"sample": 5}} if layout == "samples" else {"chunks": {"y": 2, "x": 3}}
    p = patches_of(image)
    p.to_zarr(tmp_path / "out", layout=layout, shards=False, progress=False, **small)
    patches: Any = xpatches.open_patches(tmp_path / "out", chunks=None if chunks is None else {})
    if chunks == "computed":
        patches = patches + np.float32(0)
    patches = patches.compute() if chunks == "memory" else patches
    for reduce in ("mean", "first"):
        back = stitch(patches, like=image, reduce=reduce, max_bytes=2**13)
        assert (back.chunks is None) == (chunks == "memory")
        assert back.chunks is None or len(back.chunks[0]) > 1
        whole = stitch(p.extract(), like=image, reduce=reduce)
        assert back.dims == whole.dims == image.dims
        assert same_bits(back.to_numpy(), whole.to_numpy())


def test_what_is_opened_stays_lazy(tmp_path: Path) -> None:
    image = labelled().drop_vars("band")
    flat = patches_of(image).extract(flatten="patch")
    flat.to_dataset().to_zarr(tmp_path / "flat", consolidated=False)
    opened = xr.open_zarr(tmp_path / "flat", chunks=None, consolidated=False).image
    back = stitch(opened, reduce="first")
    assert back.chunks is not None
    np.testing.assert_array_equal(back, image)
    dataset = xr.Dataset({"a": image, "b": image + 1}, {"k": ("z", [1, 2])}, {"title": "T"})
    dataset.to_zarr(tmp_path / "image", consolidated=False)
    like = xr.open_zarr(tmp_path / "image", chunks=None, consolidated=False)
    both = stitch(patches_of(like).extract(), like=like, reduce="first")
    assert not both.variables["lat"]._in_memory
    assert both.k.values.tolist() == [1, 2]
    assert both.attrs == {"title": "T"}
    assert stitch(patches_of(dataset).extract().a, like=dataset, reduce="first").attrs == {
        "units": "K"
    }


def test_nothing_is_computed_and_chunks_are_read_once_or_so(
    tmp_path: Path, counting_store: Any, no_compute: None
) -> None:
    image = xr.DataArray(np.random.default_rng(0).random((96, 96)), dims=("y", "x"), name="image")
    p = image.patches(y=16, x=16, stride=8, padding="same")
    with dask.config.set(scheduler="synchronous"):
        p.to_zarr(tmp_path / "out", chunks={"y": 2, "x": 2}, shards=False, progress=False)
    counting_store.reads.clear()
    opened: Any = xpatches.open_patches(counting_store(tmp_path / "out"))
    counting_store.chunk_reads()
    back = stitch(opened, taper="hann", max_bytes=2**18)
    assert not counting_store.chunk_reads("image")  # but the origins of patches
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_allclose(back, image, rtol=1e-12)
    reads = counting_store.chunk_reads("image")
    assert len(reads) == 36
    assert sum(reads.values()) <= 2.8 * len(reads)


@pytest.mark.parametrize("layout", ["grid", "samples"])
@pytest.mark.parametrize("taper", ["flat", "hann", "crop"])
def test_a_task_holds_its_budget_and_a_few_rows(layout: str, taper: str, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).random((2048, 2048), "f4")
    image = xr.DataArray(samples, dims=("y", "x"), name="image")
    p = image.patches(y=256, x=256, stride=128)
    patches = p.to_zarr(
        tmp_path / "a", layout=layout, progress=False, encoding={"image": {"compressors": ()}}
    )
    budget = 1 << 24
    made = stitch(patches, taper=taper, max_bytes=budget)
    assert made.data.npartitions > 4
    made.data.blocks[0, 0].compute()  # what is loaded once
    tracemalloc.start()
    for index in np.ndindex(2, made.data.numblocks[1]):
        made.data.blocks[index].compute()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Beyond the budget: the rows that are being made, and the objects that zarr is reading.
    stored = 4 * np.prod(patches.encoding["shards"] or patches.encoding["chunks"])
    assert peak <= budget + (1 << 23) + stored
    assert peak > budget / 4


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("opened", [False, True])
def test_dims_may_be_in_any_order(how: str, opened: bool, tmp_path: Path) -> None:
    image = labelled(dtype="i4").isel(band=0, drop=True)
    p = image.patches(y=6, x=4, stride=3, padding="same")
    options: dict[str, Any] = {"taper": "crop"} if how == "crop" else {"reduce": how}
    expected = stitch(p.extract(), **options)
    patches = p.extract()
    if opened:
        p.to_zarr(tmp_path / "out", chunks={"y": 2, "x": 3}, shards=False, progress=False)
        opened_patches: Any = xpatches.open_patches(tmp_path / "out", chunks=None)
        patches = opened_patches
    for dims in (("x", "y", "y_patch", "x_patch"), ("x_patch", "x", "y_patch", "y")):
        moved = patches.transpose(*dims)
        moved = moved if opened else moved.chunk(x=2, y=3, x_patch=3)
        back = stitch(moved, **options, max_bytes=2**13)
        assert back.dims == ("x", "y")
        xr.testing.assert_equal(back.transpose("y", "x").compute(), expected)
        xr.testing.assert_equal(stitch(moved.compute(), **options).T, expected)
