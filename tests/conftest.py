import os
import signal
from collections.abc import Iterator
from typing import Any

import dask
import pytest
from hypothesis import settings

from stores import CountingStore, FailingStore, single_objects
from xpatches.jobs.writer import Run

# HYPOTHESIS_PROFILE names one: "quick" as one works and "thorough" before a change lands try the
# same examples at each run, "long" tries others each time.
settings.register_profile("quick", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=120, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=400, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> Iterator[None]:
    """Let jobs be interrupted that tests start, also where a background shell ignores interrupts.

    What is ignored here is ignored by them; what is handled here is not.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def counting_store() -> Iterator[type[CountingStore]]:
    CountingStore.reads.clear()
    yield CountingStore
    CountingStore.reads.clear()


@pytest.fixture
def no_compute() -> Iterator[None]:
    """Fail when anything computes a dask graph."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed a dask graph")

    with dask.config.set(scheduler=refuse):
        yield


@pytest.fixture(autouse=True)
def _synchronous() -> Iterator[None]:
    """Compute in this thread: tests of small arrays need no pool."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(name="single_objects")
def _single_objects() -> Iterator[None]:
    with single_objects():
        yield


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[FailingStore]:
    FailingStore.refuse = staticmethod(lambda key: False)
    FailingStore.written.clear()
    publish = Run.publish

    def publish_or_fail(run: Run, objects: dict[str, bytes]) -> None:
        if isinstance(run.folder.store, FailingStore):
            if any(map(FailingStore.refuse, objects)):
                raise OSError(28, "No space left on device")
            FailingStore.written.extend(objects)
        publish(run, objects)

    monkeypatch.setattr(Run, "publish", publish_or_fail)
    monkeypatch.setattr("xpatches.jobs.job._PAUSE", 0.0)
    return FailingStore
