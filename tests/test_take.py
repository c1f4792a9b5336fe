from pathlib import Path

import dask
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


def test_a_patch_can_be_written_to_without_changing_the_image() -> None:
    image = xr.DataArray(np.zeros((4, 4)), {"x": [1.0, 2, 3, 4]}, dims=("y", "x"))
    for padding in ("valid", "same"):
        patch = image.patches(y=3, x=3, stride=1, padding=padding)[0]
        patch[:] = 1
        patch.attrs["changed"] = True
        patch["y_index"] = patch.y_index + 1
    assert not image.any()
    assert image.attrs == {}
    assert image.patches(y=3, x=3, stride=1)[0].y_index.values.tolist() == [0, 1, 2]
