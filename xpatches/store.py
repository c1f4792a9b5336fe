"""Where a patch dataset lies, and the marks of the job that writes it: any store of zarr's.

While a dataset is being written, a group ``xpatches_job`` lies in it:

- ``writer``: who writes, renewed while it does, so that no one else begins;
- ``ready``: everything but the patches is written;
- ``blocks/{variable}/{number}``: this block of the variable is written, and the checksum of the
  samples it was made from;
- ``complete``: all are.

Existence is what counts, and a checksum of full length: a mark that was torn in two says nothing
wrong. The group is removed at the end: a dataset without it is complete.
"""

import asyncio
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, StorePath, ZipStore

from xpatches.documents import Unfit, integer, number, parse, record, text
from xpatches.errors import PatchError
from xpatches.redaction import redacted, told

JOB = "xpatches_job"
"""Attr of a patch dataset that describes its job, and the group of the job's marks."""
MARKS = f"{JOB}/blocks"
"""Where the marks of blocks lie."""

T = TypeVar("T")

_PAUSES = (0.1, 0.5, 2.0)
"""Seconds before a request that failed is made again."""
_REMOVERS = 32
"""Objects that are removed at once."""
_RENEWED = 10.0
"""Seconds after which a writer says again that it writes."""
_TAKEN_OVER = 0.5
"""Seconds that a writer waits who takes over from a dead one, for others who do the same."""
_FORGOTTEN = 60.0
"""Seconds of silence after which it is taken for dead."""


_HELD: set[str] = set()
"""What this process writes as."""


@dataclass(frozen=True)
class Folder:
    """Objects under a path of a store; it can be sent to other processes.

    Examples
    --------
    >>> folder = open_folder(zarr.storage.MemoryStore())
    >>> folder.put("a/b", b"c")
    >>> folder.get("a/b"), folder.get("b"), folder.names("a/")
    (b'c', None, ['b'])
    """

    store: Store
    path: str = ""

    def __str__(self) -> str:
        protocols = _protocols(self.store)
        place = str(getattr(self.store, "path", "")) if protocols else str(self.store)
        if protocols and "://" not in place:
            place = f"{protocols[0]}://{place}"
        place = redacted(place).removeprefix("file://")
        return f"{place}/{self.path}" if self.path else place

    def __repr__(self) -> str:
        return f"Folder({self})"

    @property
    def on_disk(self) -> str | None:
        """Path on a disk of this machine; None where there is none."""
        if isinstance(self.store, LocalStore):
            return os.path.realpath(self.store.root / self.path)
        if "file" in _protocols(self.store):
            return os.path.realpath(os.path.join(self.store.path, self.path))  # type: ignore[attr-defined]
        return None

    def below(self, other: "Folder") -> str | None:
        """Path from another folder to this one, "" if they are the same; None if it is not there.

        That holds as far as it can be seen: a store may be opened in many ways.

        Examples
        --------
        >>> store = zarr.storage.MemoryStore()
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
        elif protocols := _protocols(self.store):
            root = f"{protocols[0]}:{self.store.path}/{self.path}"  # type: ignore[attr-defined]
        else:
            root = f"{self.store}/{self.path}"
        return [name for name in root.split("/") if name]

    def key(self, name: str) -> str:
        """Key in the store of an object in the folder."""
        return f"{self.path}/{name}" if self.path else name

    def get(self, name: str) -> bytes | None:
        """Read an object; None where there is none."""
        found = self.again(lambda: sync(self.store.get(self.key(name), default_buffer_prototype())))
        return None if found is None else found.to_bytes()

    def put(self, name: str, content: bytes, *, new: bool = False) -> None:
        """Write an object; with `new`, do nothing where there is one."""
        value = default_buffer_prototype().buffer.from_bytes(content)
        set_ = self.store.set_if_not_exists if new else self.store.set
        self.again(lambda: sync(set_(self.key(name), value)))

    def remove(self, name: str) -> None:
        """Remove an object if there is one."""
        self.again(lambda: sync(self.store.delete(self.key(name))))

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove many objects, several at once."""
        left = {self.key(name) for name in names}

        async def remove() -> None:
            keys = iter([*left])

            async def some() -> None:
                for key in keys:
                    await self.store.delete(key)
                    left.discard(key)

            # All of them end before the next try, and before anything is written anew.
            ends = await asyncio.gather(*(some() for _ in range(_REMOVERS)), return_exceptions=True)
            for error in ends:
                if error is not None:
                    raise error

        self.again(lambda: sync(remove()))

    def prune(self, name: str = "") -> None:
        """Remove empty directories, which disks keep and other stores do not have."""
        if isinstance(self.store, LocalStore):
            top = self.store.root / self.key(name)
            for path in [*sorted(top.rglob("*"), reverse=True), top]:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()

    def document(self, name: str) -> dict[str, Any] | None:
        """Read a JSON object, such as ``zarr.json``; None where there is none.

        Raises
        ------
        PatchError
            If it is something else.
        """
        content = self.get(name)
        found = None if content is None else _parsed(content)
        if content is not None and found is None:
            raise PatchError(f"{name} of store {self} is damaged; remove the store")
        return found

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

    async def _list(self, prefix: str) -> list[str]:
        files = getattr(self.store, "fs", None)
        if files is not None:  # fsspec remembers lists, and other processes write here
            files.invalidate_cache()
        try:
            return [key async for key in self.store.list_prefix(prefix)]
        except FileNotFoundError:
            return []


_SCHEMES = {"S3Store": "s3", "GCSStore": "gcs"}
"""How fsspec calls what obstore opens."""


def _protocols(store: Store) -> tuple[str, ...]:
    """Names of what an fsspec store lies on; none for other stores."""
    protocol = getattr(getattr(store, "fs", None), "protocol", ())
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def open_folder(store: Any, *, read_only: bool = False) -> Folder:
    """Find the store of what the user names: a path, a zip file, a URL, or a store of zarr's.

    Raises
    ------
    PatchError
        If it is none of these, or a library that opens the URL is missing.
    """
    if isinstance(store, Folder):
        return store
    inner = store.store if isinstance(store, StorePath) else store
    if type(inner).__module__.partition(".")[0] == "icechunk":  # which is not imported for this
        raise PatchError(
            "store must not be an Icechunk session, which takes objects of zarr alone, no marks "
            "of a job: write to a path or a URL, copy it with xarray.open_zarr(path, "
            "consolidated=False).to_zarr(session.store, zarr_format=3, consolidated=False), and "
            "commit; what is there is opened by xarray.open_zarr(session.store, consolidated=False)"
        )
    if isinstance(store, StorePath):
        return Folder(store.store, store.path)
    if isinstance(store, Store):
        return Folder(store)
    if not isinstance(store, str | os.PathLike):
        raise PatchError(
            f"store must be a path, a URL or a zarr store, got {type(store).__name__}; "
            "give one of those"
        )
    text = os.path.expanduser(os.fspath(store).removeprefix("file://"))
    if "://" in text:
        return Folder(_open_url(text, read_only))
    if text.endswith(".zip"):
        if not read_only:
            raise PatchError(
                f"store must not be a zip file, got {redacted(text)!r}: zip is for reading only"
            )
        return Folder(sync(ZipStore.open(text, mode="r")))
    if not read_only and os.path.isfile(text):
        raise PatchError(f"store must be a folder, got the file {text!r}; give another path")
    # Absolute, for workers and later readers may stand in other folders.
    return Folder(LocalStore(Path(os.path.abspath(text)), read_only=read_only))


def _open_url(url: str, read_only: bool) -> Store:
    scheme, _, place = url.rpartition("::")[2].partition("://")
    bucket = place.partition("/")[0]
    named = scheme not in ("s3", "s3a", "gs", "gcs") or bucket.startswith("arn:")
    if not named and (":" in bucket or "@" in bucket):
        raise PatchError(
            f"store must not hold credentials, got {scheme}://***; give {scheme}://bucket/path, "
            "and them in the environment, or a zarr store with storage_options"
        )
    with without_credentials():
        try:
            return zarr.storage.FsspecStore.from_url(url, read_only=read_only)
        except ValueError as error:
            raise PatchError(
                f"store {redacted(url)!r} cannot be opened: {redacted(error)}; check the URL"
            ) from error
        except ImportError as missing:
            try:
                from obstore.store import from_url
            except ImportError:
                raise PatchError(
                    f"store {redacted(url)!r} needs a library that opens it: {redacted(missing)}; "
                    "or install obstore"
                ) from missing
            return zarr.storage.ObjectStore(from_url(url), read_only=read_only)


@contextmanager
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


def writer_of(folder: Folder) -> str | None:
    """Tell who writes to a folder; None if nobody does."""
    found = _holder(folder)
    return f"process {found['pid']} on {found['host']}" if found and _alive(found) else None


@contextmanager
def writing(folder: Folder) -> Iterator[threading.Event]:
    """Be the only one who writes to a folder; the event given is set when that is no longer so.

    Raises
    ------
    PatchError
        If another process, or another thread, writes there.
    """
    me: dict[str, Any] = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    name = f"{JOB}/writer"

    def content() -> bytes:
        return json.dumps({**me, "time": time.time()}).encode()

    found = _holder(folder)
    dead = found is not None and not _alive(found)
    if dead:
        folder.remove(name)
        found = None
    _HELD.add(me["id"])  # before others of this process can see it
    if found is None:
        folder.put(name, content(), new=True)
        if dead:  # another may have found it dead, too, and remove what was put
            time.sleep(_TAKEN_OVER)
        found = _holder(folder)  # someone else may have been faster
    if found is None or found.get("id") != me["id"]:
        _HELD.discard(me["id"])
        raise _held_by(folder, writer_of(folder) or "another process")
    stop, lost = threading.Event(), threading.Event()

    def renew() -> None:
        renewed = time.monotonic()
        while not stop.wait(_RENEWED):
            try:
                now = _holder(folder)
                if now is not None and now.get("id") != me["id"]:
                    lost.set()
                    return
                folder.put(name, content())
                renewed = time.monotonic()
            except Exception:  # a store may fail for a moment, and the blocks say so
                if time.monotonic() - renewed > _FORGOTTEN:
                    lost.set()
                    return

    renewer = threading.Thread(target=renew, name="xpatches-writer", daemon=True)
    renewer.start()
    try:
        yield lost
    finally:
        stop.set()
        renewer.join()
        _HELD.remove(me["id"])
        if not lost.is_set():
            folder.remove(name)
            folder.prune(JOB)


def check_free(folder: Folder) -> None:
    """Refuse a folder to which someone writes.

    Raises
    ------
    PatchError
        It says who.
    """
    if who := writer_of(folder):
        raise _held_by(folder, who)


def _held_by(folder: Folder, who: str) -> PatchError:
    return PatchError(
        f"store {folder} is being written by {who}; wait until it ends, or, if it is dead, "
        f"for {_FORGOTTEN:.0f} seconds"
    )


def _parsed(content: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None where it is something else, or torn."""
    try:
        found = parse(content, whole=True)
    except Unfit:
        return None
    return found if isinstance(found, dict) else None


def _holder(folder: Folder) -> dict[str, Any] | None:
    """Tell who says that it writes; nothing is known of one who died while it said so."""
    content = folder.get(f"{JOB}/writer")
    if content is None:
        return None
    try:
        found: dict[str, Any] = _writer("", parse(content))
    except Unfit:
        return {}
    return found


_writer = record(
    {"id": text, "host": text, "pid": partial(integer, least=1, most=(1 << 31) - 1), "time": number}
)
"""What a writer says."""


def _alive(writer: dict[str, Any]) -> bool:
    """Whether who wrote this may still write."""
    if not writer or time.time() - writer["time"] > _FORGOTTEN:
        return False
    here = writer["host"] == socket.gethostname()
    if here and writer["pid"] == os.getpid():
        return writer["id"] in _HELD
    if here and os.name == "posix":
        try:
            os.kill(writer["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
    return True
