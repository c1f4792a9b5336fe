"""Create an object only where there is none, replace it only where it is the one that is known.

Both must be one request that the store decides: looking first and writing then lets two writers
through. Object stores have conditional puts, and memory belongs to one process. Of other stores it
is not known; disks, which create exclusively and move files, are not written through here.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.storage import FsspecStore, MemoryStore, ObjectStore

_CREATING = {"s3", "s3a", "gs", "gcs", "memory"}
"""Protocols of fsspec whose files can be created exclusively."""
_REPLACING = {"s3", "s3a"}
"""Those whose files can be replaced on condition."""
_WHOLE = 1 << 32
"""Bytes that s3fs sends in one request."""


class Exclusive(Protocol):
    """Conditional requests of one kind of store; keys are those of the store."""

    async def create(self, key: str, content: bytes) -> bool:
        """Create an object; False where there is one."""

    async def version(self, key: str) -> Any:
        """Give what tells this version of an object from others; None where there is none."""

    async def replace(self, key: str, content: bytes, version: Any) -> bool:
        """Write an object anew; False where it is no longer this version."""


def exclusive(store: Store) -> Exclusive | None:
    """Find the conditional requests of a store; None where it is not known to have them.

    Examples
    --------
    >>> type(exclusive(MemoryStore())).__name__
    '_Memory'
    """
    if isinstance(store, MemoryStore):
        return _Memory(store)
    if isinstance(store, ObjectStore):
        return _Object(store)
    if isinstance(store, FsspecStore) and _CREATING & protocols(store):
        return _Fsspec(store, replaces=bool(_REPLACING & protocols(store)))
    return None


def in_memory_of_this_process(store: Store) -> bool:
    """Whether no other process can write to a store."""
    inner = type(getattr(store, "store", None)).__name__  # of obstore
    return isinstance(store, MemoryStore) or "memory" in protocols(store) or inner == "MemoryStore"


def protocols(store: Store) -> set[str]:
    """Names of what an fsspec store lies on; none for other stores."""
    protocol = getattr(getattr(store, "fs", None), "protocol", ())
    return {protocol} if isinstance(protocol, str) else set(protocol)


@dataclass(frozen=True)
class _Memory:
    """What one process writes alone needs no conditions but for creation, of what is unique."""

    store: MemoryStore

    async def create(self, key: str, content: bytes) -> bool:
        value = default_buffer_prototype().buffer.from_bytes(content)
        await self.store.set_if_not_exists(key, value)
        buffer = await self.store.get(key, default_buffer_prototype())
        return buffer is not None and buffer.to_bytes() == content

    async def version(self, key: str) -> Any:
        return "" if await self.store.exists(key) else None

    async def replace(self, key: str, content: bytes, version: Any) -> bool:
        await self.store.set(key, default_buffer_prototype().buffer.from_bytes(content))
        return True


@dataclass(frozen=True)
class _Object:
    """By obstore."""

    store: Any

    async def create(self, key: str, content: bytes) -> bool:
        from obstore import put_async
        from obstore.exceptions import AlreadyExistsError

        try:
            await put_async(self.store.store, key, content, mode="create")
        except AlreadyExistsError:
            return False
        return True

    async def version(self, key: str) -> Any:
        from obstore import head_async

        try:
            head = await head_async(self.store.store, key)
        except FileNotFoundError:
            return None
        known = {"e_tag": head["e_tag"], "version": head["version"]}
        return {key: value for key, value in known.items() if value is not None}

    async def replace(self, key: str, content: bytes, version: Any) -> bool:
        from obstore import put_async
        from obstore.exceptions import PreconditionError

        try:
            await put_async(self.store.store, key, content, mode=version)
        except (PreconditionError, FileNotFoundError):
            return False
        return True


@dataclass(frozen=True)
class _Fsspec:
    """By the methods of asynchronous file systems, as fsspec documents them."""

    store: Any
    replaces: bool

    async def create(self, key: str, content: bytes) -> bool:
        return await self._put(key, content, FileExistsError, mode="create")

    async def version(self, key: str) -> Any:
        fresh = {"refresh": True} if self.replaces else {}
        try:
            information = await self.store.fs._info(self._path(key), **fresh)
        except FileNotFoundError:
            return None
        return str(information.get("ETag", ""))

    async def replace(self, key: str, content: bytes, version: Any) -> bool:
        condition = {"IfMatch": version} if self.replaces else {}
        return await self._put(key, content, FileNotFoundError, **condition)

    async def _put(
        self, key: str, content: bytes, refusal: type[OSError], **condition: Any
    ) -> bool:
        whole = {"chunksize": _WHOLE} if self.replaces else {}  # uploads in parts know no condition
        try:
            await self.store.fs._pipe_file(self._path(key), content, **whole, **condition)
        except OSError as error:
            if isinstance(error, refusal) or _is_refused(error):
                return False
            raise
        return True

    def _path(self, key: str) -> str:
        return f"{self.store.path}/{key}" if self.store.path else key


def _is_refused(error: OSError) -> bool:
    """Whether a server answered that the condition does not hold, or that another just wrote."""
    cause = error.__cause__ or error.__context__
    response = getattr(cause, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
