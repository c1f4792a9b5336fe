"""What lies in a folder: nothing, a patch dataset, one that is being written, or something else.

The attr ``xpatches_job`` of the root describes a dataset; that it is complete is said there, and
last. While it is written, a group of that name lies beside its arrays:

- ``writer/{number}`` and ``runs/{run}``: who writes (see `xpatches.jobs.lock`);
- ``ready``: everything but the patches is written, and the runs whose blocks count;
- ``blocks/{variable}/{number}``: the mark of a block that is written.

Everything but the patches is made in memory first, as the objects that zarr would store. They are
written by the setup; a job that is resumed makes them anew and compares them with what is stored.

Any moment may be the last one of a process. The setup therefore says first that nothing is complete
or ready, and removes chunks before the metadata that tell that they are chunks.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr
from zarr.storage import MemoryStore

from xpatches.arguments import said, shown
from xpatches.datasets.descriptions import read_description
from xpatches.documents import Unfit, parse
from xpatches.errors import PatchError
from xpatches.images.spec import SPEC_ATTR
from xpatches.jobs.folder import JOB, Folder, parsed
from xpatches.jobs.nodes import chunk_keys, foreign
from xpatches.jobs.writer import CLAIMS, HOMES, LostError, Run, beat_of

MARKS = f"{JOB}/blocks"
"""Where the marks of blocks lie."""
_ROOT = "zarr.json"
_GROUP = f"{JOB}/zarr.json"
_READY = f"{JOB}/ready"
_RUN = "[0-9a-f]{32}"
_OURS = re.compile(
    rf"{JOB}/(zarr\.json|ready|writer/[1-9][0-9]*|blocks/[^/]+/[0-9]+"
    rf"|runs/{_RUN}(\.ended)?/(beat|claim|lock|removed|{_RUN}))"
)
"""What jobs write beside a dataset."""


def state_of(folder: Folder) -> str:
    """Tell what lies in a folder."""
    found = folder.contents([_ROOT, _GROUP, _READY])
    if found[_ROOT] is not None:
        described = description_in(folder.document(_ROOT))
        if described is not None and described.get("complete") is True:
            return "complete"
        if described is not None and found[_READY] is not None:
            return "writing"
        if described is None and found[_GROUP] is None:
            return "foreign zarr"
        return "begun"
    if found[_GROUP] is not None:
        return "begun"
    others = (name for name in folder.names() if not name.startswith(f"{JOB}/"))
    if next(others, None) is None:
        return "nothing"
    if any(folder.contents([_ROOT, _GROUP]).values()):  # by another, just now
        return state_of(folder)
    return "foreign"


def attrs_of(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give the attrs in the document of a group; none where they are no such."""
    attrs = (document or {}).get("attributes")
    return attrs if isinstance(attrs, dict) else {}


def description_in(root: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Give what describes a dataset, whole or damaged; None for other groups."""
    attrs = attrs_of(root)
    if JOB not in attrs:
        return None
    text = attrs[JOB]
    return (parsed(text.encode()) if isinstance(text, str) else None) or {}


def holds_patches(folder: Folder) -> bool:
    """Tell whether there is a patch dataset, complete or not."""
    return description_in(folder.document(_ROOT)) is not None


def marked_blocks(folder: Folder) -> list[str]:
    """List the blocks that have a mark: their variables and numbers."""
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


def check_apart(run: Run, sources: Iterable[Folder]) -> None:
    """Refuse to write where a source is read, whichever ways lead there: by what the run wrote.

    Parameters
    ----------
    run
        Its heartbeat lies in the folder, and nowhere else.
    sources
        Where arrays lie that are read.

    Raises
    ------
    PatchError
        If the folder holds one of them.
    """
    looked_at = set[tuple[Any, str]]()
    for source in sources:
        names = source.path.split("/") if source.path else []
        for depth in range(len(names) + 1):
            path = "/".join(names[:depth])
            if (id(source.store), path) in looked_at:
                continue
            looked_at.add((id(source.store), path))
            if Folder(source.store, path).get(beat_of(run.id)) is not None:
                raise PatchError(f"store {run.folder} is where the image lies; give another store")


def check_files(folder: Folder) -> list[str]:
    """List the objects in a folder, which may be removed.

    Raises
    ------
    PatchError
        If there is anything that zarr's metadata do not tell of.
    """
    every = folder.names()
    names = [name for name in every if not name.startswith(f"{HOMES}/")]
    metadata = [name for name in names if f"/{name}".endswith("/zarr.json")]
    documents = {name: content or b"" for name, content in folder.contents(metadata).items()}
    unknown = foreign((name for name in every if not _OURS.fullmatch(name)), documents)
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise PatchError(
            f"store {folder} holds what is no zarr: {', '.join(unknown[:_SHOWN])}{more}; remove "
            "it, or give another path"
        )
    return names


_SHOWN = 10
"""Names that a message lists."""


def set_up(run: Run, objects: Mapping[str, bytes], made: Iterable[str]) -> None:
    """Remove what there is, as `check_files` lists it, and write everything but the patches.

    Chunks that blocks will replace stay until they do: object stores remove without conditions.

    Parameters
    ----------
    run
        Who writes.
    objects
        All but the chunks of the arrays that blocks make.
    made
        Names of these.
    """
    folder, names = run.folder, check_files(run.folder)
    root = folder.document(_ROOT)
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    run.publish({_GROUP: json.dumps(group).encode()})
    if root is not None and description_in(root) is not None:
        run.publish({_ROOT: _described(root, complete=False)})
    run.remove_all([_READY])
    arrays = [f"{name}/zarr.json" for name in made]
    before = {name: of for name, of in folder.contents(arrays).items() if of and _is_array(of)}
    others = foreign(names, {name: objects[name] for name in before})
    kept = (_GROUP, f"{CLAIMS}/")
    run.remove_all(name for name in _in_order(others) if not name.startswith(kept))
    folder.prune()
    add(run, {name: content for name, content in objects.items() if name != _ROOT})
    run.publish({_ROOT: objects[_ROOT]})  # which says what this is
    say_ready(run, Ready((run.id,)))


def add(run: Run, objects: Mapping[str, bytes]) -> None:
    """Write objects one by one: what tells that there are chunks, and then these."""
    for name in reversed(_in_order(objects)):
        run.publish({name: objects[name]})


def _in_order(names: Iterable[str]) -> list[str]:
    """Sort objects: chunks first, and then what tells that they are, from below."""
    return sorted(names, key=lambda name: (name.endswith("zarr.json"), -name.count("/")))


def _is_array(document: bytes) -> bool:
    try:
        return chunk_keys(document) is not None
    except ValueError:
        return False


@dataclass(frozen=True)
class Ready:
    """Everything but the patches is written."""

    runs: tuple[str, ...]
    """Those whose blocks count."""
    repair: bool = False
    """Whether all blocks do whose objects are there: the dataset was complete, and was verified."""


def say_ready(run: Run, ready: Ready) -> None:
    """Say that everything but the patches is written."""
    run.publish({_READY: json.dumps({"runs": ready.runs, "repair": ready.repair}).encode()})


def ready_in(folder: Folder) -> Ready:
    """Read what was said of a dataset that is being written."""
    found = folder.document(_READY) or {}
    runs, repair = found.get("runs"), found.get("repair")
    if (
        not isinstance(runs, list)
        or not all(isinstance(run, str) for run in runs)
        or not isinstance(repair, bool)
    ):
        raise PatchError(f"{_READY} of store {folder} is damaged; overwrite the store")
    return Ready(tuple(runs), repair)


def say_incomplete(run: Run) -> None:
    """Take back that a dataset is complete."""
    root = run.folder.document(_ROOT) or {}
    run.publish({_ROOT: _described(root, complete=False)})


def check_same(objects: Mapping[str, bytes], folder: Folder, whole: bool = True) -> list[str]:
    """Refuse to resume what is not the same job; the objects that are missing, unless it is whole.

    Raises
    ------
    PatchError
        If anything differs, or is missing where all is to be there.
    """
    differences, missing = list[str](), list[str]()
    for name, stored in folder.contents(objects).items():
        ours = objects[name]
        if stored is None:
            missing.append(name)
        elif stored != ours and name.endswith("zarr.json"):
            what = name.removesuffix("zarr.json").strip("/")
            for difference in _different(what, folder.document(name), json.loads(ours)):
                if not difference.startswith(_SAID_LAST):
                    differences.append(difference)
        elif stored != ours:
            differences.append(f"values of {name.split('/c')[0]!r}")
    differences += [f"{name} is missing" for name in missing] if whole else []
    if differences:
        shown = "; ".join(dict.fromkeys(differences[:5]))
        raise PatchError(
            f"store {folder} is of another job, it differs in: {shown}; "
            "resume with the same arguments, image and versions, or give another store"
        )
    return missing


_SAID_LAST = (f"attributes.{JOB}.checksums,", f"attributes.{JOB}.complete,")
"""What of a description is written at the end."""


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
            f"the dataset cannot be stored: {said(error)} {notes}; change the attrs, coords or "
            "encoding"
        ) from error
    made = Folder(memory)
    return {name: content or b"" for name, content in made.contents(sorted(made.names())).items()}


def kept_checksums(folder: Folder) -> dict[str, int]:
    """Give the checksums that a finished dataset keeps, by variable and number of the block."""
    return dict(read_description(attrs_of(folder.document(_ROOT)), folder).get("checksums", {}))


def finish(run: Run, checksums: Mapping[str, int]) -> None:
    """Say that the dataset is complete, with some checksums, and remove what the job needed."""
    root = run.folder.document(_ROOT)
    if root is None:
        raise LostError(f"zarr.json of store {run.folder} was removed; overwrite the store")
    run.publish({_ROOT: _described(root, complete=True, checksums=checksums)})
    clear(run)


def clear(run: Run) -> None:
    """Remove what is left of jobs in a dataset that is complete, but for the run's own."""
    names = (f"{JOB}/{name}" for name in run.folder.names(f"{JOB}/"))
    kept = (f"{run.home}/", f"{CLAIMS}/")
    run.remove_all(name for name in names if not name.startswith(kept))
    run.folder.prune()


def _described(root: Mapping[str, Any], **said: Any) -> bytes:
    """Give a root whose description says more."""
    described = {**(description_in(root) or {}), **said}
    attrs = {**root["attributes"], JOB: json.dumps(described, sort_keys=True)}
    return json.dumps({**root, "attributes": attrs}, indent=2).encode()


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
