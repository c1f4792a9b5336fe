"""A run: who writes to a folder, and checks before every object that it still is the writer.

Claims ``writer/1``, ``writer/2``, ... are created exclusively, and the last one is the writer's:
who takes over from a dead writer creates the next one, and then removes those before, the first
one first. A run is lost as soon as its claim is gone, or the next one is there.

Between a check and what follows it a process may sleep for hours. Objects on a disk are therefore
made in the run's own directory, its home, and moved to their places: a successor removes the home
before it begins, after which there is nothing to move. Object stores create only what is not there,
and replace only the version that was there before the check; a successor writes all objects itself,
after which these conditions do not hold.
"""

import os
import re
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from xpatches.errors import BlockFailure, PatchError
from xpatches.jobs.conditional_puts import exclusive
from xpatches.jobs.folder import JOB, Folder, parsed
from xpatches.private_names import sync

CLAIMS = f"{JOB}/writer"
"""Where the claims lie, by number."""
HOMES = f"{JOB}/runs"
"""Where the homes of runs lie, by id."""

_ID = re.compile("[0-9a-f]{32}")
_REMOVED = 256
"""Objects that are removed between two checks, where they cannot be moved away."""
_TRIES = 10
"""How often an object is put that another writes at the same time."""


class LostError(PatchError):
    """Another run writes to the folder by now, or what this one needs was removed."""

    failures: tuple[BlockFailure, ...] = ()
    """Blocks that had failed before."""


@dataclass(frozen=True)
class Run:
    """Somebody who writes to a folder; it can be sent to other processes.

    Parameters
    ----------
    folder
        Where to.
    id
        32 hexadecimal digits, unlike all others.
    claim
        Number of its claim; None for nobody else is kept out.
    fsync
        Whether files are on the disk, not only in its system's memory, before they are in their
        places.
    """

    folder: Folder
    id: str
    claim: int | None = None
    fsync: bool = False

    @property
    def home(self) -> str:
        """Name of its own directory."""
        return f"{HOMES}/{self.id}"

    def check(self) -> None:
        """Raise a LostError if another run has taken over."""
        if self.claim is None:
            return
        mine, following = f"{CLAIMS}/{self.claim}", f"{CLAIMS}/{self.claim + 1}"
        claims = self.folder.contents([mine, following])
        if claims[following] is not None or id_in(claims[mine]) != self.id:
            raise LostError(
                f"store {self.folder} is being written by someone else by now, or was removed; "
                "finish that job, or resume this one"
            )

    def publish(self, objects: Mapping[str, bytes | memoryview]) -> None:
        """Write objects, each of them whole, if the run is not lost."""
        root = self.folder.root
        if root is None:
            for name, content in objects.items():
                self._put(name, bytes(content))
            return
        files = {name: root / self.home / uuid.uuid4().hex for name in objects}
        try:
            for name, path in files.items():
                with open(path, "xb") as file:
                    file.write(objects[name])
                    if self.fsync:
                        file.flush()
                        os.fsync(file.fileno())
            self.check()
            for name, path in files.items():
                _make_directory((root / name).parent, root)
                os.replace(path, root / name)
        except FileNotFoundError as error:
            raise self._gone() from error
        finally:
            for path in files.values():
                path.unlink(missing_ok=True)
        if self.fsync:
            parents = {parent for name in objects for parent in (root / name).parents}
            for folder in parents:
                if folder.is_relative_to(root):
                    _sync(folder)

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove objects, if the run is not lost; those on a disk by moving them to its home."""
        root, left = self.folder.root, iter(names)
        if root is None:
            while some := [*islice(left, _REMOVED)]:
                self.check()
                self.folder.remove_all(some)
            return
        home = root / self.home
        for name in left:
            try:
                os.replace(root / name, home / "removed")
            except FileNotFoundError as error:
                if not home.is_dir():
                    raise self._gone() from error

    def _put(self, name: str, content: bytes) -> None:
        conditions = None if self.claim is None else exclusive(self.folder.store)
        if conditions is None:
            self.folder.put(name, content)
            return
        key, again = self.folder.key(name), self.folder.again
        for _ in range(_TRIES):
            self.check()
            if again(lambda: sync(conditions.create(key, content))):
                return
            version = again(lambda: sync(conditions.version(key)))
            self.check()
            if version is not None and again(
                lambda: sync(conditions.replace(key, content, version))  # noqa: B023
            ):
                return
        raise OSError(f"{name} of store {self.folder} is written by others at the same time")

    def _gone(self) -> LostError:
        self.check()
        return LostError(
            f"store {self.folder} was removed while it was being written; start the job again"
        )


def _make_directory(path: Path, root: Path) -> None:
    """Make a directory below a root, but not the root: it stays away where it was removed."""
    if path == root:
        return
    try:
        os.mkdir(path)
    except FileExistsError:
        pass
    except FileNotFoundError:
        _make_directory(path.parent, root)
        with suppress(FileExistsError):  # another block was as fast
            os.mkdir(path)


def _sync(path: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def beat_of(run: str | None) -> str:
    """Name the heartbeat of a run."""
    return f"{HOMES}/{run}/beat"


def id_in(claim: bytes | None) -> str | None:
    """Give the run that a claim names; None where it is torn, or there is none."""
    run = None if claim is None else (parsed(claim) or {}).get("id")
    return run if isinstance(run, str) and _ID.fullmatch(run) else None
