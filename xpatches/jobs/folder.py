"""Where a dataset lies: objects under a path of any store of zarr's."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.storage import LocalStore

from xpatches.credentials import redacted, told
from xpatches.documents import Unfit, parse
from xpatches.errors import PatchError
from xpatches.jobs.conditional_puts import exclusive, protocols
from xpatches.private_names import sync

JOB = "xpatches_job"
"""Attr of a dataset that describes its job, and the group of the job's marks."""

T = TypeVar("T")

_PAUSES = (0.1, 0.5, 2.0)
"""Seconds before a request that failed is made again."""
_RACES = 100
"""How often a directory is made that others remove."""
_AT_ONCE = 32
"""Requests that are made at once, where there are many."""


@dataclass(frozen=True)
class Folder:
    """Objects under a path of a store; it can be sent to other processes.

    Examples
    --------
    >>> from zarr.storage import MemoryStore
    >>> folder = Folder(MemoryStore())
    >>> folder.put("a/b", b"c")
    >>> folder.get("a/b"), folder.get("b"), folder.names("a/")
    (b'c', None, ['b'])
    """

    store: Store
    path: str = ""

    def __str__(self) -> str:
        names = protocols(self.store)
        place = str(getattr(self.store, "path", "")) if names else str(self.store)
        if names and "://" not in place:
            place = f"{min(names)}://{place}"
        place = redacted(place).removeprefix("file://")
        return f"{place}/{self.path}" if self.path else place

    def __repr__(self) -> str:
        return f"Folder({self})"

    @property
    def root(self) -> Path | None:
        """Where it is written on a disk of this machine; None where zarr's own store is not."""
        return self.on_disk if isinstance(self.store, LocalStore) else None

    @property
    def on_disk(self) -> Path | None:
        """Where it lies on a disk, whichever library opened it, links resolved; None for others."""
        disk = as_disk(self.store)
        return None if disk is None else Path(os.path.realpath(disk.root / self.path))

    def below(self, other: "Folder") -> str | None:
        """Path from another folder to this one, "" if they are the same; None if it is not there.

        That holds as far as it can be seen: a store may be opened in many ways.

        Examples
        --------
        >>> from zarr.storage import MemoryStore
        >>> store = MemoryStore()
        >>> group = Folder(store, "a")
        >>> [Folder(store, path).below(group) for path in ("a/b/c", "a", "ab", "")]
        ['b/c', '', None, None]
        """
        here, there = self._place, other._place
        return "/".join(here[len(there) :]) if here[: len(there)] == there else None

    def overlaps(self, other: "Folder") -> bool:
        """Whether one lies in the other, as far as that can be seen."""
        return self.below(other) is not None or other.below(self) is not None

    @property
    def _place(self) -> list[str]:
        """Names that lead to the folder, those of its store first."""
        inner: Any = getattr(self.store, "store", None)  # of obstore
        scheme = _SCHEMES.get(type(inner).__name__)
        if self.on_disk is not None:
            root = f"file:{self.on_disk}"
        elif scheme is not None:
            root = f"{scheme}:{inner.config['bucket']}/{inner.prefix or ''}/{self.path}"
        elif names := protocols(self.store):
            root = f"{min(names)}:{self.store.path}/{self.path}"  # type: ignore[attr-defined]
        else:
            root = f"{self.store}/{self.path}"
        return [name for name in root.split("/") if name]

    def key(self, name: str) -> str:
        """Key in the store of an object in the folder."""
        return f"{self.path}/{name}" if self.path else name

    def get(self, name: str) -> bytes | None:
        """Read an object; None where there is none."""
        return self.again(lambda: sync(self._bytes(self.key(name))))

    def put(self, name: str, content: bytes) -> None:
        """Write an object."""
        value = default_buffer_prototype().buffer.from_bytes(content)
        self.again(lambda: sync(self.store.set(self.key(name), value)))

    def create(self, name: str, content: bytes) -> bool:
        """Create an object, which must be unlike all others; False where there is one.

        Raises
        ------
        PatchError
            If the store is not known to do that in one request.
        """
        if self.root is not None:
            return create_file(self.root / name, content)
        conditions = exclusive(self.store)
        if conditions is None:
            raise PatchError(
                f"store {self} is not known to create objects exclusively, by which one writer "
                "keeps others out; open it with obstore or s3fs, or give lock=False if nobody else "
                "writes there"
            )
        created = self.again(lambda: sync(conditions.create(self.key(name), content)))
        return created or self.get(name) == content  # where the answer to a request was lost

    def remove(self, name: str) -> None:
        """Remove an object if there is one."""
        self.again(lambda: sync(self.store.delete(self.key(name))))

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove many objects, several at once."""
        self._many(self.store.delete, names)

    def contents(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """Read many objects, several at once; None where there is none."""
        root = self.root
        if root is not None:
            return {name: _read(root / name) for name in names}
        return self._many(self._bytes, names)

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        """Give the bytes of many objects; None where there is none."""
        root = self.root
        if root is not None:
            return {name: _size(root / name) for name in names}

        async def size(key: str) -> int | None:
            try:
                return await self.store.getsize(key)
            except FileNotFoundError:
                return None

        return self._many(size, names)

    async def _bytes(self, key: str) -> bytes | None:
        buffer = await self.store.get(key, default_buffer_prototype())
        return None if buffer is None else buffer.to_bytes()

    def _many(self, request: Callable[[str], Awaitable[T]], names: Iterable[str]) -> dict[str, T]:
        """Make a request for many objects, several at once."""
        left, answers = dict.fromkeys(names), dict[str, T]()

        async def make() -> None:
            self._forget_lists()
            upcoming = iter([*left])

            async def some() -> None:
                for name in upcoming:
                    answers[name] = await request(self.key(name))
                    del left[name]

            # All of them end before the next try, and before anything is written anew.
            ends = await asyncio.gather(*(some() for _ in range(_AT_ONCE)), return_exceptions=True)
            for error in ends:
                if error is not None:
                    raise error

        self.again(lambda: sync(make()))
        return answers

    def prune(self, name: str = "") -> None:
        """Remove empty directories, which disks keep and other stores do not have."""
        if self.root is not None:
            for path, _, _ in os.walk(self.root / name, topdown=False):
                with contextlib.suppress(OSError):  # it is not empty, or another removed it
                    os.rmdir(path)

    def check_links(self) -> None:
        """Refuse a folder of a disk that holds links: what is written might land elsewhere.

        Raises
        ------
        PatchError
            It names some of them.
        """
        if self.root is None:
            return
        links = [
            os.path.join(path, name)
            for path, folders, files in os.walk(self.root)
            for name in (*folders, *files)
            if os.path.islink(os.path.join(path, name))
        ]
        if links:
            raise PatchError(
                f"store {self} holds links, {', '.join(sorted(links)[:5])}, through which others' "
                "files would be written or removed; remove them, or give another path"
            )

    def document(self, name: str) -> dict[str, Any] | None:
        """Read a JSON object, such as ``zarr.json``; None where there is none.

        Raises
        ------
        PatchError
            If it is something else.
        """
        content = self.get(name)
        document = None if content is None else parsed(content)
        if content is not None and document is None:
            raise PatchError(f"{name} of store {self} is damaged; remove the store")
        return document

    def names(self, prefix: str = "") -> list[str]:
        """List the objects under a prefix that ends with "/", without it."""
        whole = self.key(prefix)
        return [key.removeprefix(whole) for key in self.again(lambda: sync(self._list(whole)))]

    def again(self, request: Callable[[], T]) -> T:
        """Make a request of the store; again where it fails, unless it is a disk."""
        with without_credentials():
            for pause in () if isinstance(self.store, LocalStore) else _PAUSES:
                try:
                    return request()
                except FileNotFoundError:
                    raise
                except Exception:  # whatever a store's library raises; the last time it is shown
                    time.sleep(pause)
            return request()

    def _forget_lists(self) -> None:
        files = getattr(self.store, "fs", None)
        if files is not None:  # fsspec remembers lists, and other processes write here
            files.invalidate_cache()

    async def _list(self, prefix: str) -> list[str]:
        self._forget_lists()
        try:
            keys = [key async for key in self.store.list_prefix(prefix)]
        except FileNotFoundError:
            return []
        # fsspec names the folder where its first object came between two requests of it.
        own = getattr(self.store, "path", None)
        return [key for key in keys if key.startswith(prefix) and key != own]


_SCHEMES = {"S3Store": "s3", "GCSStore": "gcs"}
"""How fsspec calls what obstore opens."""


def as_disk(store: Store) -> LocalStore | None:
    """Give a store that lies on a disk of this machine, whichever library opened it, as zarr's."""
    inner: Any = getattr(store, "store", None)  # of obstore
    if isinstance(store, LocalStore):
        return store
    if "file" in protocols(store):
        return LocalStore(store.path, read_only=store.read_only)  # type: ignore[attr-defined]
    if type(inner).__name__ == "LocalStore" and inner.prefix is not None:
        return LocalStore(Path(inner.prefix), read_only=store.read_only)
    return None


def create_file(path: Path, content: bytes) -> bool:
    """Create a file, also while others remove its directory if it is empty; False if there is one.

    Raises
    ------
    PatchError
        If there is something else where its directory is to be.
    """
    for left in reversed(range(_RACES)):
        try:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise PatchError(
                    f"{path.parent} must be a directory, to hold {path.name}, and is a file; "
                    "remove it"
                ) from error
            with open(path, "xb") as file:
                file.write(content)
            return True
        except FileExistsError:
            return False
        except FileNotFoundError:
            if not left:
                raise
    return False


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def without_credentials() -> Iterator[None]:
    """Raise an error whose text holds credentials as another one, whose text does not."""
    try:
        yield
    except Exception as error:
        if redacted(error) == str(error):
            raise
        kinds = (FileNotFoundError, OSError, ValueError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
        raise kind(told(error)) from error


def parsed(content: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None where it is something else, or torn."""
    try:
        document = parse(content, whole=True)
    except Unfit:
        return None
    return document if isinstance(document, dict) else None
