"""Where the blocks of a job run: threads, or the workers of a dask client.

Submission is windowed. A scheduler holds a few blocks per worker, however many there are; it is
sent the job once per worker, and numbers of blocks after that, several at a time: dask keeps some
250 bytes for every submission as long as it runs.
"""

import queue
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from xpatches.kernel import available_cores

TICK = 0.2
"""Seconds after which a wait looks around."""
_EACH = 4
"""Blocks that are submitted per thread of a worker, at most; half of them, so that none waits."""
_LEAST = 4
"""Blocks that are submitted to a cluster whose workers are still to come."""
_RECOUNTED = 5.0
"""Seconds after which the threads of a cluster are counted again."""

_CARRIED: dict[str, Any] = {}
"""The jobs that this process, a worker, was sent."""


@dataclass(frozen=True)
class Workers:
    """What runs blocks."""

    submit: Callable[[str, Sequence[int]], "list[Future[Any]]"]
    """Call a method of the job with the number of each of some blocks."""
    threads: Callable[[], int]
    """How many blocks run at once."""


def workers_for(job: Any) -> AbstractContextManager[Workers]:
    """Take the workers of the dask client that is active, or as many threads as there are cores."""
    if "distributed" in sys.modules:  # else there is no client
        from distributed import Client

        try:
            return _cluster(Client.current(), job)  # type: ignore[no-untyped-call]
        except ValueError:
            pass
    return _threads(job)


@contextmanager
def _threads(job: Any) -> Iterator[Workers]:
    number = available_cores()
    with ThreadPoolExecutor(number) as pool:

        def submit(method: str, numbers: Sequence[int]) -> "list[Future[Any]]":
            return [pool.submit(getattr(job, method), n) for n in numbers]

        yield Workers(submit, lambda: number)


@contextmanager
def _cluster(client: Any, job: Any) -> Iterator[Workers]:
    from distributed import WorkerPlugin

    class Carry(WorkerPlugin):
        """Gives every worker the job, also one that replaces a dead one."""

        def setup(self, worker: Any) -> None:
            _carry(name, job)

        def teardown(self, worker: Any) -> None:
            _carry(name, None)

    name = f"xpatches-{uuid.uuid4().hex}"
    client.register_plugin(Carry(), name=name)
    counted, threads = 0.0, 0

    def count() -> int:
        nonlocal counted, threads
        if not threads or time.monotonic() - counted > _RECOUNTED:
            counted, threads = time.monotonic(), sum(client.nthreads().values())
        return threads

    def submit(method: str, numbers: Sequence[int]) -> "list[Future[Any]]":
        same = [[what] * len(numbers) for what in (name, method)]
        return [*map(_local, client.map(_call, *same, numbers, pure=False, batch_size=None))]

    try:
        yield Workers(submit, count)
    except Exception as error:
        if client.status == "running":
            raise
        raise ConnectionError(
            f"the dask cluster is gone, {error!r}; what is done stays, resume=True goes on"
        ) from error
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(name)


def _local(remote: Any) -> "Future[Any]":
    """Follow what runs on a cluster; cancelling it here cancels it there, unless it runs."""
    local: Future[Any] = Future()

    def end(remote: Any) -> None:
        if local.set_running_or_notify_cancel():
            try:
                local.set_result(remote.result())
            except BaseException as error:  # whatever the block raised, or the loss of the cluster
                local.set_exception(error)

    def cancel(local: "Future[Any]") -> None:
        if local.cancelled():
            remote.cancel()

    local.add_done_callback(cancel)
    remote.add_done_callback(end)
    return local


def _carry(name: str, job: Any) -> None:
    if job is None:
        _CARRIED.pop(name, None)
    else:
        _CARRIED[name] = job


def _call(name: str, method: str, number: int) -> Any:
    return getattr(_CARRIED[name], method)(number)


class Window:
    """Blocks that are submitted and not yet finished: a few per thread, whatever the job's size."""

    def __init__(self, workers: Workers, method: str) -> None:
        self._workers, self._method = workers, method
        self._ready: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
        self._futures: dict[int, Future[Any]] = {}

    def __len__(self) -> int:
        return len(self._futures)

    @property
    def room(self) -> int:
        """How many blocks to submit; none as long as the workers have enough to do."""
        most = max(_LEAST, _EACH * self._workers.threads())
        return most - len(self) if len(self) <= most // 2 else 0

    def add(self, numbers: Sequence[int]) -> None:
        """Submit blocks."""
        futures = self._workers.submit(self._method, numbers)
        self._futures.update(zip(numbers, futures, strict=True))
        for number, future in zip(numbers, futures, strict=True):
            future.add_done_callback(partial(self._end, number))

    def _end(self, number: int, future: "Future[Any]") -> None:
        self._ready.put((number, future))

    def take(self, timeout: float = TICK) -> tuple[int, Any] | None:
        """Wait for a block: its number, and what its method returned or raised."""
        try:
            number, future = self._ready.get(timeout=timeout)
        except queue.Empty:
            return None
        del self._futures[number]
        return number, _outcome(future)

    def over(self, numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Go through blocks, in the order in which they finish."""
        left = iter(numbers)
        while True:
            if some := list(islice(left, self.room)):
                self.add(some)
            if not len(self):
                return
            if taken := self.take():
                yield taken

    def drain(self) -> Iterator[tuple[int, Any]]:
        """Cancel what has not begun, and wait for what has; as `over`."""
        futures = dict(self._futures)
        for future in futures.values():
            future.cancel()
        wait(futures.values())  # not for the queue: an interrupt may have come just after it gave
        for number, future in futures.items():
            yield number, _outcome(future)
        self._futures.clear()


def _outcome(future: "Future[Any]") -> Any:
    """Give what a call returned or raised."""
    error = CancelledError() if future.cancelled() else future.exception()
    return future.result() if error is None else error
