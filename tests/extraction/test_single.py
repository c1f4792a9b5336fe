from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import xpatches  # noqa: F401  registers .patches
from stores import CountingStore

BUDGETS = ["100 B", "3 kB", "20 kB", "128 MiB"]
"""Of an image of 36 kB: less than a patch, less than a row of them, some rows, everything."""


def opened(path: Path, store: type[CountingStore]) -> xr.Dataset:
    """An image that was opened without dask, with coords of its own dims and of both."""
    rng = np.random.default_rng(0)
    ds = xr.Dataset(
        {
            "image": (("band", "y", "x"), rng.integers(0, 99, (2, 90, 100)).astype("uint16")),
            "scale": ("band", [1.0, 2.0]),
        },
        {"y": np.linspace(5, 4, 90), "lat": (("y", "x"), rng.random((90, 100)))},
        {"title": "made up"},
    )
    ds.chunk(y=20, x=30).to_zarr(path, consolidated=False)
    made: xr.Dataset = xr.open_zarr(store(path, read_only=True), chunks=None, consolidated=False)
    return made


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("padding", ["valid", "same", (30, 9)])
def test_iteration_gives_every_patch_in_order(
    tmp_path: Path, budget: str, padding: object, counting_store: type[CountingStore]
) -> None:
    ds = opened(tmp_path / "image.zarr", counting_store)
    for source in (ds, ds.image):
        p = source.patches(y=8, x=9, stride=20, rate={"y": 2}, padding=padding)
        with dask.config.set({"array.chunk-size": budget}):
            patches = list(p)
        assert len(patches) == len(p)
        for number, patch in enumerate(patches):
            xr.testing.assert_identical(patch, p[number])
            assert patch.encoding == p[number].encoding


@pytest.mark.parametrize(("budget", "most"), list(zip(BUDGETS, [54, 12, 4, 1], strict=True)))
def test_iteration_reads_ahead_what_the_budget_allows(
    tmp_path: Path, budget: str, most: int, counting_store: type[CountingStore]
) -> None:
    image = opened(tmp_path / "image.zarr", counting_store).image.drop_vars("lat")
    p = image.patches(y=8, x=8, stride=4)
    counting_store.reads.clear()
    with dask.config.set({"array.chunk-size": budget}):
        assert sum(1 for _ in p) == len(p)
    reads = counting_store.chunk_reads("image/")
    assert len(reads) == 5 * 4
    assert max(reads.values()) <= most


def test_a_patch_holds_no_more_than_its_samples(
    tmp_path: Path, counting_store: type[CountingStore]
) -> None:
    image = opened(tmp_path / "image.zarr", counting_store).image
    for source in (image, image.load()):
        for patch in (next(iter(source.patches(y=8, x=8))), source.patches(y=8, x=8)[3]):
            assert patch.values.base is None


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_patch_can_be_changed_without_changing_the_image_or_other_patches(
    padding: Any,
) -> None:
    ds = xr.Dataset(
        {"image": (("y", "x"), np.zeros((4, 4))), "table": ("row", [1, 2])},
        {"x": [1.0, 2, 3, 4], "lat": (("y", "x"), np.zeros((4, 4))), "crs": ((), 0, {"epsg": 1})},
        {"title": "made up"},
    )
    before = ds.copy(deep=True)
    p = ds.patches(y=3, x=3, stride=1, padding=padding)
    other = p[1].copy(deep=True)
    patch = p[0]
    patch.image[:] = 1
    for name in ("lat", "y_index"):
        patch[name].values[:] = 7
    for attrs in (patch.attrs, patch.image.attrs, patch.crs.attrs, patch.table.attrs):
        attrs["changed"] = True
    xr.testing.assert_identical(ds, before)
    xr.testing.assert_identical(p[1], other)
    array = ds.image.patches(y=3, x=3, stride=1, padding=padding)
    array[0].crs.attrs["changed"] = True
    assert "changed" not in array[1].crs.attrs


def test_a_patch_is_contiguous_whatever_the_order_of_the_image() -> None:
    image = xr.DataArray(np.asfortranarray(np.zeros((8, 8))), dims=("y", "x"))
    p = image.patches(y=3, x=3, padding=(1, 1))
    assert all(patch.values.flags.c_contiguous for patch in p)


def test_a_lazy_patch_keeps_the_chunks_of_other_dims() -> None:
    image = xr.DataArray(da.zeros((6, 8, 8), chunks=(1, 4, 4)), dims=("t", "y", "x"))
    for patch in image.patches(y=5, x=5, stride=3, padding="same"):
        assert patch.chunks == ((1,) * 6, (5,), (5,))


@pytest.mark.parametrize("arguments", [{"rate": 60}, {"stride": 40}, {"stride": 30, "rate": 7}])
def test_iteration_does_not_read_what_is_in_no_patch(
    tmp_path: Path, arguments: dict[str, int], counting_store: type[CountingStore]
) -> None:
    image = opened(tmp_path / "image.zarr", counting_store).image.drop_vars("lat")
    p = image.patches(y=2, x=2, **arguments)
    counting_store.reads.clear()
    patches = [p[i] for i in range(len(p))]
    reads = counting_store.chunk_reads("image/")
    for patch, expected in zip(p, patches, strict=True):
        xr.testing.assert_identical(patch, expected)
    assert counting_store.chunk_reads("image/") == reads
