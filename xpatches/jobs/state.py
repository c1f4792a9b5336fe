"""What lies in a folder: nothing, a dataset, one that is being written, or something else.

The attr ``xpatches_job`` of the root describes a dataset; that it is complete is said there, and
last. While it is written, a group of that name lies beside its arrays:

- ``writer/{number}`` and ``runs/{run}``: who writes (see `xpatches.jobs.lock`);
- ``ready``: everything but what blocks make is written, and the runs whose blocks count;
- ``blocks/{variable}/{number}``: the mark of a block that is written.

Any moment may be the last one of a process.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from xpatches.arguments import shown
from xpatches.documents import Check, Unfit, flag, integer, list_of, mapping_of, parse, record, text
from xpatches.errors import PatchError
from xpatches.jobs.chunk_keys import foreign
from xpatches.jobs.folder import JOB, Folder, parsed
from xpatches.jobs.writer import HOMES

MARKS = f"{JOB}/blocks"
"""Where the marks of blocks lie."""
ROOT = "zarr.json"
"""The document of a dataset's group."""
GROUP = f"{JOB}/zarr.json"
"""That of the group beside its arrays."""
READY = f"{JOB}/ready"
"""Lies there as long as a dataset is written."""
SAID_LAST: Mapping[str, Check] = {
    "complete": flag,
    "checksums": mapping_of(text, partial(integer, most=(1 << 32) - 1)),
}
"""What a job says of itself in the description, at the end."""
_ready = record({"runs": list_of(text), "repair": flag})
_SAID_LAST = tuple(f"attributes.{JOB}.{key}," for key in SAID_LAST)
_RUN = "[0-9a-f]{32}"
_OURS = re.compile(
    rf"{JOB}/(zarr\.json|ready|writer/[1-9][0-9]*|blocks/[^/]+/[0-9]+"
    rf"|runs/{_RUN}(\.ended)?/(beat|claim|lock|removed|{_RUN}))"
)
"""What jobs write beside a dataset."""
_DOCUMENT = re.compile(r"(.*\.)?attributes\.xpatches[^.]*")
"""An attr of ours, whose text is a document itself."""
_SHOWN = 10
"""Names that a message lists."""


@dataclass(frozen=True)
class Ready:
    """Everything but what blocks make is written."""

    runs: tuple[str, ...]
    """Those whose blocks count."""
    repair: bool = False
    """Whether all blocks do whose objects are there: the dataset was complete, and was verified."""


@dataclass(frozen=True)
class StoredDataset:
    """What there is of a dataset in a folder."""

    folder: Folder

    def state(self) -> str:
        """Tell what lies in the folder."""
        contents = self.folder.contents([ROOT, GROUP, READY])
        if contents[ROOT] is not None:
            described = self.description()
            if described is not None and described.get("complete") is True:
                return "complete"
            if described is not None and contents[READY] is not None:
                return "writing"
            if described is None and contents[GROUP] is None:
                return "foreign zarr"
            return "begun"
        if contents[GROUP] is not None:
            return "begun"
        others = (name for name in self.folder.names() if not name.startswith(f"{JOB}/"))
        if next(others, None) is None:
            return "nothing"
        if any(self.folder.contents([ROOT, GROUP]).values()):  # by another, just now
            return self.state()
        return "foreign"

    def description(self) -> dict[str, Any] | None:
        """Give what describes the dataset, whole or damaged; None where there is none."""
        return description_in(self.folder.document(ROOT))

    def exists(self) -> bool:
        """Tell whether there is a dataset of a job, complete or not."""
        return self.description() is not None

    def marks(self) -> list[str]:
        """List the blocks that have a mark: their variables and numbers."""
        return self.folder.names(f"{MARKS}/")

    def ready(self) -> Ready:
        """Read what was said of a dataset that is being written."""
        try:
            ready = _ready("", self.folder.document(READY))
        except Unfit as error:
            raise PatchError(
                f"{READY} of store {self.folder} is damaged; overwrite the store"
            ) from error
        return Ready(tuple(ready["runs"]), ready["repair"])

    def checksums(self) -> dict[str, int]:
        """Give the checksums that a finished dataset keeps, by variable and number of the block."""
        kept = (self.description() or {}).get("checksums", {})
        try:
            return dict(SAID_LAST["checksums"]("checksums", kept))
        except Unfit as error:
            raise damaged(self.folder, error) from error

    def check_state(self, resume: bool, overwrite: bool) -> str:
        """Tell what lies in the folder, if a job may be written there.

        Raises
        ------
        PatchError
            If it may not.
        """
        if resume and overwrite:
            raise PatchError("resume and overwrite exclude each other; give one of them")
        state = self.state()
        if state == "nothing":
            return state
        if state == "foreign":
            raise PatchError(
                f"store {self.folder} holds files that are no zarr of format 3; give another path, "
                "or remove them"
            )
        if resume and state == "foreign zarr":
            raise PatchError(
                f"store {self.folder} holds no patch dataset that could be resumed; give another "
                "path"
            )
        if not (resume or overwrite):
            held = "a zarr store" if state == "foreign zarr" else "a patch dataset"
            part = "" if state in ("complete", "foreign zarr") else ", incomplete"
            raise PatchError(
                f"store {self.folder} exists already, {held}{part}; resume=True finishes an "
                "incomplete dataset, overwrite=True replaces what is there"
            )
        return state

    def check_files(self) -> list[str]:
        """List the objects in the folder, which may be removed.

        Raises
        ------
        PatchError
            If there is anything that zarr's metadata do not tell of.
        """
        objects = self.folder.names()
        names = [name for name in objects if not name.startswith(f"{HOMES}/")]
        metadata = [name for name in names if f"/{name}".endswith("/zarr.json")]
        contents = self.folder.contents(metadata)
        documents = {name: content or b"" for name, content in contents.items()}
        unknown = foreign((name for name in objects if not _OURS.fullmatch(name)), documents)
        if unknown:
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise PatchError(
                f"store {self.folder} holds what is no zarr: {', '.join(unknown[:_SHOWN])}{more}; "
                "remove it, or give another path"
            )
        return names

    def check_same(self, objects: Mapping[str, bytes], whole: bool = True) -> list[str]:
        """Refuse to resume another job; the objects that are missing, unless it is whole.

        Raises
        ------
        PatchError
            If anything differs, or is missing where all is to be there.
        """
        differences, missing = list[str](), list[str]()
        for name, stored in self.folder.contents(objects).items():
            ours = objects[name]
            if stored is None:
                missing.append(name)
            elif stored != ours and name.endswith("zarr.json"):
                place = name.removesuffix("zarr.json").strip("/")
                told = _different(place, self.folder.document(name), json.loads(ours))
                differences += [line for line in told if not line.startswith(_SAID_LAST)]
            elif stored != ours:
                differences.append(f"values of {name.split('/c')[0]!r}")
        differences += [f"{name} is missing" for name in missing] if whole else []
        if differences:
            raise PatchError(
                f"store {self.folder} is of another job, it differs in: "
                f"{'; '.join(dict.fromkeys(differences[:5]))}; "
                "resume with the same arguments, image and versions, or give another store"
            )
        return missing


def attrs_of(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give the attrs in the document of a group; none where they are no such."""
    attrs = (document or {}).get("attributes")
    return attrs if isinstance(attrs, dict) else {}


def description_in(root: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Give what describes a dataset, whole or damaged; None for other groups."""
    attrs = attrs_of(root)
    if JOB not in attrs:
        return None
    content = attrs[JOB]
    return (parsed(content.encode()) if isinstance(content, str) else None) or {}


def damaged(store: object, error: Unfit) -> PatchError:
    """Make the error that says of a description what is wrong with it."""
    return PatchError(
        f"attr {JOB!r} of store {store} is damaged, {error}; write the dataset anew, with "
        "overwrite=True, or take it from where it came again"
    )


def _different(place: str, stored: Any, ours: Any) -> Iterator[str]:
    """Name what differs between two documents, those inside of strings included."""
    if stored == ours:
        return
    if _DOCUMENT.fullmatch(place):
        try:
            stored, ours = parse(stored), parse(ours)
        except Unfit as error:
            yield f"{place}, {error}"
            return
    if isinstance(stored, dict) and isinstance(ours, dict):
        for key in dict.fromkeys([*stored, *ours]):
            yield from _different(f"{place}.{key}".strip("."), stored.get(key), ours.get(key))
    elif isinstance(stored, list) and isinstance(ours, list) and len(stored) == len(ours):
        for number, pair in enumerate(zip(stored, ours, strict=True)):
            yield from _different(f"{place}[{number}]", *pair)
    else:
        yield f"{place}, stored {shown(stored)}, now {shown(ours)}"
