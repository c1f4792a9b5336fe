"""Where the blocks of a job run: threads, or the workers of a dask client.

Submission is windowed. A scheduler holds a few blocks per worker, however many there are; it is
sent the job once per worker, and numbers of blocks after that, several at a time: dask keeps some
250 bytes for every submission as long as it runs.
"""

import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import cloudpickle  # which dask needs as well

from xpatches.credentials import redacted
from xpatches.errors import MapError, PatchError
from xpatches.threads import available_cores

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
    """Take the workers of the dask client that is active, or as many threads as there are cores.

    Within a task of a cluster these are the cluster's, as for dask itself.
    """
    if "distributed" in sys.modules:  # else there is no client
        from distributed import Client, get_worker

        try:
            get_worker()
        except ValueError:
            pass
        else:
            return _within_task(job)
        try:
            return _cluster(Client.current(), job)  # type: ignore[no-untyped-call]
        except ValueError:
            pass
    return _threads(job)


@contextmanager
def _threads(job: Any) -> Iterator[Workers]:
    """Run blocks in threads that do not keep alive a process whose user wants it to end."""
    number = available_cores()
    calls = queue.SimpleQueue[tuple[Future[Any], Callable[[int], Any], int] | None]()
    threads: list[threading.Thread] = []

    def work() -> None:
        while call := calls.get():
            future, method, block = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(_contained(method, block))
                except Exception as error:  # whatever the block raised
                    future.set_exception(error)

    def submit(method: str, numbers: Sequence[int]) -> "list[Future[Any]]":
        futures: list[Future[Any]] = [Future() for _ in numbers]
        for future, block in zip(futures, numbers, strict=True):
            calls.put((future, getattr(job, method), block))
            if len(threads) < number:
                thread = threading.Thread(target=work, name="xpatches-block", daemon=True)
                threads.append(thread)
                thread.start()
        return futures

    try:
        yield Workers(submit, lambda: number, lambda: None)
    finally:
        for _ in threads:
            calls.put(None)


@contextmanager
def _within_task(job: Any) -> Iterator[Workers]:
    """Take the workers of the cluster that runs this; its own thread is given to another task."""
    from distributed import worker_client

    with worker_client() as client, _cluster(client, job) as workers:
        yield workers


@contextmanager
def _cluster(client: Any, job: Any) -> Iterator[Workers]:
    from distributed import WorkerPlugin

    if client.asynchronous:
        raise PatchError(
            "the dask client is asynchronous, and a job waits for its blocks: run it in a thread, "
            "await asyncio.to_thread(p.to_zarr, store), say, or use a synchronous client"
        )

    name = f"xpatches_{uuid.uuid4().hex}"

    class Carry(WorkerPlugin):
        """Gives every worker the job, also one that replaces a dead one."""

        def __init__(self, pickled: bytes) -> None:
            self.pickled = pickled

        def setup(self, worker: Any) -> None:
            pickled, self.pickled = self.pickled, b""  # which may hold an image
            setattr(worker, name, cloudpickle.loads(pickled))

        def teardown(self, worker: Any) -> None:
            vars(worker).pop(name, None)  # there is none if it could not be loaded

    try:
        carry = Carry(cloudpickle.dumps(job))
    except Exception as error:  # whatever an object raises that cannot be pickled
        raise PatchError(
            f"the job cannot be sent to the workers of the dask client{_culprit(job)}: "
            f"{redacted(error)}; use an image and a func that can be pickled (of Icechunk a "
            "read-only session can), or a factory"
        ) from error
    gone = "the dask cluster is gone; what is done stays, resume=True goes on"
    counted, threads, stopped = 0.0, 0, False

    def count() -> int:
        nonlocal counted, threads
        if client.status != "running":  # a scheduler that comes back knows nothing of the job
            raise ConnectionError(gone)
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
        try:
            client.register_plugin(carry, name=name)
        except Exception as error:  # whatever loading it raises
            raise PatchError(
                f"the workers of the dask client cannot load the job: {redacted(repr(error))}; "
                "install there what func and the image need"
            ) from error
        del carry  # which holds the job once more
        yield Workers(submit, count, stop)
    except Exception as error:
        if client.status == "running":
            raise
        raise ConnectionError(gone) from error
    finally:
        stop()


def _culprit(job: Any) -> str:
    """Name the innermost function, not ours, that keeps a job from being pickled."""
    path, left = list[Any](), [job]
    while left:
        path.append(left[0])
        inner = (part for part in _parts(path[-1]) if not any(part is held for held in path))
        left = [part for part in inner if not _pickles(part)]
    named = [held.func if isinstance(held, partial) else held for held in path if callable(held)]
    named = [held if hasattr(held, "__qualname__") else type(held) for held in named]
    names = [f.__qualname__ for f in named if not str(f.__module__).startswith("xpatches.")]
    return f", because of {names[-1]}" if names else ""


def _parts(held: Any) -> list[Any]:
    """Give what an object is pickled as, as far as it says."""
    if isinstance(held, dict):
        return [*held.values()]
    if isinstance(held, tuple | list):
        return [*held]
    try:
        return [*held.__reduce_ex__(4)[1:3]]  # arguments, and the state
    except Exception:  # whatever an object raises that cannot be pickled
        return []


def _pickles(held: Any) -> bool:
    try:
        cloudpickle.dumps(held)
    except Exception:  # as above
        return False
    return True


def _local(remote: Any) -> "Future[Any]":
    """Follow what runs on a cluster. It cannot be cancelled: whether it has begun is not known."""
    local: Future[Any] = Future()
    local.set_running_or_notify_cancel()

    def end(remote: Any) -> None:
        try:
            answer = remote.result()
            if isinstance(answer, CancelledError):
                raise answer
            local.set_result(answer)
        except BaseException as error:  # whatever the block raised, or the loss of the cluster
            local.set_exception(error)

    remote.add_done_callback(end)
    return local


def _call(name: str, method: str, number: int) -> Any:
    from distributed import get_worker

    job = getattr(get_worker(), name, None)
    if job is None:  # what is raised here, the worker would tell of with a traceback
        return CancelledError("the job was stopped before this block began")
    return _contained(getattr(job, method), number)


def _contained(method: Callable[[int], Any], number: int) -> Any:
    """Call a method of the job; what would end the thread or the worker fails the block alone.

    Interrupts of the user reach the main thread only, which runs no blocks.
    """
    try:
        return method(number)
    except Exception:
        raise
    except BaseException as error:
        failure = MapError(f"func raised {error!r}, which is no Exception; raise one that is")
        failure.reason = repr(error)
        raise failure from error


class Window:
    """Blocks that are submitted and not yet finished: a few per thread, whatever the job's size."""

    def __init__(self, workers: Workers, method: str) -> None:
        self._workers, self._method = workers, method
        self._ready: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
        self._futures: dict[int, Future[Any]] = {}
        self._since: dict[int, float] = {}

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
        self._note_begun()

    def _note_begun(self) -> None:
        """Note when blocks begin: in their order, as threads become free."""
        now = time.monotonic()
        for number in islice(self._futures, self._workers.threads()):
            self._since.setdefault(number, now)

    @property
    def longest(self) -> tuple[int, float] | None:
        """The block that is underway for longest, and since when; None where there is none."""
        return next(iter(self._since.items()), None)

    def _end(self, number: int, future: "Future[Any]") -> None:
        self._ready.put((number, future))

    def take(self, timeout: float = TICK) -> tuple[int, Any] | None:
        """Wait for a block: its number, and what its method returned or raised."""
        try:
            number, future = self._ready.get(timeout=timeout)
        except queue.Empty:
            return None
        del self._futures[number]
        self._since.pop(number, None)
        self._note_begun()
        return number, _outcome(future)

    def drain(self) -> Iterator[tuple[int, Any]]:
        """Cancel what has not begun, and wait for what has; as `take`."""
        self._workers.stop()
        futures = dict(self._futures)
        for future in futures.values():
            future.cancel()
        # Not for the queue: an interrupt may have come just after it gave.
        while wait(futures.values(), TICK).not_done:  # which lets another interrupt through
            pass
        for number, future in futures.items():
            yield number, _outcome(future)
        self._futures.clear()
        self._since.clear()


def _outcome(future: "Future[Any]") -> Any:
    """Give what a call returned or raised."""
    error = CancelledError() if future.cancelled() else future.exception()
    return future.result() if error is None else error
