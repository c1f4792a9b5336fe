"""Write patch datasets as jobs: independent blocks, in threads or on a cluster, and resumable.

The setup writes everything but the patches. Then blocks are submitted, a few at a time; those that
fail are tried again, and what cannot be written is reported when all others are. Of the blocks
that are done when a job is resumed, some are read again: if their samples have changed, so has the
image.
"""

import heapq
import re
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import xarray as xr

from xpatches.errors import BlockFailure, JobError, MapError, PatchError
from xpatches.jobs.blocks import Job
from xpatches.jobs.folder import Folder
from xpatches.jobs.lock import wait_until_free, writing
from xpatches.jobs.state import (
    Ready,
    add,
    check_apart,
    check_files,
    check_same,
    check_state,
    clear,
    finish,
    kept_checksums,
    prepare,
    ready_in,
    say_ready,
    set_up,
)
from xpatches.jobs.workers import TICK, Window, Workers, workers_for
from xpatches.jobs.writer import LostError, Run

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

    def wait(self, text: str) -> None:
        """Something is waited for before the job begins."""

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
    if folder.root is not None and not folder.root.exists():
        return  # opening it would make it
    folder.check_links()
    state = check_state(folder, resume, overwrite)
    wait_until_free(folder, Report().wait)
    if resume and state in ("writing", "complete"):
        check_same(first, folder)
    else:
        check_files(folder)


def write_job(
    job: Job,
    template: xr.Dataset,
    encoding: Mapping[str, Mapping[str, Any]],
    sources: Sequence[Folder],
    *,
    resume: bool,
    overwrite: bool,
    retries: int,
    lock: bool,
    fsync: bool,
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
    sources
        Where the arrays lie that the blocks read, as far as it is known.
    resume, overwrite, retries, lock, fsync
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
    if fsync and folder.root is None:
        raise PatchError(f"fsync=True is for stores on disks, got {folder}; leave it out")
    first = prepare(template, encoding)
    folder.check_links()
    check_state(folder, resume, overwrite)  # touches nothing if it refuses
    with writing(folder, report.wait, lock=lock, fsync=fsync) as (run, lost):
        check_apart(run, sources)
        job = replace(job, run=run)
        with workers_for(job) as workers:  # which may refuse it, before anything is removed
            ready = _begin(job, run, first, resume, overwrite)
            if ready is None:
                by_mark = kept_checksums(folder)
                known = {number: by_mark[job.mark(number)] for number in job.numbers(by_mark)}
                _check_source(job, known, workers, retries, lost, report)
                clear(run)
                report.begin(len(job), len(job), job.nbytes)
                report.end()
                return
            done = _done(job, ready)
            _check_source(job, _checksums(job, done), workers, retries, lost, report)
            say_ready(run, ready)
            report.begin(len(job), len(done), job.nbytes)
            left = (number for number in range(len(job)) if number not in done)
            try:
                failures, alike = _run(
                    job, "write", left, workers, retries, report.block, lost, report
                )
            except KeyboardInterrupt:
                count = len(_done(job, ready))
                raise KeyboardInterrupt(
                    f"stopped; {count} of {len(job)} blocks of store {folder} are done and stay, "
                    "resume=True goes on"
                ) from None
            finally:
                report.end()
        if failures:
            kept = len(_done(job, ready)) if alike else None
            raise JobError(str(folder), len(job), failures, kept) from failures[0].cause
        done = _done(job, ready)
        if len(done) < len(job):
            run.check()
            raise PatchError(
                f"store {folder} lacks {len(job) - len(done)} of {len(job)} blocks, although "
                "workers wrote them; give a store that all of them share, such as a path or a URL, "
                "and let nobody else write there"
            )
        finish(run, {job.mark(number): of for number, of in _checksums(job, done).items()})


def _begin(
    job: Job, run: Run, first: Mapping[str, bytes], resume: bool, overwrite: bool
) -> Ready | None:
    """Set a dataset up, or go on with it; None if it is complete."""
    folder = run.folder
    state = check_state(folder, resume, overwrite)  # by now nobody else changes it
    if not resume or state not in ("writing", "complete"):
        set_up(run, first, [part.name for part in job.parts])
        return Ready((run.id,))
    before = ready_in(folder) if state == "writing" else None
    missing = check_same(first, folder, whole=before is None)
    if before is None:
        return None
    add(run, {name: first[name] for name in missing})
    return Ready((*before.runs, run.id), before.repair)


def _done(job: Job, ready: Ready) -> dict[int, int | None]:
    """Find the blocks that need not be written, with the checksums that are known."""
    done = job.sound(ready.runs)
    if ready.repair:
        kept = kept_checksums(job.folder)
        done = {**{number: kept.get(job.mark(number)) for number in job.present()}, **done}
    return done


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


def _checksums(job: Job, done: Mapping[int, int | None]) -> dict[int, int]:
    """Choose some of the blocks that are done, with the checksums of the samples under them."""
    known = {number: checksum for number, checksum in done.items() if checksum is not None}
    return {number: known[number] for number in _checked(job, [*known])}


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
            if lost.is_set():
                assert job.run is not None
                job.run.check()
                raise LostError(
                    f"store {job.folder} could not be reached for a whole lease; resume"
                )
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
            if isinstance(made, LostError):
                made.failures = tuple(failures)
                raise made
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
