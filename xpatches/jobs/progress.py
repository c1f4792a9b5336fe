"""How far a job is: a bar on a terminal, lines elsewhere."""

import shutil
import sys
import time
from typing import Any, TextIO

import click

from xpatches.display.text import readable
from xpatches.jobs.job import Report

_EVERY = 10.0
"""Seconds between lines."""


class Progress(Report):
    """Tell of a job on a stream, stderr by default, with its rate and the time left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._blocks = self._done = self._before = self._bytes = 0
        self._start = self._said = 0.0

    def wait(self, text: str) -> None:
        """Something is waited for before the job begins."""
        self._say(text)

    def begin(self, blocks: int, done: int, nbytes: int) -> None:
        """So many blocks there are, of so many bytes in all, and so many are done already."""
        self._blocks, self._done, self._before = blocks, done, done
        self._start = self._said = time.monotonic()
        already = f", {done} of them are done already" if done else ""
        self._say(f"{readable(nbytes)} in {blocks} blocks{already}")
        if self._stream.isatty() and done < blocks:
            self._bar = click.progressbar(
                length=blocks,
                file=self._stream,
                show_pos=True,
                width=0 if shutil.get_terminal_size().columns < 80 else 30,
                item_show_func=lambda _: self._rate() if self._bytes else None,
            )
            self._bar.__enter__()
            self._bar.update(done)

    def block(self, number: int, nbytes: int) -> None:
        """Another block is written, of so many bytes of patches."""
        self._done, self._bytes = self._done + 1, self._bytes + nbytes
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(1)
        elif now - self._said >= _EVERY:
            self._said = now
            left = (now - self._start) / (self._done - self._before) * (self._blocks - self._done)
            self._say(f"{self._done} of {self._blocks} blocks, {self._rate()}, {_time(left)} left")

    def underway(self, block: str, seconds: float) -> None:
        """No block was finished for a while, and this one is underway for longest."""
        self._say(f"block {block}, is underway for {_time(seconds)}")

    def stopping(self) -> None:
        """Blocks that have begun are waited for, for the job was interrupted."""
        self._say("stopping; blocks that have begun are finished, Ctrl-C again ends at once")

    def end(self) -> None:
        """No more blocks will be."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
        seconds = time.monotonic() - self._start
        written = self._done - self._before
        if written:
            new = f", {written} of them" if self._before else ""
            self._say(
                f"{self._done} of {self._blocks} blocks are written{new} in {_time(seconds)}, "
                f"{self._rate()}"
            )

    def _rate(self) -> str:
        seconds = max(1e-3, time.monotonic() - self._start)
        return f"{self._bytes / seconds / 1e6:.0f} MB/s"

    def _say(self, line: str) -> None:
        if self._bar is not None:  # it goes on below
            print(file=self._stream)
        print(f"xpatches: {line}", file=self._stream, flush=True)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
