"""A run: who writes to a folder, and checks before every object that it still is the writer.

Claims ``writer/1``, ``writer/2``, ... are created exclusively, and the last one is the writer's:
who takes over from a dead writer creates the next one, and then removes those before, the first
one first. A run is lost as soon as its claim is gone, or the next one is there.

Between a check and what follows it a process may sleep for hours. Objects on a disk are therefore
made in the run's own directory, its home, and moved to their places: a successor removes the home
before it begins, after which there is nothing to move. What a sleeper makes in a new home it makes
before the check, which fails. Object stores create only what is not there, and replace only the
version that was there before the check; a successor writes all objects itself, after which these
conditions do not hold.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from zarr.core.sync import sync
from zarr.storage import MemoryStore

from xpatches.errors import PatchError
from xpatches.exclusive import exclusive
from xpatches.store import JOB, Folder, make_directory, parsed

CLAIMS = f"{JOB}/writer"
"""Where the claims lie, by number."""
HOMES = f"{JOB}/runs"
"""Where the homes of runs lie, by id."""

REMOVED = "removed/object"
"""Where a run moves what it removes, in its home."""
_ID = re.compile("[0-9a-f]{32}")
_REMOVED = 256
"""Objects that are removed between two checks, where they cannot be moved away."""
_TRIES = 10
"""How often an object is put that another writes at the same time."""


class LostError(PatchError):
    """Another run writes to the folder by now, or what this one needs was removed."""


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
        found = self.folder.contents([mine, following])
        if found[following] is not None or id_in(found[mine]) != self.id:
            raise LostError(
                f"store {self.folder} is being written by someone else by now, or was removed; "
                "finish that job, or resume this one"
            )

    def publish(self, name: str, content: bytes) -> None:
        """Write an object whole, if the run is not lost."""
        root = self.folder.root
        if root is None:
            self._put(name, content)
            return
        made = root / self.home / uuid.uuid4().hex
        try:
            made.write_bytes(content)
            self._move([(made, root / name)])
        except FileNotFoundError as error:
            raise self._gone() from error
        finally:
            made.unlink(missing_ok=True)

    @contextmanager
    def stage(self) -> Iterator[Folder]:
        """Give an empty folder, in which objects are made that are published together."""
        if self.folder.root is None:
            yield Folder(MemoryStore())
            return
        stage = Folder(self.folder.store, self.folder.key(f"{self.home}/{uuid.uuid4().hex}"))
        try:
            yield stage
        finally:
            shutil.rmtree(str(stage.root), ignore_errors=True)

    def publish_all(self, stage: Folder) -> dict[str, int]:
        """Publish the objects in a stage, whole, if the run is not lost; their names and bytes."""
        root, names = self.folder.root, stage.names()
        sizes = {name: size or 0 for name, size in stage.sizes(names).items()}
        if root is None:
            for name in names:
                self._put(name, stage.get(name) or b"")
            return sizes
        assert stage.root is not None
        try:
            self._move([(stage.root / name, root / name) for name in names])
        except FileNotFoundError as error:
            raise self._gone() from error
        return sizes

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove objects, if the run is not lost; those on a disk by moving them to its home."""
        root, left = self.folder.root, iter(names)
        if root is None:
            while some := [*islice(left, _REMOVED)]:
                self.check()
                self.folder.remove_all(some)
            return
        removed = root / self.home / REMOVED  # which nobody makes anew
        for name in left:
            try:
                os.replace(root / name, removed)
            except FileNotFoundError as error:
                if not removed.parent.is_dir():
                    raise self._gone() from error

    def _move(self, moves: Sequence[tuple[Path, Path]]) -> None:
        if self.fsync:
            for made, _ in moves:
                _sync(made)
        self.check()
        for made, target in moves:
            make_directory(target.parent)
            os.replace(made, target)
        if self.fsync:
            for folder in {parent for _, target in moves for parent in target.parents}:
                if folder.is_relative_to(self.folder.root or ""):
                    _sync(folder)

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


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def id_in(claim: bytes | None) -> str | None:
    """Give the run that a claim names; None where it is torn, or there is none."""
    found = None if claim is None else (parsed(claim) or {}).get("id")
    return found if isinstance(found, str) and _ID.fullmatch(found) else None
