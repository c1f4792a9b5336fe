"""What lies in a folder: nothing, a patch dataset, one that is being written, or something else.

Everything but the patches is made in memory first, as the objects that zarr would store. They are
written by the setup; a job that is resumed makes them anew and compares them with what is stored.
"""

import json
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

import xarray as xr
from zarr.storage import LocalStore, MemoryStore

from xpatches.descriptions import read_description
from xpatches.documents import Unfit, parse, shown
from xpatches.errors import PatchError
from xpatches.spec import SPEC_ATTR
from xpatches.store import JOB, MARKS, Folder


def state_of(folder: Folder) -> str:
    """Tell what lies in a folder."""
    if folder.get(f"{JOB}/complete") is not None:
        return "complete"
    if folder.get(f"{JOB}/ready") is not None:
        return "writing"
    if folder.get(f"{JOB}/zarr.json") is not None:
        return "begun"
    if folder.document("zarr.json") is not None:
        return "complete" if holds_patches(folder) else "foreign zarr"
    others = (name for name in folder.names() if not name.startswith(f"{JOB}/"))
    return "nothing" if next(others, None) is None else "foreign"


def holds_patches(folder: Folder) -> bool:
    """Tell whether there is a patch dataset, complete or not."""
    return JOB in attrs_of(folder.document("zarr.json"))


def attrs_of(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give the attrs in the document of a group; none where they are no such."""
    attrs = (document or {}).get("attributes")
    return attrs if isinstance(attrs, dict) else {}


def done_blocks(folder: Folder) -> list[str]:
    """List the blocks that are recorded as written: their variables and numbers."""
    return folder.names(f"{MARKS}/")


def check_state(folder: Folder, resume: bool, overwrite: bool) -> str:
    """Tell what lies in a folder, if a job may be written there.

    Raises
    ------
    PatchError
        If it may not.
    """
    if resume and overwrite:
        raise PatchError("resume and overwrite exclude each other; give one of them")
    state = state_of(folder)
    if state == "nothing":
        return state
    if state == "foreign":
        raise PatchError(
            f"store {folder} holds files that are no zarr of format 3; give another path, or "
            "remove them"
        )
    if resume and state == "foreign zarr":
        raise PatchError(
            f"store {folder} holds no patch dataset that could be resumed; give another path"
        )
    if not (resume or overwrite):
        found = "a zarr store" if state == "foreign zarr" else "a patch dataset"
        part = "" if state in ("complete", "foreign zarr") else ", incomplete"
        raise PatchError(
            f"store {folder} exists already, {found}{part}; resume=True finishes an incomplete "
            "dataset, overwrite=True replaces what is there"
        )
    return state


def check_files(folder: Folder) -> list[str]:
    """List the objects in a folder, which are to be removed.

    Raises
    ------
    PatchError
        If there are files that are not zarr's.
    """
    names = folder.names()
    nodes = {name.removesuffix("zarr.json") for name in names if f"/{name}".endswith("/zarr.json")}
    for name in names:
        if not (name.startswith(f"{JOB}/") or _PARTIAL.search(name) or _is_zarr(name, nodes)):
            raise PatchError(
                f"store {folder} holds a file that is no zarr, {name}; remove it, or give another "
                "path"
            )
    return names


def set_up(objects: Mapping[str, bytes], folder: Folder) -> None:
    """Remove what there is, as `check_files` lists it, and write everything but the patches."""
    names = check_files(folder)
    group = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()
    folder.put(f"{JOB}/zarr.json", group)
    for mark in ("complete", "ready"):
        folder.remove(f"{JOB}/{mark}")
    kept = {f"{JOB}/zarr.json", f"{JOB}/writer"}
    folder.remove_all(name for name in names if name not in kept)
    folder.prune()
    for name, content in objects.items():
        folder.put(name, content)
    folder.put(f"{JOB}/ready", b"")


_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")
"""What a process that was killed had not yet renamed."""
_CHUNK = re.compile(r"zarr\.json|c|c/.*|[0-9]+([./][0-9]+)*")
"""What lies directly under a group or an array."""


def _is_zarr(name: str, nodes: Container[str]) -> bool:
    """Whether an object belongs to one of the groups and arrays."""
    parts = name.split("/")
    return any(
        "".join(f"{part}/" for part in parts[:depth]) in nodes
        and _CHUNK.fullmatch("/".join(parts[depth:]))
        for depth in range(len(parts))
    )


def check_same(objects: Mapping[str, bytes], folder: Folder) -> None:
    """Refuse to resume what is not the same job."""
    differences: list[str] = []
    for name, ours in objects.items():
        stored = folder.get(name)
        if stored is None:
            differences.append(f"{name} is missing")
        elif stored != ours and name.endswith("zarr.json"):
            what = name.removesuffix("zarr.json").strip("/")
            for difference in _different(what, folder.document(name), json.loads(ours)):
                if not difference.startswith(f"attributes.{JOB}.checksums,"):  # written at the end
                    differences.append(difference)
        elif stored != ours:
            differences.append(f"values of {name.split('/c')[0]!r}")
    if differences:
        shown = "; ".join(dict.fromkeys(differences[:5]))
        raise PatchError(
            f"store {folder} is of another job, it differs in: {shown}; "
            "resume with the same arguments, image and versions, or give another store"
        )


def prepare(template: xr.Dataset, encoding: Mapping[str, Any]) -> dict[str, bytes]:
    """Give all objects of the dataset but the patches."""
    memory = MemoryStore()
    try:
        template.to_zarr(
            memory, mode="w", compute=False, encoding=encoding, consolidated=False, zarr_format=3
        )
    except Exception as error:  # whatever xarray and zarr raise for what they cannot store
        notes = " ".join(str(note).split("\n")[0] for note in getattr(error, "__notes__", []))
        raise PatchError(
            f"the dataset cannot be stored: {error} {notes}; change the attrs, coords or encoding"
        ) from error
    made = Folder(memory)
    return {name: made.get(name) or b"" for name in sorted(made.names())}


def kept_checksums(folder: Folder) -> dict[str, int]:
    """Give the checksums that a finished dataset keeps, by variable and number of the block."""
    described = read_description(attrs_of(folder.document("zarr.json")), folder)
    return dict(described.get("checksums", {}))


def finish(folder: Folder, checksums: Mapping[str, int]) -> None:
    """Mark the dataset as complete, keep some checksums, and remove what the job needed."""
    root = folder.document("zarr.json") or {}
    described = read_description(attrs_of(root), folder)
    root["attributes"][JOB] = json.dumps({**described, "checksums": checksums}, sort_keys=True)
    folder.put("zarr.json", json.dumps(root, indent=2).encode())
    folder.put(f"{JOB}/complete", b"")
    clear(folder)


def undo(folder: Folder) -> None:
    """Remove what the setup wrote, and all else but the writer."""
    folder.remove_all(name for name in folder.names() if name != f"{JOB}/writer")
    folder.prune()


def clear(folder: Folder) -> None:
    """Remove what is left of the job in a dataset that is complete, but for its writer."""
    if isinstance(folder.store, LocalStore):
        folder.remove_all(name for name in folder.names() if _PARTIAL.search(name))
    kept = {f"{JOB}/complete", f"{JOB}/writer"}
    names = [f"{JOB}/{name}" for name in folder.names(f"{JOB}/")]
    folder.remove_all(name for name in names if name not in kept)
    folder.remove(f"{JOB}/complete")


def _different(what: str, stored: Any, ours: Any) -> Iterator[str]:
    """Name what differs between two documents, those inside of strings included."""
    if stored == ours:
        return
    if what.endswith((f".{JOB}", f".{SPEC_ATTR}")):
        try:
            stored, ours = parse(stored), parse(ours)
        except Unfit as error:
            yield f"{what}, {error}"
            return
    if isinstance(stored, dict) and isinstance(ours, dict):
        for key in dict.fromkeys([*stored, *ours]):
            yield from _different(f"{what}.{key}".strip("."), stored.get(key), ours.get(key))
    elif isinstance(stored, list) and isinstance(ours, list) and len(stored) == len(ours):
        for number, pair in enumerate(zip(stored, ours, strict=True)):
            yield from _different(f"{what}[{number}]", *pair)
    else:
        yield f"{what}, stored {shown(stored)}, now {shown(ours)}"
