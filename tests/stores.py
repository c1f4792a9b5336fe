"""Stores that count what is read from them, and disks on which writers end."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from zarr.storage import LocalStore


class CountingStore(LocalStore):
    """A zarr store on disk that counts how often each object is read."""

    reads: ClassVar[Counter[str]] = Counter()

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self.reads[key] += 1
        return await super().get(key, *args, **kwargs)

    @classmethod
    def chunk_reads(cls, name: str = "") -> dict[str, int]:
        """Reads of chunks, of one array or of all, since the last call."""
        reads = {key: n for key, n in cls.reads.items() if "/c/" in key and key.startswith(name)}
        cls.reads.clear()
        return reads


class EndError(BaseException):
    """Nothing of the library takes it for a failure."""


@contextmanager
def ending_after(steps: int) -> Iterator[None]:
    """Let writers on a disk end after some objects that they put in their places, or remove."""
    left, replace = iter(range(steps)), os.replace

    def step(source: Any, target: Any) -> None:
        if next(left, None) is None:
            raise EndError
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xpatches.jobs.writer.os.replace", step)
        yield


@contextmanager
def single_objects() -> Iterator[None]:
    """Let blocks be single stored objects, however few there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xpatches.datasets.chunks.BLOCKS", 10**9)
        yield


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class FailingStore(LocalStore):
    """Refuses to take some objects."""

    refuse: ClassVar[Any] = staticmethod(lambda key: False)
    written: ClassVar[list[str]] = []
