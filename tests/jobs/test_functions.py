"""Functions that hang, exit or cannot be sent, and jobs that are begun within dask."""

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import xpatches
from stores import files
from xpatches.errors import JobError, PatchError
from xpatches.jobs import job as jobs

distributed = pytest.importorskip("distributed")

IMAGE = xr.DataArray(np.arange(60 * 70.0).reshape(60, 70), dims=("y", "x"), name="image")
BLOCKS: dict[str, Any] = {"chunks": {"y": 10, "x": 10}, "shards": False, "max_bytes": 30_000}


@contextlib.contextmanager
def one_thread(processes: bool = True) -> Iterator[Any]:
    """A client of a cluster of one worker with one thread."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=processes, dashboard_address=":0",
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client


@pytest.fixture(scope="module")
def clients() -> Iterator[Callable[[bool], Any]]:
    """Clients that are made where they are asked for."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda processes: stack.enter_context(one_thread(processes)))


@pytest.fixture(params=["process", "thread"])
def client(request: pytest.FixtureRequest, clients: Any) -> Iterator[Any]:
    """The client that is active, of a worker that is a process of its own, or a thread of this."""
    client = clients(request.param == "process")
    with client.as_current():
        yield client


@pytest.fixture(params=["threads", "process", "thread"])
def workers(request: pytest.FixtureRequest, clients: Any) -> Iterator[None]:
    """Where blocks run: without a cluster, or on one."""
    if request.param != "threads":
        with clients(request.param == "process").as_current():
            yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed.Client, "current", no_client)
        yield


def no_client(*_: Any, **__: Any) -> None:
    raise ValueError("no client")


def paint(out: Path | str, func: Callable[[Any], Any], **given: Any) -> None:
    """Map a function, as a job of six blocks; the last three hold samples of 1000 or more."""
    how = {**BLOCKS, "progress": False, **given}
    IMAGE.patches(y=10, x=10).map_to_zarr(out, func, **how)


def extract(out: Path | str) -> None:
    """Write patches, as a job."""
    IMAGE.patches(y=10, x=10).to_zarr(out, chunks={"y": 1, "x": 1}, shards=False, progress=False)


def check_extracted(out: Path | str) -> None:
    expected = IMAGE.patches(y=10, x=10).extract()
    xr.testing.assert_identical(xpatches.open_patches(out).compute(), expected)


def test_a_task_writes_on_the_cluster_that_runs_it_also_of_one_thread(
    client: Any, tmp_path: Path
) -> None:
    outs = [str(tmp_path / f"{number}.zarr") for number in range(3)]
    client.gather(client.map(extract, outs))
    for out in outs:
        check_extracted(out)


def nesting(batch: Any, out: str) -> Any:
    if not batch[0, 0, 0]:
        extract(out)
    return batch


def test_a_function_may_write_itself(workers: None, tmp_path: Path) -> None:
    inner = tmp_path / "inner.zarr"
    paint(tmp_path / "out.zarr", functools.partial(nesting, out=str(inner)))
    check_extracted(inner)
    xr.testing.assert_equal(xpatches.open_patches(tmp_path / "out.zarr").compute(), IMAGE)


async def extract_at_once(out: str) -> None:
    extract(out)


def test_a_coroutine_of_a_task_is_told_what_to_do(client: Any, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=r"client is asynchronous, .* in a thread, await"):
        client.submit(extract_at_once, str(tmp_path / "out.zarr")).result(60)


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_tasks_of_the_schedulers_of_dask_write(
    workers: None, tmp_path: Path, scheduler: str
) -> None:
    out = tmp_path / "out.zarr"
    dask.delayed(extract)(out).compute(scheduler=scheduler, num_workers=1)
    check_extracted(out)
    with dask.config.set(scheduler=scheduler):
        extract(tmp_path / "other.zarr")
    check_extracted(tmp_path / "other.zarr")


def test_an_asynchronous_client_is_for_other_threads(tmp_path: Path) -> None:
    refused, written = tmp_path / "refused.zarr", tmp_path / "written.zarr"

    async def main() -> None:
        async with (
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0",
                asynchronous=True,
            ) as cluster,
            distributed.Client(cluster, asynchronous=True),
        ):  # fmt: skip
            with pytest.raises(
                PatchError, match=r"is asynchronous, .* or use a synchronous client"
            ):
                extract(refused)
            await asyncio.to_thread(extract, written)

    asyncio.run(main())
    assert not [path for path in refused.rglob("*") if path.is_file()]
    check_extracted(written)


def test_two_jobs_at_once_in_one_process(workers: None, tmp_path: Path) -> None:
    outs = [tmp_path / "0.zarr", tmp_path / "1.zarr"]
    threads = [threading.Thread(target=extract, args=(out,)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in outs:
        check_extracted(out)


class Odd(BaseException):
    """No Exception."""


def raising(batch: Any, error: str, mended: Path) -> Any:
    if batch[0, 0, 0] >= 1000 and not mended.exists():
        raise {
            "exit": SystemExit(3),
            "interrupt": KeyboardInterrupt(),
            "generator": GeneratorExit(),
            "cancelled": asyncio.CancelledError(),
            "odd": Odd("o"),
        }[error]
    return batch


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("exit", r"SystemExit\(3\)"),
        ("interrupt", r"KeyboardInterrupt\(\)"),
        ("generator", r"GeneratorExit\(\)"),
        ("cancelled", r"CancelledError\(\)"),
        ("odd", r"Odd\('o'\)"),
    ],
)
def test_a_function_that_would_end_its_worker_fails_its_blocks(
    workers: None, tmp_path: Path, error: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_PAUSE", 0.0)
    out = tmp_path / "out.zarr"
    func = functools.partial(raising, error=error, mended=tmp_path / "mended")
    told = rf"block 3, 'image', y=30:60, x=0:30: MapError: func raised {shown}, which is no Exc"
    with pytest.raises(JobError, match=told) as caught:
        paint(out, func)
    assert {failure.block for failure in caught.value.failures} <= {3, 4, 5}
    with pytest.raises(PatchError, match="is incomplete: 3 of 6 blocks are missing"):
        xpatches.open_patches(out)
    (tmp_path / "mended").touch()
    paint(out, func, resume=True)
    xr.testing.assert_equal(xpatches.open_patches(out).compute(), IMAGE)


def dying(batch: Any) -> Any:
    if batch[0, 0, 0] >= 1000:
        os._exit(1)
    return batch


def test_a_function_that_kills_its_worker_fails_its_blocks(tmp_path: Path) -> None:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        one_thread(),
        pytest.raises(JobError, match="KilledWorker: Attempted to run task") as caught,
    ):
        paint(tmp_path / "out.zarr", dying, retries=0)
    assert {type(failure.cause).__name__ for failure in caught.value.failures} == {"KilledWorker"}


class Unsent:
    """Cannot be sent."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not this one")

    def __call__(self, batch: Any) -> Any:
        return batch


def keyed(batch: Any, key: Any) -> Any:
    return batch


def enclosing() -> Callable[[Any], Any]:
    lock = threading.Lock()

    def enclosed(batch: Any) -> Any:
        with lock:
            return batch

    return enclosed


@pytest.mark.parametrize(
    ("func", "named"),
    [
        (Unsent(), "because of Unsent: not this one"),
        (functools.partial(keyed, key=[threading.Lock()]), "because of keyed: cannot pickle '_th"),
        (enclosing(), r"because of enclosing.<locals>.enclosed: cannot pickle '_thread.lock'"),
    ],
)
def test_a_function_that_cannot_be_pickled_is_named(
    client: Any, tmp_path: Path, func: Any, named: str
) -> None:
    with pytest.raises(PatchError, match=named):
        paint(tmp_path / "out.zarr", func)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    paint(tmp_path / "out.zarr", np.copy)
    before = files(tmp_path)
    with pytest.raises(PatchError, match=named):
        paint(tmp_path / "out.zarr", func, overwrite=True)
    assert files(tmp_path) == before


def fail_to_load() -> None:
    raise ModuleNotFoundError("No module named 'elsewhere'")


class Unloaded:
    """Can be sent, and not be loaded."""

    def __reduce__(self) -> Any:
        return fail_to_load, ()

    def __call__(self, batch: Any) -> Any:
        return batch


def test_a_job_that_workers_cannot_load_leaves_nothing_with_them(tmp_path: Path) -> None:
    with one_thread() as client:
        with pytest.raises(
            PatchError, match=r"cannot load the job: ModuleNotFoundError\(.*install"
        ):
            paint(tmp_path / "out.zarr", Unloaded())
        client.restart(timeout=60)  # what is left would be given to the new worker
        extract(tmp_path / "out.zarr")
    check_extracted(tmp_path / "out.zarr")


def waiting(batch: Any, begun: Path) -> Any:
    begun.touch()
    time.sleep(0.1)
    return batch


def test_a_cluster_that_disappears_is_what_is_told_of(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with one_thread() as client:

        def close() -> None:
            while not begun.exists():
                time.sleep(0.01)
            client.cluster.close()

        closer = threading.Thread(target=close)
        closer.start()
        message = "^the dask cluster is gone; what is done stays, resume=True goes on$"
        with pytest.raises(ConnectionError, match=message):
            paint(tmp_path / "out.zarr", functools.partial(waiting, begun=begun), retries=0)
        closer.join()
    paint(tmp_path / "out.zarr", functools.partial(waiting, begun=begun), resume=True)
    xr.testing.assert_equal(xpatches.open_patches(tmp_path / "out.zarr").compute(), IMAGE)


HANGING = """
import sys
import threading

def model(batch):
    if batch[0, 0, 0] >= 1000:
        open({hangs!r}, "w").close()
        threading.Event().wait()
    return batch

if __name__ == "__main__":
    import contextlib
    import xarray as xr, xpatches
    image = xr.open_zarr({image!r}, chunks=None, consolidated=False).image
    with contextlib.ExitStack() as stack:
        if sys.argv[1:]:
            from distributed import Client, LocalCluster
            cluster = LocalCluster(
                n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50
            )
            stack.enter_context(Client(stack.enter_context(cluster)))
        image.patches(y=10, x=10).map_to_zarr(
            "out.zarr", model, chunks=dict(y=10, x=10), shards=False, max_bytes=30_000
        )
"""
MAP = ["map", "image.zarr", "out.zarr", "--func", "hanging:model", "--size", "y=10,x=10"]
MAP += ["--chunks", "y=10,x=10", "--shards", "y=10,x=10", "--max-bytes", "30000"]
LIBRARY = [sys.executable, "hanging.py"]
COMMAND = [str(Path(sys.executable).with_name("xpatches")), *MAP]


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (LIBRARY, signal.SIGINT),
        ([*LIBRARY, "cluster"], signal.SIGINT),
        (COMMAND, signal.SIGINT),
        (COMMAND, signal.SIGTERM),
        ([*COMMAND, "--workers", "2"], signal.SIGINT),
        ([*COMMAND, "--workers", "2"], signal.SIGTERM),
    ],
)
def test_a_function_that_hangs_is_waited_for_until_the_second_interrupt(
    tmp_path: Path, command: list[str], number: signal.Signals
) -> None:
    hangs, image = tmp_path / "hangs", tmp_path / "image.zarr"
    IMAGE.to_dataset().chunk(y=10, x=10).to_zarr(image, consolidated=False)
    code = HANGING.format(hangs=str(hangs), image=str(image))
    (tmp_path / "hanging.py").write_text(code)
    job = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert job.stderr is not None
    while not hangs.exists():
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(number)
    while (
        "stopping; blocks that have begun are finished, Ctrl-C again" not in job.stderr.readline()
    ):
        assert job.poll() is None
    job.send_signal(number)
    _, told = job.communicate(timeout=60)
    last = told.splitlines()[-1]
    if command[:2] == LIBRARY:
        assert job.returncode == -signal.SIGINT
        assert last.startswith("KeyboardInterrupt: stopped; ")
    else:
        assert job.returncode == 130
        assert last.startswith("xpatches: stopped; ")
        assert "Traceback" not in told
