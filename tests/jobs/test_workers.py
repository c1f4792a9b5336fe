import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from benchmarks.writing import over
from stores import files
from xpatches.errors import JobError
from xpatches.jobs import blocks
from xpatches.jobs import job as jobs
from xpatches.jobs.folder import JOB
from xpatches.jobs.workers import Window, Workers, workers_for

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("single_objects")


class Counted:
    """Blocks that do nothing, and how many are underway."""

    def __init__(self) -> None:
        self.underway = self.most = self.made = 0
        self._lock = threading.Lock()

    def submit(self, pool: ThreadPoolExecutor) -> Any:
        def begin(method: str, numbers: Sequence[int]) -> Any:
            with self._lock:
                self.underway += len(numbers)
                self.most = max(self.most, self.underway)
            futures = [pool.submit(getattr(self, method), number) for number in numbers]
            for future in futures:
                future.add_done_callback(self._end)
            return futures

        return begin

    def work(self, number: int) -> int:
        self.made += 1
        return number

    def _end(self, future: Any) -> None:
        with self._lock:
            self.underway -= 1


@pytest.mark.parametrize("blocks", [10, 10_000])
def test_a_few_blocks_per_worker_are_outstanding_whatever_their_number(blocks: int) -> None:
    job = Counted()
    with ThreadPoolExecutor(3) as pool:
        window = Window(Workers(job.submit(pool), lambda: 3, lambda: None), "work")
        found = [number for number, made in over(window, range(blocks)) if made == number]
    assert sorted(found) == list(range(blocks))
    assert job.most <= 12
    assert job.made == blocks


def test_draining_waits_for_what_has_begun_and_gives_what_an_interrupt_lost() -> None:
    job, go_on = Counted(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        window = Window(Workers(job.submit(pool), lambda: 1, lambda: None), "work")
        window.add([0])
        while job.underway:
            time.sleep(0.001)
        assert window._ready.get()  # taken by who was interrupted before it took note
        pool.submit(go_on.wait)
        window.add([1])
        go_on.set()
        drained = dict(window.drain())
    assert drained[0] == 0
    assert drained[1] == 1 or isinstance(drained[1], CancelledError)
    assert not len(window)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def image(tmp_path: Path) -> Any:
    samples = np.random.default_rng(0).integers(0, 999, (200, 300)).astype("uint16")
    labelled = xr.DataArray(samples, {"x": np.arange(300.0)}, ("y", "x"), "image")
    path = tmp_path / "image.zarr"
    labelled.chunk(y=50, x=50).to_dataset().to_zarr(path, consolidated=False)
    return xr.open_zarr(path, chunks=None, consolidated=False).image


def write(image: Any, out: Path, **given: Any) -> None:
    small = {"chunks": {"y": 2, "x": 2}, "shards": {"y": 4, "x": 4}}
    image.patches(y=16, x=16, stride=8).to_zarr(out, **small, progress=False, **given)


def test_workers_of_a_cluster_write_the_same_objects(
    client: Any, image: Any, tmp_path: Path
) -> None:
    with client.as_current():
        write(image, tmp_path / "cluster.zarr")
        write(image.compute(), tmp_path / "memory.zarr")
        write(image.chunk(y=40, x=60) + np.uint16(0), tmp_path / "dask.zarr")
    here = files(tmp_path / "cluster.zarr")
    assert here == files(tmp_path / "memory.zarr") == files(tmp_path / "dask.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed.Client, "current", no_client)
        write(image, tmp_path / "threads.zarr")
    assert here == files(tmp_path / "threads.zarr")


def no_client(*_: Any) -> None:
    raise ValueError("no client")


def pid(dask_worker: Any) -> int:
    return os.getpid()


def once_begun(out: Path, act: Callable[[], Any]) -> threading.Thread:
    """Do something as soon as a job has written a block."""

    def wait() -> None:
        while not [*(out / JOB / "blocks").glob("*/*")]:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


class Slow(blocks.Job):
    """Takes its time, so that there is some to kill a worker in."""

    def write(self, number: int) -> int:
        time.sleep(0.1)
        return super().write(number)


def test_a_worker_that_is_killed_loses_nothing(
    client: Any, image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(image, tmp_path / "peace.zarr")
    monkeypatch.setattr("xpatches.datasets.write.Job", Slow)
    victims = [*client.run(pid).values()]
    out = tmp_path / "out.zarr"
    with client.as_current():
        killer = once_begun(out, lambda: os.kill(victims[0], signal.SIGKILL))
        write(image, out)
    killer.join()
    assert victims[0] not in client.run(pid).values()
    assert files(tmp_path / "out.zarr") == files(tmp_path / "peace.zarr")


def test_blocks_that_have_begun_are_waited_for_when_the_job_is_stopped(
    client: Any, image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xpatches.datasets.write.Job", Slow)
    out = tmp_path / "out.zarr"

    class Stop(jobs.Report):
        def block(self, number: int, nbytes: int) -> None:
            if number == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr("xpatches.jobs.progress.Progress", Stop)
    p = image.patches(y=16, x=16, stride=8)
    with client.as_current(), pytest.raises(KeyboardInterrupt, match="blocks of store"):
        p.to_zarr(out, chunks={"y": 2, "x": 2}, shards={"y": 4, "x": 4})
    found = files(out)
    time.sleep(0.5)
    assert files(out) == found  # nobody writes on
    monkeypatch.setattr("xpatches.datasets.write.Job", blocks.Job)
    write(image, out, resume=True)
    write(image, tmp_path / "peace.zarr")
    assert files(out) == files(tmp_path / "peace.zarr")


def test_a_worker_that_leaves_does_not_take_the_job_from_others_of_its_process(
    image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xpatches.datasets.write.Job", Slow)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        leaver = once_begun(tmp_path / "out.zarr", lambda: cluster.scale(1))
        write(image, tmp_path / "out.zarr", retries=0)
        leaver.join()
    write(image, tmp_path / "peace.zarr")
    assert files(tmp_path / "out.zarr") == files(tmp_path / "peace.zarr")


class Idle:
    """Blocks that do nothing."""

    def work(self, number: int) -> int:
        return number


def test_the_scheduler_holds_a_few_blocks_only(client: Any) -> None:
    held: list[int] = []

    def count(dask_scheduler: Any) -> int:
        return len(dask_scheduler.tasks)

    with client.as_current(), workers_for(Idle()) as workers:
        window = Window(workers, "work")
        for i, (number, made) in enumerate(over(window, range(500))):
            assert number == made
            if i % 50 == 0:
                held.append(client.run_on_scheduler(count))
    assert 0 < max(held) <= 20


def test_a_scheduler_that_dies_ends_the_job_which_can_be_resumed(
    image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(image, tmp_path / "peace.zarr")
    monkeypatch.setattr("xpatches.datasets.write.Job", Slow)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as cluster:
        client = distributed.Client(cluster)
        closer = once_begun(tmp_path / "out.zarr", cluster.close)
        with client.as_current(), pytest.raises((ConnectionError, JobError)):
            write(image, tmp_path / "out.zarr", retries=0)
        closer.join()
        client.close()
    monkeypatch.setattr("xpatches.datasets.write.Job", blocks.Job)
    write(image, tmp_path / "out.zarr", resume=True)
    assert files(tmp_path / "out.zarr") == files(tmp_path / "peace.zarr")


SLOW = """
import time

def model(batch):
    time.sleep(0.1)
    return batch
"""


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_of_the_command_is_one_line(image: Any, tmp_path: Path, times: int) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    out = tmp_path / "out.zarr"
    command = [
        str(Path(sys.executable).with_name("xpatches")),
        *("map", str(tmp_path / "image.zarr"), str(out), "--func", "slow:model"),
        *("--size", "y=20,x=20", "--taper", "flat", "--chunks", "y=20,x=20", "--workers", "2"),
    ]
    job = subprocess.Popen(
        [*command, "--shards", "y=20,x=20"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while not [*(out / JOB / "blocks").glob("*/*")]:
        assert job.poll() is None
        time.sleep(0.01)
    for _ in range(times):
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does: to workers, too
        time.sleep(0.2)
    _, told = job.communicate(timeout=300)
    assert job.returncode == 130
    assert "Traceback" not in told
    assert all(line.startswith("xpatches: ") for line in told.splitlines())
    last = told.splitlines()[-1]
    assert last.startswith("xpatches: stopped; ") or (times > 1 and last == "xpatches: interrupted")
