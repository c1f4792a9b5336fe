"""What is not cut is copied by blocks, never whole, and comes back as it was."""

import tracemalloc
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import xpatches
from stores import CountingStore, FailingStore, files
from xpatches.errors import JobError, PatchError
from xpatches.threads import available_cores

QUIET: dict[str, Any] = {"progress": False}
RNG = np.random.default_rng(0)
IMAGE = xr.DataArray(RNG.integers(0, 999, (40, 50)).astype("u2"), dims=("y", "x"))
NOISE = RNG.integers(0, 1 << 16, (32, 1 << 20)).astype("u2")  # 64 MiB
CHUNKS = {"line": 4, "sample_number": 1 << 18}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image, and a large array that is not cut, in 32 chunks of 2 MiB."""
    path = tmp_path_factory.mktemp("scene") / "scene.zarr"
    dataset = xr.Dataset({"image": IMAGE, "noise": (("line", "sample_number"), NOISE)})
    dataset.noise.attrs["units"] = "K"
    dataset.chunk(CHUNKS).to_zarr(path, consolidated=False)
    return path


def write(dataset: xr.Dataset, way: str, store: Any, **how: Any) -> Any:
    p = dataset.patches(y=8, x=8)
    if way == "map":
        return p.map_to_zarr(store, np.copy, taper="flat", fill_value=0, **QUIET, **how)
    return p.to_zarr(store, layout=way, **QUIET, **how)


@pytest.mark.parametrize("way", ["grid", "samples", "map"])
@pytest.mark.parametrize("chunks", [None, {}, {"line": 8}], ids=["opened", "dask", "other chunks"])
def test_every_stored_chunk_is_read_once_and_few_are_held(
    scene: Path,
    tmp_path: Path,
    counting_store: type[CountingStore],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    chunks: Any,
) -> None:
    shard = 4 << 20
    monkeypatch.setattr("xpatches.datasets.copies.SHARD", shard)
    opened = xr.open_zarr(counting_store(scene), chunks=chunks, consolidated=False)
    counting_store.chunk_reads()
    tracemalloc.start()
    made = write(opened, way, tmp_path / "out.zarr")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reads = counting_store.chunk_reads("noise")
    assert len(reads) == 32
    assert set(reads.values()) == {1}
    assert peak < 5 * shard * available_cores()
    assert made.noise.attrs == {"units": "K"}
    np.testing.assert_array_equal(made.noise, NOISE)


def test_no_more_is_read_at_once_than_the_budget(tmp_path: Path) -> None:
    class Reads:
        """An array that notes how much is read of it at once."""

        shape, dtype, ndim = NOISE.shape, NOISE.dtype, NOISE.ndim
        most = total = 0

        def __getitem__(self, key: Any) -> Any:
            taken = NOISE[key]
            self.most, self.total = max(self.most, taken.nbytes), self.total + taken.nbytes
            return taken

    source = Reads()
    lazy = da.from_array(source, chunks=(4, 1 << 16), asarray=False, meta=np.empty((0, 0), "u2"))
    dataset = xr.Dataset({"image": IMAGE, "noise": (("line", "n"), lazy)})
    source.most = source.total = 0
    write(dataset, "map", tmp_path / "out.zarr", max_bytes="8 MiB")
    assert 0 < source.most <= 2 << 20
    assert source.total == NOISE.nbytes


def test_what_is_copied_is_a_part_of_the_job(
    scene: Path,
    tmp_path: Path,
    failing: type[FailingStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = 4 << 20
    monkeypatch.setattr("xpatches.datasets.copies.SHARD", shard)
    opened = xr.open_zarr(scene, chunks=None, consolidated=False)
    write(opened, "grid", tmp_path / "peace.zarr")
    failing.refuse = staticmethod(lambda key: key in ("noise/c/2/1", "noise/c/3/0"))
    with pytest.raises(
        JobError, match="'noise', line=16:24, sample_number=262144:524288"
    ) as caught:
        write(opened, "grid", failing(tmp_path / "out.zarr"), retries=0)
    assert caught.value.blocks == 17
    assert len(caught.value.failures) == 2
    failing.refuse = staticmethod(lambda key: False)
    failing.written.clear()
    made = write(opened, "grid", failing(tmp_path / "out.zarr"), resume=True)
    assert sorted(k for k in failing.written if "/c/" in k) == ["noise/c/2/1", "noise/c/3/0"]
    assert files(tmp_path / "out.zarr") == files(tmp_path / "peace.zarr")
    np.testing.assert_array_equal(made.noise, NOISE)
    changed = opened.assign(noise=opened.chunk(CHUNKS).noise + np.uint16(1))
    with pytest.raises(PatchError, match=r"the image has changed: block .*, 'noise', line="):
        write(changed, "grid", tmp_path / "out.zarr", resume=True)


LARGE = 1 << 18
MANY: dict[str, Any] = {
    "packed": RNG.integers(-999, 999, LARGE * 4) / 100,
    "flags": RNG.random(LARGE * 8) < 0.5,
    "doubles": np.where(RNG.random(LARGE) < 0.1, np.nan, RNG.random(LARGE)),
    "singles": RNG.random(LARGE * 2).astype("f4"),
    "days": np.datetime64("1850-01-01", "s") + np.arange(LARGE) * np.timedelta64(7, "h"),
    "spans": np.arange(LARGE) * np.timedelta64(1, "ms"),
    "bytes": np.arange(LARGE).astype("S6"),
    "texts": np.arange(LARGE).astype("U6"),
    "objects": np.arange(LARGE).astype("U6").astype(object),
}


@pytest.mark.filterwarnings("ignore:The data type")  # zarr's, of strings
@pytest.mark.parametrize("chunks", [None, {}], ids=["opened", "dask"])
def test_every_kind_comes_back_as_it_was(tmp_path: Path, chunks: Any) -> None:
    dataset = xr.Dataset({"image": IMAGE})
    for name, values in MANY.items():
        dataset[name] = (f"along_{name}", values, {"long_name": f"the {name}"})
    dataset["days"].values[5] = np.datetime64("NaT", "s")
    encoding: dict[str, Any] = {name: {"chunks": (LARGE // 3,)} for name in MANY}
    encoding["packed"] |= {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -9999}
    dataset.to_zarr(tmp_path / "scene.zarr", consolidated=False, encoding=encoding)
    coder = xr.coders.CFDatetimeCoder(time_unit="s")
    opened = xr.open_zarr(
        tmp_path / "scene.zarr", chunks=chunks, consolidated=False, decode_times=coder,
        decode_timedelta=True,
    )  # fmt: skip
    made = write(opened, "grid", tmp_path / "out.zarr")
    for name in MANY:
        xr.testing.assert_identical(made[name].compute(), opened[name].compute())
        assert made[name].dtype == opened[name].dtype
    stored = xr.open_zarr(tmp_path / "out.zarr", consolidated=False, mask_and_scale=False)
    assert stored.packed.dtype == "i2"
    assert stored.packed.attrs["scale_factor"] == 0.01


def test_large_coords_are_copied_and_small_ones_are_not(
    tmp_path: Path, counting_store: type[CountingStore]
) -> None:
    places = RNG.random((2, 1024, 1024))
    image = xr.DataArray(
        np.zeros((1024, 1024), "u1"),
        {"y": np.arange(1024.0), "lat": (("y", "x"), places[0]), "lon": (("y", "x"), places[1])},
        ("y", "x"),
        "image",
        {"grid_mapping": "crs"},
    )
    image.chunk(y=256, x=256).to_dataset().to_zarr(tmp_path / "image.zarr", consolidated=False)
    opened = xr.open_zarr(counting_store(tmp_path / "image.zarr"), chunks=None, consolidated=False)
    p = opened.image.patches(y=64, x=64)
    counting_store.chunk_reads()
    made = p.map_to_zarr(tmp_path / "out.zarr", np.copy, taper="flat", **QUIET)
    assert set(counting_store.chunk_reads("lat").values()) == {1}
    xr.testing.assert_identical(made.compute(), image)
    assert made.lat.chunks is not None
    marks = xpatches.datasets.open.dataset_state(
        xpatches.jobs.open.open_folder(tmp_path / "out.zarr")
    )
    assert set(marks["job"]["blocks"]) == {"image", "lat", "lon"}
    assert set(p.to_zarr(tmp_path / "patches.zarr", **QUIET).coords) >= {"lat", "lon", "y"}
    marks = xpatches.datasets.open.dataset_state(
        xpatches.jobs.open.open_folder(tmp_path / "patches.zarr")
    )
    assert set(marks["job"]["blocks"]) == {"image"}


def test_chunks_of_what_is_copied_may_be_given(scene: Path, tmp_path: Path) -> None:
    opened = xr.open_zarr(scene, chunks=None, consolidated=False)
    encoding = {"noise": {"chunks": (32, 1 << 14), "compressors": None}}
    made = write(opened, "grid", tmp_path / "out.zarr", encoding=encoding)
    assert made.noise.chunks == ((32,), (1 << 14,) * 64)
    np.testing.assert_array_equal(made.noise, NOISE)
    for wrong in (3, (1, 2, 3), (0, 5)):
        with pytest.raises(PatchError, match="chunks in the encoding of 'noise' must be "):
            write(opened, "grid", tmp_path / "b", encoding={"noise": {"chunks": wrong}})


def test_what_is_copied_from_the_store_is_not_replaced(scene: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.zarr"
    xr.Dataset({"noise": ("n", NOISE[0])}).to_zarr(other, consolidated=False)
    noise = xr.open_zarr(other, chunks=None, consolidated=False).noise
    for image in (xr.Dataset({"image": IMAGE, "noise": noise}), IMAGE.assign_coords(far=noise[3])):
        with pytest.raises(PatchError, match="is where the image lies"):
            image.patches(y=8, x=8).to_zarr(other, overwrite=True, **QUIET)
    np.testing.assert_array_equal(noise, NOISE[0])
