"""Write datasets as jobs: independent blocks, in threads or on a cluster, and resumable.

The setup writes everything but what blocks make. Then blocks are submitted, a few at a time; those
that fail are tried again, and what cannot be written is reported when all others are. Of the blocks
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
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import Any

from xpatches.errors import BlockFailure, JobError, MapError, PatchError
from xpatches.jobs.blocks import Job
from xpatches.jobs.folder import Folder
from xpatches.jobs.lock import wait_until_free, writing
from xpatches.jobs.setup import add, check_apart, clear, finish, say_ready, set_up
from xpatches.jobs.state import Ready, StoredDataset
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


def check_job(job: Job, objects: Mapping[str, bytes], *, resume: bool, overwrite: bool) -> None:
    """Refuse what `write_job` would refuse before the first block; nothing is touched."""
    folder, dataset = job.folder, StoredDataset(job.folder)
    if folder.root is not None and not folder.root.exists():
        return  # opening it would make it
    folder.check_links()
    state = dataset.check_state(resume, overwrite)
    wait_until_free(folder, Report().wait)
    if resume and state in ("writing", "complete"):
        dataset.check_same(objects)
    else:
        dataset.check_files()


def write_job(
    job: Job,
    objects: Mapping[str, bytes],
    sources: Sequence[Folder],
    report: Report,
    *,
    resume: bool,
    overwrite: bool,
    retries: int,
    lock: bool,
    fsync: bool,
) -> None:
    """Write a dataset, or the rest of it.

    Parameters
    ----------
    job
        The blocks.
    objects
        All that zarr stores of the dataset but what the blocks write, by name.
    sources
        Where the arrays lie that the blocks read, as far as it is known.
    report
        Is told of the progress.
    resume, overwrite, retries, lock, fsync
        As in `Patches.to_zarr`.

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
    folder.check_links()
    StoredDataset(folder).check_state(resume, overwrite)  # touches nothing if it refuses
    with writing(folder, report.wait, lock=lock, fsync=fsync) as (run, lost):
        check_apart(run, sources)
        job = replace(job, run=run)
        with workers_for(job) as workers:  # which may refuse it, before anything is removed
            caller = _Caller(job, run, workers, retries, lost, report)
            ready = _begin(job, run, objects, resume, overwrite)
            if ready is None:
                kept = StoredDataset(folder).checksums()
                caller.check_source({n: kept[job.mark(n)] for n in job.numbers(kept)})
                clear(run)
                report.begin(len(job), len(job), job.nbytes)
                report.end()
                return
            done = _done(job, ready)
            caller.check_source(_checksums(job, done))
            say_ready(run, ready)
            report.begin(len(job), len(done), job.nbytes)
            left = (number for number in range(len(job)) if number not in done)
            try:
                failures, alike = caller.call("write", left, report.block)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"stopped; {len(_done(job, ready))} of {len(job)} blocks of store {folder} are "
                    "done and stay, resume=True goes on"
                ) from None
            finally:
                report.end()
        if failures:
            kept_blocks = len(_done(job, ready)) if alike else None
            raise JobError(str(folder), len(job), failures, kept_blocks) from failures[0].cause
        done = _done(job, ready)
        if len(done) < len(job):
            run.check()
            raise PatchError(
                f"store {folder} lacks {len(job) - len(done)} of {len(job)} blocks, although "
                "workers wrote them; give a store that all of them share, such as a path or a URL, "
                "and let nobody else write there"
            )
        finish(run, {job.mark(n): checksum for n, checksum in _checksums(job, done).items()})


def _begin(
    job: Job, run: Run, objects: Mapping[str, bytes], resume: bool, overwrite: bool
) -> Ready | None:
    """Set a dataset up, or go on with it; None if it is complete."""
    dataset = StoredDataset(job.folder)
    state = dataset.check_state(resume, overwrite)  # by now nobody else changes it
    if not resume or state not in ("writing", "complete"):
        set_up(run, objects, [array.stored.name for array in job.arrays])
        return Ready((run.id,))
    if state == "complete":
        dataset.check_same(objects)
        return None
    before = dataset.ready()
    missing = dataset.check_same(objects, whole=False)
    add(run, {name: objects[name] for name in missing})
    return Ready((*before.runs, run.id), before.repair)


def _done(job: Job, ready: Ready) -> dict[int, int | None]:
    """Find the blocks that need not be written, with the checksums that are known."""
    done = job.sound(ready.runs)
    if ready.repair:
        kept = StoredDataset(job.folder).checksums()
        done = {number: kept.get(job.mark(number)) for number in job.present()} | done
    return done


def _checksums(job: Job, done: Mapping[int, int | None]) -> dict[int, int]:
    """Choose some of the blocks that are done, with the checksums of the samples under them.

    They are the same each time, and their samples are few enough to be read again.
    """
    known = {number: checksum for number, checksum in done.items() if checksum is not None}
    # Any part of the order spreads over all of them.
    order = heapq.nsmallest(_LOOKED_AT, known, key=lambda n: zlib.crc32(job.mark(n).encode()))
    sizes = zip(order, accumulate(map(job.source_bytes, order)), strict=True)
    few = [number for number, _ in takewhile(lambda pair: pair[1] <= _CHECKED, sizes)]
    return {number: known[number] for number in few or order[:1]}


@dataclass(frozen=True)
class _Caller:
    """Calls the blocks of a job."""

    job: Job
    run: Run
    workers: Workers
    retries: int
    lost: threading.Event
    """Set when the run could not be renewed for a whole lease, or is lost."""
    report: Report

    def check_source(self, checksums: Mapping[int, int]) -> None:
        """Refuse an image that has changed: read again what some finished blocks were cut from."""

        def compare(number: int, checksum: int) -> None:
            if checksum != checksums[number]:
                raise PatchError(
                    f"the image has changed: block {number} of store {self.job.folder}, "
                    f"{self.job.describe(number)}, was cut from other samples; "
                    "resume with the same image, or give another store"
                )

        failures, _ = self.call("checksum", checksums, compare)
        if failures:
            raise JobError(str(self.job.folder), len(self.job), failures)

    def call(
        self, method: str, blocks: Iterable[int], taken: Callable[[int, Any], None]
    ) -> tuple[list[BlockFailure], bool]:
        """Call a method of the job for blocks, as `_Queue` orders them; what failed for good.

        `taken` is told of every block's number and what the method returned. The answer says, too,
        whether blocks are left because it is hopeless to go on; what has begun was waited for.
        """
        window, queue = Window(self.workers, method), _Queue(blocks, self.retries)
        failures: list[BlockFailure] = []
        heard = time.monotonic()
        try:
            while True:
                self._check_lost()
                if some := queue.take(window.room):
                    window.add(some)
                if not len(window) and not queue:
                    return failures, False
                ended = window.take(TICK)
                if ended is None:
                    heard = self._tell_longest(window, heard)
                    continue
                heard = time.monotonic()
                number, answer = ended
                if not isinstance(answer, BaseException):
                    taken(number, answer)
                    queue.succeeded()
                    continue
                if isinstance(answer, LostError):
                    answer.failures = tuple(failures)
                    raise answer
                if not queue.failed(number, answer):
                    failures.append(BlockFailure(number, self.job.describe(number), answer))
                if queue.hopeless:
                    self._drain(window, taken)
                    return failures, True
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            if interrupted and len(window):
                self.report.stopping()
            self._drain(window, taken if interrupted else lambda number, answer: None)
            raise

    def _check_lost(self) -> None:
        if self.lost.is_set():
            self.run.check()
            raise LostError(
                f"store {self.job.folder} could not be reached for a whole lease; resume"
            )

    def _tell_longest(self, window: Window, heard: float) -> float:
        """Tell of the block that is underway for longest after a while; when was heard of one."""
        now, longest = time.monotonic(), window.longest
        if longest is None or now - heard < _SILENCE:
            return heard
        number, since = longest
        self.report.underway(f"{number}, {self.job.describe(number)}", now - since)
        return now

    @staticmethod
    def _drain(window: Window, taken: Callable[[int, Any], None]) -> None:
        for number, answer in window.drain():
            if not isinstance(answer, BaseException):
                taken(number, answer)


class _Queue:
    """Blocks that are to be called: those that fail are tried again after the others.

    Those in which the user's function failed are tried again before: it may fail in all. It is
    hopeless to go on where it fails for good in one block, and alike in another, with none written
    since it first did.
    """

    def __init__(self, blocks: Iterable[int], retries: int) -> None:
        self._blocks, self._retries = iter(blocks), retries
        self._upcoming = next(self._blocks, None)
        self._tries = Counter[int]()
        self._soon, self._later = list[tuple[float, int]](), list[tuple[float, int]]()
        self._alike = defaultdict[str, set[int]](set)
        """Blocks in which the user's function failed, by what it raised, since one was written."""
        self._given_up = set[str]()
        """What it raised in blocks that are not tried again."""
        self._some_written = False
        self.hopeless = False

    def __bool__(self) -> bool:
        """Whether any block is left, also one whose pause is not over."""
        return self._upcoming is not None or bool(self._soon or self._later)

    def take(self, most: int) -> list[int]:
        """Take blocks that can be called now."""
        blocks = _due(self._soon, most)
        while len(blocks) < most and self._upcoming is not None:
            blocks.append(self._upcoming)
            self._upcoming = next(self._blocks, None)
        return blocks + _due(self._later, most - len(blocks))

    def succeeded(self) -> None:
        """Note that a block is done."""
        self._alike.clear()
        self._given_up.clear()
        self._some_written = True

    def failed(self, number: int, error: BaseException) -> bool:
        """Note that a block failed; whether it will be tried again."""
        last, kind = self._tries[number] >= self._retries, _kind(error)
        if kind is not None:
            if not self._tries[number]:
                self._alike[kind].add(number)
            if last and number in self._alike[kind]:
                self._given_up.add(kind)
            everywhere = kind in self._given_up and len(self._alike[kind]) > 1
            self.hopeless = everywhere and (self._upcoming is not None or not self._some_written)
        if last or self.hopeless:
            return False
        pause = _PAUSE * 2 ** self._tries[number]
        waiting = self._later if kind is None else self._soon
        heapq.heappush(waiting, (time.monotonic() + pause, number))
        self._tries[number] += 1
        return True


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
