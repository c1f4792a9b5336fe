"""Maps as jobs: written as they are computed, from patches that are run or stored runs."""

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import xpatches
from models import CUT, IMAGE, FailsOn, above_least, identity, opened
from reference import Array
from xpatches import JobError, MapError, PatchError
from xpatches.jobs.lock import writing
from xpatches.jobs.open import open_folder
from xpatches.threads import available_cores


class Failing:
    """The identity, which fails where it is told to."""

    def __init__(self, after: int) -> None:
        self.left, self.runs = after, 0

    def __call__(self, batch: Array) -> Array:
        self.left -= len(batch)
        self.runs += len(batch)
        if self.left < 0:
            raise RuntimeError("out of luck")
        return batch


JOB: dict[str, Any] = {"max_bytes": 60_000, "progress": False}


def test_a_map_is_written_as_it_is_computed(tmp_path: Path) -> None:
    image = opened(IMAGE.chunk(y=32, x=32), tmp_path / "a").assign_attrs(unit="m")
    p = image.patches(**CUT)
    expected = p.map(above_least).compute()
    written = p.map_to_zarr(tmp_path / "b", above_least, **JOB)
    assert written.data.npartitions > 1
    xr.testing.assert_identical(written.compute(), expected)
    plain = xr.open_zarr(tmp_path / "b", consolidated=False).image
    np.testing.assert_array_equal(plain, expected)
    xr.testing.assert_identical(xpatches.open_patches(tmp_path / "b").compute(), expected)


@pytest.mark.parametrize("given", [{"chunks": {"y": 10, "x": 7}}, {"shards": False}])
def test_chunks_may_be_chosen(tmp_path: Path, given: dict[str, Any]) -> None:
    made = IMAGE.patches(**CUT).map_to_zarr(tmp_path / "a", identity, **given, progress=False)
    np.testing.assert_allclose(made, IMAGE)
    encoding = xr.open_zarr(tmp_path / "a", consolidated=False).image.encoding
    if "chunks" in given:
        assert encoding["chunks"] == (10, 7)
        plan = IMAGE.patches(**CUT).plan("map_to_zarr", **given)
        assert (plan["chunks"], plan["shards"]) == (encoding["chunks"], encoding["shards"])
    else:
        assert encoding.get("shards") is None


def test_a_job_that_failed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    image = opened(IMAGE.chunk(y=32, x=32), tmp_path / "a")
    p, how = image.patches(**CUT), {**JOB, "store": tmp_path / "b", "retries": 0}
    plan = p.plan("map_to_zarr", max_bytes=60_000)
    broken = Failing(after=plan["runs"] // 2)
    with pytest.raises(JobError, match="func failed on the patch with origin y="):
        p.map_to_zarr(func=broken, **how)
    with pytest.raises(PatchError, match="is incomplete"):
        xpatches.open_patches(tmp_path / "b")
    mended = Failing(after=10**9)
    made = p.map_to_zarr(func=mended, **how, resume=True)
    assert 0 < mended.runs < plan["runs"]
    xr.testing.assert_identical(made.compute(), p.map(identity).compute())
    assert plan["tasks"] > 1


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"taper": "flat"}, "map.image.taper"),
        ({"func": identity}, "map.image.func"),
        ({"output": {"dtype": "f4"}}, "map.image.dtype"),
        ({"skipna": False}, "map.image.skipna"),
        ({"cut": {**CUT, "stride": 4}}, "map.image.patches"),
        ({"image": IMAGE + 1}, "the image has changed"),
    ],
)
def test_another_map_does_not_resume(
    tmp_path: Path, changed: dict[str, Any], difference: str
) -> None:
    def go(image: Any = IMAGE, cut: Any = CUT, func: Any = above_least, **how: Any) -> None:
        image.patches(**cut).map_to_zarr(tmp_path / "a", func, progress=False, **how)

    go()
    go(resume=True, batch_size=3)
    with pytest.raises(PatchError, match=difference):
        go(resume=True, **changed)


def test_runs_that_are_stored_are_made_once(tmp_path: Path) -> None:
    image = opened(IMAGE.chunk(y=32, x=32), tmp_path / "a")
    p, runs = image.patches(**CUT), tmp_path / "runs"
    output = {"dims": ("of", "y", "x"), "sizes": {"of": 2, "y": 12}}

    def model(batch: Array) -> Array:
        count.runs += len(batch)
        return np.stack([batch, above_least(batch)], axis=1)[:, :, 2:-2]

    count = Failing(0)
    expected = p.map(model, output=output)
    assert count.runs == 0
    expected = expected.compute()
    count.runs = 0
    made = p.map_to_zarr(None, model, output=output, materialize=runs, progress=False)
    assert count.runs == len(p)
    xr.testing.assert_identical(made.compute(), expected)
    assert made.chunks is not None
    written = p.map_to_zarr(
        tmp_path / "b", model, output=output, materialize=runs, resume=True, **JOB
    )
    assert count.runs == len(p)
    assert written.data.npartitions > 1
    xr.testing.assert_identical(written.compute(), expected)
    p.map_to_zarr(tmp_path / "b", model, output=output, materialize=runs, resume=True, **JOB)
    assert count.runs == len(p)


@pytest.mark.parametrize("how", [{}, {"taper": "crop"}, {"reduce": "first"}, {"reduce": "max"}])
@pytest.mark.parametrize("way", ["memory", "lazy", "store", "materialize"])
def test_a_patch_that_is_missing_does_not_eat_its_neighbours(
    tmp_path: Path, how: dict[str, Any], way: str
) -> None:
    def unsure(batch: xr.DataArray) -> xr.DataArray:
        return batch.where((batch.y_origin % 24 != 8) | (batch.x_origin % 16 != 8))

    image = IMAGE if way == "memory" else opened(IMAGE.chunk(y=32, x=32), tmp_path / "a")
    p, given = image.patches(y=16, x=16, stride=8), {**how, "labelled": True}
    verb = p.map
    if way in ("store", "materialize"):
        verb = p.map_to_zarr
        given |= {"store": None, way: tmp_path / "b", "progress": False}
    made = verb(func=unsure, **given, max_bytes=60_000).compute()
    assert made.dtype == np.float64
    np.testing.assert_allclose(made, IMAGE, rtol=1e-15)
    if way == "lazy":
        eaten = p.map(unsure, **given, skipna=False).compute()
        assert 0.05 < np.isnan(eaten).mean() < 0.8
        np.testing.assert_array_equal(eaten, made.where(~np.isnan(eaten)))


@pytest.mark.parametrize("other", ["a", "a/x", "."])
def test_runs_and_the_result_are_kept_apart(tmp_path: Path, other: str) -> None:
    count = Failing(10**9)
    with pytest.raises(PatchError, match="store and materialize must be two places"):
        IMAGE.patches(**CUT).map_to_zarr(
            tmp_path / "a", count, materialize=tmp_path / other, overwrite=True
        )
    assert count.runs == 0
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["map", "stitch", "materialize"])
def test_what_is_made_of_a_store_does_not_replace_it(tmp_path: Path, how: str) -> None:
    stored = opened(IMAGE.chunk(y=32, x=32), tmp_path / "a")
    p = stored.patches(**CUT)
    given: dict[str, Any] = {"overwrite": True, "progress": False}
    if how == "map":
        made = p.map(identity)
    elif how == "stitch":
        made = p.extract(engine="region").patches.stitch(like=IMAGE)
    else:
        made = p.map_to_zarr(None, identity, materialize=tmp_path / "b", progress=False)
    with pytest.raises(PatchError, match="is where the image lies"):
        made.patches(y=16, x=16).map_to_zarr(
            tmp_path / ("b" if how == "materialize" else "a"), identity, **given
        )
    xr.testing.assert_allclose(made.compute(), IMAGE)


@pytest.mark.parametrize(
    "given",
    [
        {"chunks": {"q": 3}},
        {"chunks": {"y": 0}},
        {"shards": "x"},
        {"encoding": {"zzz": {}}},
        {"encoding": 5},
        {"encoding": {"y": 5}},
        {"encoding": {"image": {"nonsense": 5}}},
        {"encoding": {"image": {"compressors": "zstd"}}},
        {"max_bytes": "foo"},
        {"max_bytes": 10},
        {"max_bytes": 30_000},
        {"max_bytes": 30_000, "store": None},
        {"max_bytes": 100_000, "chunks": {"y": 50, "x": 60}},
        {"store": 5},
        {"store": "foreign"},
    ],
)
def test_arguments_of_the_result_are_checked_before_the_model_is_run(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").touch()
    given = {"store": "b", **given}
    if isinstance(given["store"], str):
        given["store"] = tmp_path / given["store"]
    count = Failing(10**9)
    with pytest.raises(PatchError):
        IMAGE.patches(**CUT).map_to_zarr(
            func=count, materialize=tmp_path / "a", progress=False, **given
        )
    assert count.runs == 0
    assert not (tmp_path / "a").exists()


def test_runs_of_a_dataset_may_have_their_dims_in_any_order(tmp_path: Path) -> None:
    image = xr.Dataset({"image": IMAGE.drop_vars("y").transpose("x", "y")}, {"y": IMAGE.y})
    for dataset in (image, image.transpose("y", "x"), image.assign_coords(y=IMAGE.y, x=IMAGE.x)):
        made = dataset.patches(**CUT).map_to_zarr(
            None, identity, materialize=tmp_path / "a", overwrite=True, progress=False
        )
        xr.testing.assert_allclose(made.compute(), dataset)


def test_what_a_store_cannot_take_is_refused_before_the_model_is_run(tmp_path: Path) -> None:
    image = opened(IMAGE.chunk(y=32, x=32), tmp_path / "image")
    p, count = image.patches(**CUT), Failing(10**9)
    p.map_to_zarr(tmp_path / "other", identity, progress=False)
    how: dict[str, Any] = {"materialize": tmp_path / "a", "progress": False}
    with pytest.raises(PatchError, match="is of another job"):
        p.map_to_zarr(tmp_path / "other", count, resume=True, **how)
    (tmp_path / "other" / "image" / "letter").touch()
    with pytest.raises(PatchError, match="holds what is no zarr: image/letter"):
        p.map_to_zarr(tmp_path / "other", count, overwrite=True, **how)
    with pytest.raises(PatchError, match="is where the image lies"):
        p.map_to_zarr(tmp_path / "image", count, overwrite=True, **how)
    odd = image.assign_coords({"a/b": 5}).patches(**CUT)
    with pytest.raises(PatchError, match="'a/b'"):
        odd.map_to_zarr(tmp_path / "b", count, **how)
    with (
        writing(open_folder(tmp_path / "held"), print),
        pytest.raises(PatchError, match="is being written by process"),
    ):
        p.map_to_zarr(tmp_path / "held", count, overwrite=True, **how)
    p.map_to_zarr(None, identity, materialize=tmp_path / "kept", progress=False)
    with pytest.raises(PatchError, match="exists already"):
        p.map_to_zarr(tmp_path / "b", count, materialize=tmp_path / "kept", progress=False)
    assert count.runs == 0
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
    xr.testing.assert_identical(image.compute(), IMAGE)


def test_a_job_may_be_resumed_with_smaller_batches_and_runs_reduced_otherwise(
    tmp_path: Path,
) -> None:
    image = opened(
        xr.DataArray(np.ones((512, 512), "f4"), dims=("y", "x")).chunk(y=64), tmp_path / "image"
    )
    p = image.patches(y=64, x=64, stride=32, padding="same")
    how: dict[str, Any] = {"max_bytes": "2 MiB", "progress": False, "retries": 0}
    broken = Failing(p.plan("map_to_zarr", max_bytes="2 MiB")["runs"] // 2)
    with pytest.raises(JobError):
        p.map_to_zarr(tmp_path / "a", broken, batch_size=64, **how)
    for batch in (1, 200):
        plan = p.plan("map_to_zarr", batch_size=batch, max_bytes="2 MiB")
        assert plan["tasks"] > 1
        p.map_to_zarr(tmp_path / "a", Failing(10**9), batch_size=batch, resume=True, **how)
    p.map_to_zarr(None, Failing(10**9), materialize=tmp_path / "b", **how)
    assert xr.open_zarr(tmp_path / "b", consolidated=False).image.chunks[0][0] < len(p) / 10
    again = Failing(10**9)
    made = p.map_to_zarr(None, again, materialize=tmp_path / "b", taper="flat", resume=True, **how)
    assert again.runs == 0
    assert (made == 1).all()


def test_a_budget_that_is_too_small_is_refused_not_met_by_slivers(tmp_path: Path) -> None:
    p = xr.DataArray(np.zeros((600, 600)), dims=("y", "x")).patches(y=64, x=64, stride=32)
    with pytest.raises(PatchError, match=r"max_bytes must be >= .*, for a block of"):
        p.map_to_zarr(tmp_path / "a", identity, max_bytes=300_000, progress=False)
    with pytest.raises(PatchError, match=r"max_bytes must be >= .*, for a block of"):
        p.plan("map_to_zarr", max_bytes=300_000)
    plan = p.plan("map_to_zarr", max_bytes=2_000_000)
    assert min(plan["chunks"]) >= 32
    assert plan["runs_per_patch"] < 9


class Reads:
    """An array that notes how much is read of it at once."""

    def __init__(self, samples: Array) -> None:
        self.samples, self.most = samples, 0
        self.shape, self.dtype, self.ndim = samples.shape, samples.dtype, samples.ndim

    def __getitem__(self, key: Any) -> Array:
        found: Array = self.samples[key]
        self.most = max(self.most, found.nbytes)
        return found


@pytest.mark.parametrize("stored", [False, True])
def test_jobs_read_no_more_than_their_budget(tmp_path: Path, stored: bool) -> None:
    source = Reads(np.ones((8, 1024, 1024), "u2"))
    array = dask.array.from_array(source, chunks=(8, 128, 128), asarray=False, meta=np.empty(0))
    image = xr.DataArray(array, dims=("band", "y", "x"))
    p = image.patches(y=64, x=64)
    p.map_to_zarr(
        tmp_path / "a", lambda batch: batch[:, 0].astype("u1"),
        output={"dims": ("y", "x"), "dtype": "u1"}, taper="flat", max_bytes="4 MiB",
        progress=False, materialize=tmp_path / "b" if stored else None,
    )  # fmt: skip
    assert 0 < source.most <= 4 << 20


def test_a_task_of_a_job_holds_what_is_planned(tmp_path: Path) -> None:
    image = opened(xr.DataArray(np.ones((2048, 2048), "u1"), dims=("y", "x")), tmp_path / "a")
    p = image.patches(y=64, x=64, stride=32)
    how: dict[str, Any] = {"max_bytes": "32 MiB", "batch_size": 8}
    job: dict[str, Any] = {"fill_value": 0, "progress": False}
    for reduce in ("mean", "sum"):
        plan = p.plan("map_to_zarr", reduce=reduce, **how)
        p.map_to_zarr(tmp_path / f"{reduce}0", identity, reduce=reduce, **job, **how)
        tracemalloc.start()
        made = p.map_to_zarr(tmp_path / reduce, identity, reduce=reduce, **job, **how)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert made.nbytes == plan["bytes"]
        assert peak <= available_cores() * (plan["bytes_per_task"] + (1 << 23)) + (1 << 22)


def test_a_func_that_cannot_be_sent_leaves_nothing_behind(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    lock = threading.Lock()

    def model(batch: Array) -> Array:
        with lock:
            return batch

    with (
        distributed.Client(processes=True, n_workers=1, dashboard_address=":0"),
        pytest.raises(PatchError, match="cannot be sent to the workers"),
    ):
        IMAGE.patches(**CUT).map_to_zarr(tmp_path / "a", model, progress=False)
    IMAGE.patches(**CUT).map_to_zarr(tmp_path / "a", model, progress=False)


def test_options_of_a_job_need_a_store() -> None:
    with pytest.raises(PatchError, match="resume and overwrite are for store or materialize"):
        IMAGE.patches(**CUT).map_to_zarr(None, identity, resume=True)


def lines() -> xr.DataArray:
    """128 rows of 16 samples that hold their number, to be cut row by row in blocks of 8."""
    rows = np.repeat(np.arange(128.0), 16).reshape(128, 16)
    return xr.DataArray(rows, dims=("y", "x"), name="image")


ROWS: dict[str, Any] = {
    "taper": "flat", "batch_size": 8, "chunks": {"y": 8, "x": 16}, "shards": False,
    "max_bytes": 5000, "progress": False,
}  # fmt: skip


def blocks_of(func: FailsOn) -> set[int]:
    return {number // 8 for batch in func.batches for number in batch}


def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xpatches.jobs.workers.available_cores", lambda: 1)
    monkeypatch.setattr("xpatches.jobs.job._PAUSE", 0.0)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_function_that_fails_in_every_block_fails_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    one_core(monkeypatch)
    p, func = lines().patches(y=1, x=16), FailsOn(*range(128))
    assert (
        p.plan("map_to_zarr", **{key: ROWS[key] for key in ("max_bytes", "chunks", "shards")})[
            "tasks"
        ]
        == 16
    )
    with pytest.raises(JobError, match="stopped, for func fails alike in block after") as caught:
        p.map_to_zarr(tmp_path / "a", func, retries=retries, **ROWS)
    assert (
        str(caught.value)
        .splitlines()[0]
        .endswith(
            f"0 of 16 blocks of store {tmp_path / 'a'} are done and stay; mend func, "
            "resume=True goes on:"
        )
    )
    assert isinstance(caught.value.__cause__, MapError)
    assert caught.value.failures[0].block == 0
    # What was submitted at once may have begun; a batch is searched once, and tried again whole.
    assert len([batch for batch in func.batches if len(batch) == 8]) <= 4 * (1 + retries)
    assert len([batch for batch in func.batches if batch == [0]]) == 1
    mended = FailsOn()
    made = p.map_to_zarr(tmp_path / "a", mended, resume=True, **ROWS)
    np.testing.assert_array_equal(made, lines())


def test_what_is_done_stays_when_a_function_begins_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_core(monkeypatch)
    p, func = lines().patches(y=1, x=16), FailsOn(*range(24, 128))
    with pytest.raises(JobError, match=r"block after block; 3 of 16 blocks of store .* are done"):
        p.map_to_zarr(tmp_path / "a", func, retries=0, **ROWS)
    mended = FailsOn()
    p.map_to_zarr(tmp_path / "a", mended, resume=True, **ROWS)
    assert blocks_of(mended) == set(range(3, 16))


@pytest.mark.parametrize("bad", [(0, 16, 32, 48), (5,), (0, 127)])
def test_a_function_that_fails_here_and_there_is_run_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: tuple[int, ...]
) -> None:
    one_core(monkeypatch)
    p, func = lines().patches(y=1, x=16), FailsOn(*bad)
    with pytest.raises(JobError, match=f"^{len(bad)} of 16 blocks .*the others are done") as caught:
        p.map_to_zarr(tmp_path / "a", func, retries=2, **ROWS)
    assert blocks_of(func) == set(range(16))
    for number, failure in zip(bad, caught.value.failures, strict=True):
        assert f"origin y={number}," in str(failure)
    for number in bad:  # alone once, however often its block is tried
        assert func.batches.count([number]) == 1


def test_other_errors_in_every_block_do_not_stop_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_core(monkeypatch)
    monkeypatch.setattr("xpatches.jobs.blocks.Job.write", lambda job, number: 1 / 0)
    with pytest.raises(JobError, match=r"^16 of 16 blocks"):
        lines().patches(y=1, x=16).map_to_zarr(tmp_path / "a", np.copy, retries=0, **ROWS)


def test_a_function_that_fails_on_all_workers_fails_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("xpatches.jobs.job._PAUSE", 0.0)
    with (
        distributed.Client(
            processes=True, n_workers=1, threads_per_worker=1, dashboard_address=None
        ),
        pytest.raises(JobError, match="fails alike in block after block; 0 of 16 blocks"),
    ):
        lines().patches(y=1, x=16).map_to_zarr(tmp_path / "a", FailsOn(*range(128)), **ROWS)
