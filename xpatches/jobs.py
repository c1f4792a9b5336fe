"""Write patch datasets as jobs: independent blocks, in threads or on a cluster, and resumable.

The setup writes everything but the patches. Then blocks are submitted, a few at a time; those that
fail are tried again, and what cannot be written is reported when all others are. Of the blocks
that are done when a job is resumed, some are read again: if their samples have changed, so has the
image.
"""

import heapq
import os
import re
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import xarray as xr

from xpatches.blocks import Job, checksum_in
from xpatches.errors import BlockFailure, JobError, MapError, PatchError
from xpatches.states import (
    check_files,
    check_same,
    check_state,
    clear,
    done_blocks,
    finish,
    kept_checksums,
    prepare,
    set_up,
    undo,
)
from xpatches.store import MARKS, check_free, writing
from xpatches.workers import TICK, Window, Workers, workers_for

_CHECKED = 1 << 30
"""Bytes of samples that are read again when a job is resumed, at most."""
_LOOKED_AT = 100
"""Blocks whose samples are, at most."""
_PAUSE = 0.5
"""Seconds before a block is tried again, twice as many each time."""
_SILENCE = 60.0
"""Seconds without a finished block after which is told of one that is underway."""


class Report:
    """What is told of a job while it runs; this one tells nothing."""

    def begin(self, blocks: int, done: int, nbytes: int) -> None:
        """So many blocks there are, of so many bytes in all, and so many are done already."""

    def block(self, number: int, nbytes: int) -> None:
        """Another block is written, of so many bytes of patches."""

    def underway(self, block: str, seconds: float) -> None:
        """No block was finished for a while, and this one is underway for longest."""

    def stopping(self) -> None:
        """Blocks that have begun are waited for, for the job was interrupted."""

    def end(self) -> None:
        """No more blocks will be."""


def check_job(
    job: Job,
    template: xr.Dataset,
    encoding: Mapping[str, Mapping[str, Any]],
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Refuse what `write_job` would refuse before the first block; nothing is touched."""
    first, folder = prepare(template, encoding), job.folder
    if folder.on_disk is not None and not os.path.exists(folder.on_disk):
        return  # opening it would make it
    state = check_state(folder, resume, overwrite)
    check_free(folder)
    if resume and state in ("writing", "complete"):
        check_same(first, folder)
    else:
        check_files(folder)


def write_job(
    job: Job,
    template: xr.Dataset,
    encoding: Mapping[str, Mapping[str, Any]],
    *,
    resume: bool,
    overwrite: bool,
    retries: int,
    report: Report,
) -> None:
    """Write a dataset, or the rest of it.

    Parameters
    ----------
    job
        The blocks.
    template
        The dataset; the variables that the job writes hold one dask chunk that is never computed.
    encoding
        As in `xarray.Dataset.to_zarr`.
    resume, overwrite, retries
        As in `Patches.to_zarr`.
    report
        Is told of the progress.

    Raises
    ------
    PatchError
        If the store is in use, holds something already, or something else than is to be resumed.
    JobError
        If blocks failed.
    """
    folder = job.folder
    first = prepare(template, encoding)
    check_state(folder, resume, overwrite)  # touches nothing if it refuses
    with writing(folder) as lost:
        state = check_state(folder, resume, overwrite)  # by now nobody else changes it
        if state in ("writing", "complete") and resume:
            check_same(first, folder)
        else:
            set_up(first, folder)
        with ExitStack() as stack:
            try:
                workers = stack.enter_context(workers_for(job))
            except PatchError:
                if state == "nothing":  # as it is to be again
                    undo(folder)
                raise
            if state == "complete" and resume:
                by_mark = kept_checksums(folder)
                known = {number: by_mark[job.mark(number)] for number in job.numbers(by_mark)}
                _check_source(job, known, workers, retries, lost, report)
                clear(folder)
                report.begin(len(job), len(job), job.nbytes)
                report.end()
                return
            done = _done(job)
            _check_source(job, _checksums(job, done), workers, retries, lost, report)
            report.begin(len(job), len(done), job.nbytes)
            written = set(done)
            left = (number for number in range(len(job)) if number not in written)
            try:
                failures, alike = _run(
                    job, "write", left, workers, retries, report.block, lost, report
                )
            except KeyboardInterrupt:
                count = len(_done(job))
                raise KeyboardInterrupt(
                    f"stopped; {count} of {len(job)} blocks of store {folder} are done and stay, "
                    "resume=True goes on"
                ) from None
            finally:
                report.end()
        if failures:
            kept = len(_done(job)) if alike else None
            raise JobError(str(folder), len(job), failures, kept) from failures[0].cause
        done = _done(job)
        if len(done) < len(job):
            raise PatchError(
                f"store {folder} lacks {len(job) - len(done)} of {len(job)} blocks, although "
                "workers wrote them; give a store that all of them share, such as a path or a URL"
            )
        checksums = _checksums(job, done)
        _check_held(job, lost)
        finish(folder, {job.mark(number): of for number, of in checksums.items()})


def _done(job: Job) -> list[int]:
    """List the blocks of a job that are recorded as written."""
    return job.numbers(done_blocks(job.folder))


def _checked(job: Job, done: Sequence[int]) -> list[int]:
    """Choose some of the blocks that are done, whose samples are read again: the same each time."""
    chosen: list[int] = []
    size = 0
    # Any part of the order spreads over all of them.
    for number in heapq.nsmallest(
        _LOOKED_AT, done, key=lambda of: zlib.crc32(job.mark(of).encode())
    ):
        size += job.source_bytes(number)
        if chosen and size > _CHECKED:
            break
        chosen.append(number)
    return chosen


def _checksums(job: Job, done: Sequence[int]) -> dict[int, int]:
    """Give the checksums of the samples under some of the blocks that are done."""
    found = {}
    for number in _checked(job, done):
        checksum = checksum_in(job.folder.get(f"{MARKS}/{job.mark(number)}"))
        if checksum is not None:
            found[number] = checksum
    return found


def _check_source(
    job: Job,
    checksums: Mapping[int, int],
    workers: Workers,
    retries: int,
    lost: threading.Event,
    report: Report,
) -> None:
    """Refuse an image that has changed: read again what some finished blocks were cut from."""

    def compare(number: int, found: int) -> None:
        if found != checksums[number]:
            raise PatchError(
                f"the image has changed: block {number} of store {job.folder}, "
                f"{job.describe(number)}, was cut from other samples; "
                "resume with the same image, or give another store"
            )

    failures, _ = _run(job, "checksum", checksums, workers, retries, compare, lost, report)
    if failures:
        raise JobError(str(job.folder), len(job), failures)


def _check_held(job: Job, lost: threading.Event) -> None:
    if lost.is_set():
        raise PatchError(
            f"store {job.folder} is being written by someone else by now; "
            "finish one of the jobs and resume"
        )


def _run(
    job: Job,
    method: str,
    blocks: Iterable[int],
    workers: Workers,
    retries: int,
    taken: Callable[[int, Any], None],
    lost: threading.Event,
    report: Report,
) -> tuple[list[BlockFailure], bool]:
    """Call a method of the job for blocks; those that fail are tried again after the others.

    Those in which the user's function failed are tried again before: it may fail in all. Where it
    fails for good in one block, and alike in another, with none written since it first did, what
    has begun is waited for, and the rest is left; the answer says so. `taken` is told of every
    block's number and what the method returned.
    """
    window, tries = Window(workers, method), Counter[int]()
    numbers = iter(blocks)
    upcoming = next(numbers, None)
    soon, again = list[tuple[float, int]](), list[tuple[float, int]]()
    failures: list[BlockFailure] = []
    alike, given_up, some_written = defaultdict[str, set[int]](set), set[str](), False
    heard = time.monotonic()
    try:
        while True:
            _check_held(job, lost)
            room = window.room
            some = _due(soon, room)
            while len(some) < room and upcoming is not None:
                some.append(upcoming)
                upcoming = next(numbers, None)
            some += _due(again, room - len(some))
            if some:
                window.add(some)
            if not len(window) and not again and not soon:
                return failures, False
            ended = window.take(TICK)
            if ended is None:
                now, longest = time.monotonic(), window.longest
                if longest and now - heard >= _SILENCE:
                    heard, (number, since) = now, longest
                    report.underway(f"{number}, {job.describe(number)}", now - since)
                continue
            heard = time.monotonic()
            number, made = ended
            if not isinstance(made, BaseException):
                taken(number, made)
                alike.clear()
                given_up.clear()
                some_written = True
                continue
            last, kind = tries[number] >= retries, _kind(made)
            if kind is not None and not tries[number]:
                alike[kind].add(number)
            if kind is not None and last and number in alike[kind]:
                given_up.add(kind)
            stop = kind in given_up and len(alike[str(kind)]) > 1
            stop &= upcoming is not None or not some_written
            if last or stop:
                failures.append(BlockFailure(number, job.describe(number), made))
            else:
                tries[number] += 1
                pause = _PAUSE * 2 ** (tries[number] - 1)
                heapq.heappush(again if kind is None else soon, (time.monotonic() + pause, number))
            if stop:
                for number, made in window.drain():
                    if not isinstance(made, BaseException):
                        taken(number, made)
                return failures, True
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and len(window):
            report.stopping()
        for number, made in window.drain():
            if isinstance(error, KeyboardInterrupt) and not isinstance(made, BaseException):
                taken(number, made)
        raise


def _due(waiting: list[tuple[float, int]], most: int) -> list[int]:
    """Take blocks whose pause is over from a heap."""
    due: list[int] = []
    while len(due) < most and waiting and waiting[0][0] <= time.monotonic():
        due.append(heapq.heappop(waiting)[1])
    return due


def _kind(error: BaseException) -> str | None:
    """Tell errors of the user's function apart, whatever patch and numbers they name."""
    if not isinstance(error, MapError):
        return None
    return re.sub(r"0x[0-9a-f]+|\d+", "#", error.reason or str(error))
