"""One writer of a folder: claims, and the heartbeat of the run that holds the last one.

A run that writes shows that it lives by its heartbeat, which it renews several times in a lease.
Who comes later watches the heartbeat for a whole lease on a clock of his own, whatever other
clocks say: if it moves, he is refused, else he takes over. A holder that stood still and goes on
later finds that it is lost. On a disk a holder also keeps a lock of the operating system, which is
released when its process ends: then nobody has to wait.
"""

import contextlib
import json
import logging
import os
import random
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from xpatches.errors import PatchError
from xpatches.jobs.conditional_puts import in_memory_of_this_process
from xpatches.jobs.folder import JOB, Folder, create_file, parsed
from xpatches.jobs.writer import CLAIMS, HOMES, LostError, Run, beat_of, id_in

LEASE = 30.0
"""Seconds for which a heartbeat must stand still before its run counts as dead."""
_BEATS = 3
"""Heartbeats in a lease."""
_LOOKS = 20
"""Looks at another's heartbeat in a lease."""
_STARTS = 50
"""How often a claim is tried to be made, while others are as fast."""
_HELD: set[str] = set()
"""Runs of this process."""
_LOCK = "lock"
"""The lock of the system, in the home of a run."""
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
"""Of a claim."""


@dataclass(frozen=True)
class _Claim:
    """What a run says of itself."""

    id: str | None
    """None where it is torn."""
    host: str
    pid: int
    boot: str | None
    """Which start of which machine it runs on, where that is known."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.id else "someone"


def _claim_in(content: bytes) -> _Claim:
    about, run = parsed(content) or {}, id_in(content)
    host, pid, boot = about.get("host"), about.get("pid"), about.get("boot")
    if run is None or not isinstance(host, str) or type(pid) is not int or pid >> 64:
        return _Claim(None, "", 0, None)
    return _Claim(run, host[:255], pid, boot if isinstance(boot, str) else None)


def writer_of(folder: Folder) -> str | None:
    """Tell who writes to a folder, or did until it died; None if that is nobody."""
    claims = _claims(folder)
    if not claims or _is_dead(folder, claims[max(claims)]):
        return None
    return str(claims[max(claims)])


@contextmanager
def writing(
    folder: Folder, tell: Callable[[str], None], *, lock: bool = True, fsync: bool = False
) -> Iterator[tuple[Run, threading.Event]]:
    """Be the only one who writes to a folder: the run, and an event that is set when it is lost.

    Parameters
    ----------
    folder
        Where to.
    tell
        Is told what is waited for.
    lock
        False to keep nobody out.
    fsync
        As of `Run`.

    Raises
    ------
    PatchError
        If someone else writes there, or the store cannot tell.
    """
    run, keeper = _begun(folder, tell, lock, fsync)
    stop, lost = threading.Event(), threading.Event()
    beater = threading.Thread(
        target=_keep_beating, args=(run, stop, lost), name="xpatches-heartbeat", daemon=True
    )
    if lock:
        beater.start()
    try:
        yield run, lost
    finally:
        stop.set()
        if lock:
            beater.join()
        _leave(run, keeper)


def wait_until_free(folder: Folder, tell: Callable[[str], None]) -> dict[int, str | None]:
    """Wait until nobody writes to a folder; the claims that dead runs have left there.

    Raises
    ------
    PatchError
        If someone does.
    """
    while True:
        claims = _claims(folder)
        runs = {number: claim.id for number, claim in claims.items()}
        if not claims or _is_dead(folder, claims[max(claims)]):
            return runs
        holder = claims[max(claims)]
        beat, start = _beat(folder, holder), time.monotonic()
        if holder.id not in _HELD:
            tell(f"{holder} may be writing to store {folder}; waiting {LEASE:g} s for a sign of it")
        while True:
            if holder.id in _HELD or _beat(folder, holder) not in (None, beat):
                raise PatchError(
                    f"store {folder} is being written by {holder}; wait until it ends, or stop it"
                )
            if time.monotonic() - start > LEASE:
                return runs
            time.sleep(LEASE / _LOOKS)
            if _is_dead(folder, holder) or _claims(folder) != claims:
                break


def _begun(
    folder: Folder, tell: Callable[[str], None], lock: bool, fsync: bool
) -> tuple[Run, FileLock | None]:
    """Begin a run, which holds the last claim if there is a lock."""
    for _ in range(_STARTS):
        run = Run(folder, uuid.uuid4().hex, None, fsync)
        dead = wait_until_free(folder, tell) if lock else {}
        _HELD.add(run.id)  # before others of this process can see it
        keeper = _make_home(run)
        if not lock:
            return run, keeper
        try:
            run, alone = _claim(run, dead)
        except BaseException:
            _leave(run, keeper)
            raise
        if alone:
            return run, keeper
        _leave(run, keeper)
        time.sleep(random.uniform(0, LEASE / _LOOKS))  # someone else was as fast
    raise PatchError(
        f"store {folder} cannot be claimed: what lies in {CLAIMS} is changed all the time, or is "
        "no claim of a job; wait, or remove it"
    )


def _claim(run: Run, dead: Mapping[int, str | None]) -> tuple[Run, bool]:
    """Claim a folder, and end those who are dead; the run, and whether nobody else was as fast."""
    folder, number = run.folder, max(dead, default=0) + 1
    name = f"{CLAIMS}/{number}"
    about = {"id": run.id, "host": socket.gethostname(), "pid": os.getpid(), "boot": _boot()}
    if not folder.create(name, json.dumps(about).encode()):
        return run, False
    if folder.create(name, json.dumps({**about, "pid": 0}).encode()):
        folder.remove(name)
        raise PatchError(
            f"store {folder} does not create objects exclusively, by which one writer keeps others "
            "out; give lock=False if nobody else writes there"
        )
    run = replace(run, claim=number)
    others = {other: claim.id for other, claim in _claims(folder).items() if other != number}
    if not others.items() <= dead.items() or _beat(folder, run) is None:
        return run, False
    for other in sorted(others):  # one by one: who holds the first must not miss the second
        run.remove_all([f"{CLAIMS}/{other}"])
    for other_id in {*dead.values()} - {None}:
        _end_home(folder, str(other_id))
    return run, True


def _claims(folder: Folder) -> dict[int, _Claim]:
    """Read all claims, by number."""
    names = {name: int(name) for name in folder.names(f"{CLAIMS}/") if _NUMBER.fullmatch(name)}
    contents = folder.contents(f"{CLAIMS}/{name}" for name in names)
    return {
        number: _claim_in(content)
        for name, number in sorted(names.items(), key=lambda pair: pair[1])
        if (content := contents[f"{CLAIMS}/{name}"]) is not None
    }


def _is_dead(folder: Folder, claim: _Claim) -> bool:
    """Whether a run has ended for certain, so that nobody has to wait for its heartbeat."""
    if claim.id in _HELD:
        return False
    if in_memory_of_this_process(folder.store):
        return True
    if folder.root is None or claim.id is None:
        return False
    home = _home(folder.root, claim.id)
    if not home.is_dir():
        return True  # it cannot write anything
    if claim.boot is None or claim.boot != _boot() or not (home / _LOCK).exists():
        return False
    keeper = FileLock(home / _LOCK, thread_local=False)
    try:
        keeper.acquire(blocking=False)
    except (Timeout, OSError, NotImplementedError):
        return False
    keeper.release()
    return True


def _boot() -> str | None:
    """Tell this start of this machine from all others, containers of it included."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _make_home(run: Run) -> FileLock | None:
    """Make the home of a run, and hold its lock where the system has such."""
    root = run.folder.root
    if root is None:
        run.folder.put(beat_of(run.id), b"%016d" % 0)
        return None
    create_file(root / beat_of(run.id), b"%016d" % 0)
    keeper = FileLock(root / run.home / _LOCK, thread_local=False)
    try:
        keeper.acquire(blocking=False)
    except (OSError, NotImplementedError):  # as of some network disks, where others have to wait
        (root / run.home / _LOCK).unlink(missing_ok=True)
        return None
    return keeper


def _leave(run: Run, keeper: FileLock | None) -> None:
    """End a run, and then let others begin."""
    try:
        _take_back(run)
    except Exception:  # of a store that takes nothing any more: what is left is as of the killed
        logging.getLogger("xpatches").debug("leaving %s", run.folder, exc_info=True)
    finally:
        _HELD.discard(run.id)
        if keeper is not None:
            keeper.release()


def _take_back(run: Run) -> None:
    """Remove the home and the claim of a run, in this order."""
    folder, root = run.folder, run.folder.root
    claim = None if run.claim is None else f"{CLAIMS}/{run.claim}"
    if root is None:
        folder.remove(beat_of(run.id))
        if claim is not None and id_in(folder.get(claim)) == run.id:
            folder.remove(claim)
        return
    ended = _ended(root, run.id)
    with contextlib.suppress(FileNotFoundError):
        _home(root, run.id).rename(ended)
        if claim is not None:  # moved, for who took over has removed where to
            os.replace(root / claim, ended / "claim")
    shutil.rmtree(ended, ignore_errors=True)
    for name in (HOMES, CLAIMS, JOB):
        with contextlib.suppress(OSError):  # there is something in it
            os.rmdir(root / name)


def _end_home(folder: Folder, run: str) -> None:
    """Take the home away from a run, all at once: it can publish nothing after this."""
    root = folder.root
    if root is None:
        folder.remove(beat_of(run))
        return
    shutil.rmtree(_ended(root, run), ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        _home(root, run).rename(_ended(root, run))
    shutil.rmtree(_ended(root, run), ignore_errors=True)


def _home(root: Path, run: str) -> Path:
    return root / HOMES / run


def _ended(root: Path, run: str) -> Path:
    """Where the home of a run is moved, that ends."""
    return root / HOMES / f"{run}.ended"


def _beat(folder: Folder, run: _Claim | Run) -> bytes | None:
    """Read a heartbeat; None where there is none."""
    return folder.get(beat_of(run.id))


def _renew(run: Run, number: int) -> None:
    """Let the heartbeat be another one."""
    content = b"%016d" % number
    if run.folder.root is None:
        run.folder.put(beat_of(run.id), content)
        return
    # In its place: there may be no room on the disk for another file.
    with open(run.folder.root / beat_of(run.id), "r+b") as file:
        file.write(content)


def _keep_beating(run: Run, stop: threading.Event, lost: threading.Event) -> None:
    """Renew a heartbeat, and say when the run is lost."""
    number, renewed = 0, time.monotonic()
    while not stop.wait(LEASE / _BEATS):
        number += 1
        try:
            run.check()
            _renew(run, number)
            renewed = time.monotonic()
        except LostError:
            lost.set()
            return
        except Exception:  # a store may fail for a moment, and the blocks say so
            if time.monotonic() - renewed > LEASE:
                lost.set()
                return
