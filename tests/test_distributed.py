from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import xpatches  # noqa: F401  registers the accessor

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two worker processes."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _use_the_client() -> Iterator[None]:
    """Undo the tests' default scheduler: a client is used where no scheduler is set."""
    import dask

    with dask.config.set(scheduler="distributed"):
        yield


@pytest.mark.parametrize("chunks", [None, {}], ids=["without dask", "with dask"])
@pytest.mark.parametrize(
    "asked",
    [
        {"y": 16, "x": 16},
        {"y": 9, "x": 5, "stride": 4, "rate": 2, "padding": "same", "fill_value": 7},
        {"y": 40, "x": 3, "stride": 7, "padding": (3, 50)},
    ],
    ids=["aligned", "dilated", "wider than a chunk"],
)
def test_workers_give_the_bits_that_this_process_gives(
    tmp_path: Path, client: Any, chunks: Any, asked: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    image = xr.DataArray(
        rng.normal(size=(96, 120, 2)).astype("f4").round(),
        dims=("y", "x", "band"),
        coords={"y": np.arange(96.0)},
        name="image",
    )
    image.chunk(y=16, x=24).to_zarr(tmp_path / "image.zarr", consolidated=False)
    lazy = xr.open_zarr(tmp_path / "image.zarr", chunks=chunks, consolidated=False).image
    expected = image.patches(**asked).extract()
    result = lazy.patches(**asked).extract().compute()
    xr.testing.assert_identical(result, expected)
    assert result.values.tobytes() == expected.values.tobytes()
    patch = lazy.patches(**asked)[5].compute()
    xr.testing.assert_identical(patch, image.patches(**asked)[5])


def test_patches_travel_to_workers(client: Any) -> None:
    p = xr.DataArray(np.arange(100.0).reshape(10, 10), dims=("y", "x")).patches(y=5, x=5)
    means = client.gather(client.map(lambda i, p=p: float(p[i].mean()), range(len(p))))
    assert means == [float(patch.mean()) for patch in p]
