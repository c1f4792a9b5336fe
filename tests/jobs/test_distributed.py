import functools
import os
from collections import Counter
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
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
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


class Model:
    """The identity, which leaves a line where it is made, sent, and given a batch."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._say("made")

    def _say(self, what: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def __getstate__(self) -> dict[str, Any]:
        return {"log": self.log}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.log = state["log"]
        self._say("received")

    def __call__(self, batch: Any) -> Any:
        self._say("ran")
        return batch


@pytest.mark.parametrize("way", ["opened", "computed", "as a job"])
@pytest.mark.parametrize("factory", [False, True])
def test_a_model_is_sent_to_a_worker_once_or_made_there_once(
    tmp_path: Path, client: Any, factory: bool, way: str
) -> None:
    image = xr.DataArray(
        np.random.default_rng(0).normal(size=(96, 120)), dims=("y", "x"), name="image"
    )
    image.chunk(y=32, x=40).to_zarr(tmp_path / "image.zarr", consolidated=False)
    lazy = xr.open_zarr(tmp_path / "image.zarr", chunks=None, consolidated=False).image
    log = tmp_path / "log"
    log.touch()
    func: Any = functools.partial(Model, log) if factory else Model(log)
    store = tmp_path / "made.zarr" if way == "as a job" else None
    lazy = image.chunk(y=32, x=40) if way == "computed" else lazy
    p = lazy.patches(y=16, x=16, stride=8, padding="same")
    how: dict[str, Any] = {"factory": factory, "max_bytes": 60_000, "batch_size": 8}
    if store is None:
        made = p.map(func, **how)
    else:
        made = p.map_to_zarr(store, func, **how, progress=False)
    xr.testing.assert_allclose(made.compute(), image)
    lines = Counter(log.read_text().splitlines())
    workers = {line.split()[1] for line in lines if line.startswith("ran")} - {str(os.getpid())}
    assert len(workers) == 2
    for worker in workers:
        assert lines[f"ran {worker}"] > 2
        assert lines[f"made {worker}"] == int(factory)
        assert lines[f"received {worker}"] <= int(not factory)


@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_workers_put_every_patch_under_its_labels_whatever_the_order_of_variables(
    tmp_path: Path, client: Any, layout: str
) -> None:
    samples = np.random.default_rng(0).integers(1, 10_000, (20, 29))
    labels = {"y": np.arange(20.0)[::-1] * 3, "x": np.arange(29.0) * 10}
    variables = {"image": (("y", "x"), samples), "mask": (("x", "y"), 2 * samples.T)}
    for number, names in enumerate([("image", "mask"), ("mask", "image")]):
        scene = xr.Dataset({name: variables[name] for name in names}, labels)
        scene.to_zarr(tmp_path / f"{number}.zarr", consolidated=False)
        opened = xr.open_zarr(tmp_path / f"{number}.zarr", consolidated=False)
        p = opened[[*names]].patches(y=5, x=7, stride=4)
        out = p.to_zarr(tmp_path / f"{number}-out.zarr", layout=layout, progress=False).compute()
        if layout == "grid":
            out = out.stack(sample=("y", "x")).reset_index("sample")
        assert out.sizes["sample"] == len(p)
        for index in range(len(p)):
            sample = out.isel(sample=index)
            y, x = int(sample.y_origin), int(sample.x_origin)
            expected = samples[y : y + 5, x : x + 7]
            for name, factor in (("image", 1), ("mask", 2)):
                patch = sample[name].transpose("y_patch", "x_patch")
                np.testing.assert_array_equal(patch, factor * expected)
            assert (sample.y, sample.x) == (labels["y"][y + 2], labels["x"][x + 3])
        mapped = p.map_to_zarr(
            tmp_path / f"{number}-map.zarr", lambda batch: batch / 2,
            output={"dtype": "float64"}, fill_value=0, progress=False,
        )  # fmt: skip
        for name in names:
            xr.testing.assert_allclose(
                mapped[name].isel(y=slice(17), x=slice(27)).compute(),
                scene[name].isel(y=slice(17), x=slice(27)) / 2,
            )
