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
from pickle import PicklingError
from typing import Any

from xpatches.errors import PatchError
from xpatches.kernel import available_cores
from xpatches.redaction import redacted

TICK = 0.2
"""Seconds after which a wait looks around."""
_EACH = 4
"""Blocks that are submitted per thread of a worker, at most; half of them, so that none waits."""
_LEAST = 4
"""Blocks that are submitted to a cluster whose workers are still to come."""
_RECOUNTED = 5.0
"""Seconds after which the threads of a cluster are counted again."""


@dataclass(frozen=True)
class Workers:
    """What runs blocks."""

    submit: Callable[[str, Sequence[int]], "list[Future[Any]]"]
    """Call a method of the job with the number of each of some blocks."""
    threads: Callable[[], int]
    """How many blocks run at once."""
    stop: Callable[[], None]
    """Let blocks that have not begun end at once."""


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

        yield Workers(submit, lambda: number, lambda: None)


@contextmanager
def _cluster(client: Any, job: Any) -> Iterator[Workers]:
    from distributed import WorkerPlugin

    class Carry(WorkerPlugin):
        """Gives every worker the job, also one that replaces a dead one."""

        def setup(self, worker: Any) -> None:
            setattr(worker, name, job)

        def teardown(self, worker: Any) -> None:
            delattr(worker, name)

    name = f"xpatches_{uuid.uuid4().hex}"
    try:
        client.register_plugin(Carry(), name=name)
    except (TypeError, AttributeError, ValueError, PicklingError) as error:
        raise PatchError(
            f"the job cannot be sent to the workers of the dask client: {redacted(error)}; use an "
            "image and a func that can be pickled (of Icechunk a read-only session can), or a "
            "factory"
        ) from error
    counted, threads, stopped = 0.0, 0, False

    def count() -> int:
        nonlocal counted, threads
        if not threads or time.monotonic() - counted > _RECOUNTED:
            counted, threads = time.monotonic(), sum(client.nthreads().values())
        return threads

    def submit(method: str, numbers: Sequence[int]) -> "list[Future[Any]]":
        same = [[what] * len(numbers) for what in (name, method)]
        return [*map(_local, client.map(_call, *same, numbers, pure=False, batch_size=None))]

    def stop() -> None:
        nonlocal stopped
        if not stopped and client.status == "running":
            stopped = True
            client.unregister_worker_plugin(name)

    try:
        yield Workers(submit, count, stop)
    except Exception as error:
        if client.status == "running":
            raise
        raise ConnectionError(
            f"the dask cluster is gone, {redacted(repr(error))}; what is done stays, "
            "resume=True goes on"
        ) from error
    finally:
        stop()


def _local(remote: Any) -> "Future[Any]":
    """Follow what runs on a cluster. It cannot be cancelled: whether it has begun is not known."""
    local: Future[Any] = Future()
    local.set_running_or_notify_cancel()

    def end(remote: Any) -> None:
        try:
            made = remote.result()
            if isinstance(made, CancelledError):
                raise made
            local.set_result(made)
        except BaseException as error:  # whatever the block raised, or the loss of the cluster
            local.set_exception(error)

    remote.add_done_callback(end)
    return local


def _call(name: str, method: str, number: int) -> Any:
    from distributed import get_worker

    job = getattr(get_worker(), name, None)
    if job is None:  # what is raised here, the worker would tell of with a traceback
        return CancelledError("the job was stopped before this block began")
    return getattr(job, method)(number)


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
        self._workers.stop()
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
