import io
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from xpatches.jobs import job as jobs
from xpatches.jobs.progress import Progress
from xpatches.jobs.workers import Window, Workers


class Clock:
    """Seconds, as a test lets them pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("job", "workers", "progress"):
        monkeypatch.setattr(
            f"xpatches.jobs.{module}.time", SimpleNamespace(monotonic=clock.monotonic)
        )
    return clock


def test_a_block_that_takes_minutes_is_told_of_every_minute(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told, go_on, take = list[tuple[str, float, float]](), threading.Event(), Window.take

    def later(window: Window, timeout: float) -> Any:
        clock.now += 20
        if clock.now < 200:
            return None
        go_on.set()
        return take(window, 60)

    class Told(jobs.Report):
        def underway(self, block: str, seconds: float) -> None:
            told.append((block, seconds, clock.now))

    def model(batch: Any) -> Any:
        go_on.wait()
        return batch

    monkeypatch.setattr(Window, "take", later)
    monkeypatch.setattr("xpatches.jobs.progress.Progress", Told)
    image = xr.DataArray(np.arange(100.0).reshape(10, 10), dims=("y", "x"), name="image")
    image.patches(y=5, x=5).map_to_zarr(tmp_path / "out.zarr", model, chunks={"y": 5, "x": 5})
    block = "0, 'image', y=0:10, x=0:10"
    assert told == [(block, 60.0, 60.0), (block, 120.0, 120.0), (block, 180.0, 180.0)]


def test_blocks_are_underway_as_threads_become_free(clock: Clock) -> None:
    futures = [Future[int]() for _ in range(4)]
    workers = Workers(lambda _, numbers: [futures[n] for n in numbers], lambda: 2, lambda: None)
    window = Window(workers, "work")
    assert window.longest is None
    window.add(range(4))
    assert window.longest == (0, 0.0)
    for clock.now, done, longest in ((5.0, 1, (0, 0.0)), (7.0, 0, (2, 5.0)), (9.0, 2, (3, 7.0))):
        futures[done].set_result(done)
        assert window.take() == (done, done)
        assert window.longest == longest


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "bar"])
def test_a_block_that_is_underway_and_an_interrupt_are_lines(clock: Clock, terminal: bool) -> None:
    stream: Any = io.StringIO()
    stream.isatty = lambda: terminal
    progress = Progress(stream)
    progress.begin(6, 0, 1000)
    progress.block(0, 100)
    progress.underway("3, 'image', y=30:60, x=0:30", 75.0)
    progress.stopping()
    progress.block(1, 100)
    progress.end()
    lines = [line.rpartition("\r")[2] for line in stream.getvalue().split("\n")]
    assert "xpatches: block 3, 'image', y=30:60, x=0:30, is underway for 1 min 15 s" in lines
    told = "xpatches: stopping; blocks that have begun are finished, Ctrl-C again ends at once"
    assert told in lines
    assert lines[-2].startswith("xpatches: 2 of 6 blocks are written")
    assert ("2/6" in stream.getvalue()) == terminal
