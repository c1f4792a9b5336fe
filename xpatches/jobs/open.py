"""Which folder a user means: a path, a zip file, a URL, or a store of zarr's."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, StorePath, ZipStore

from xpatches.arguments import shown
from xpatches.credentials import redacted
from xpatches.errors import PatchError
from xpatches.jobs.folder import Folder, as_disk, without_credentials
from xpatches.private_names import sync


def takes_zarr_alone(store: Any) -> bool:
    """Whether a store is an Icechunk session, which has no room for what jobs write beside."""
    return type(store).__module__.partition(".")[0] == "icechunk"  # which is not imported for this


def open_folder(store: Any, *, read_only: bool = False, what: str = "store") -> Folder:
    """Find the store of what the user names: a path, a zip file, a URL, or a store of zarr's.

    Raises
    ------
    PatchError
        If it is none of these, or a library that opens the URL is missing.
    """
    if isinstance(store, Folder):
        return store
    inner = store.store if isinstance(store, StorePath) else store
    if takes_zarr_alone(inner):
        raise PatchError(
            "store must not be an Icechunk session, which takes objects of zarr alone, no marks "
            "of a job: write to a path or a URL, copy it with xarray.open_zarr(path, "
            "consolidated=False).to_zarr(session.store, zarr_format=3, consolidated=False), and "
            "commit; what is there is opened by xarray.open_zarr(session.store, consolidated=False)"
        )
    if isinstance(inner, Store):
        disk = None if read_only else as_disk(inner)
        return Folder(disk or inner, store.path if isinstance(store, StorePath) else "")
    text = _as_path(what, store)
    if "://" in text:
        return Folder(_open_url(text, read_only))
    if text.endswith(".zip"):
        if not read_only:
            raise PatchError(
                f"{what} must not be a zip file, got {redacted(text)!r}: zip is for reading only"
            )
        return Folder(sync(ZipStore.open(text, mode="r")))
    if read_only and not os.path.exists(text):
        raise PatchError(f"{what} {text} does not exist; check the path")
    if not read_only and os.path.isfile(text):
        raise PatchError(f"{what} must be a folder, got the file {text!r}; give another path")
    # Absolute, for workers and later readers may stand in other folders.
    return Folder(LocalStore(Path(os.path.abspath(text)), read_only=read_only))


def _as_path(what: str, store: Any) -> str:
    """Normalise a path, of which there need not be anything, or a URL."""
    try:
        path = os.fspath(store)
        if not path or isinstance(path, bytes):
            raise TypeError
        path = os.path.expanduser(str.__str__(path).removeprefix("file://"))
        if "://" not in path:
            with suppress(FileNotFoundError):
                os.stat(path)
    except OSError as error:
        raise PatchError(
            f"{what} {shown(store)} cannot be opened: {error.strerror}; give another path"
        ) from error
    except Exception:  # whatever a type raises that is no path
        raise PatchError(
            f"{what} must be a path, a URL or a zarr store, got {shown(store)}; give one of those"
        ) from None
    return path


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
