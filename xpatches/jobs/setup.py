"""What a job writes beside its blocks: everything else first, and last that it is complete.

Everything but what blocks make is made in memory first, as the objects that zarr would store. They
are written by the setup; a job that is resumed makes them anew and compares them with what is
stored.

Any moment may be the last one of a process. The setup therefore says first that nothing is complete
or ready, and removes chunks before the metadata that tell that they are chunks.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from xpatches.errors import PatchError
from xpatches.jobs.chunk_keys import chunk_keys, foreign
from xpatches.jobs.folder import JOB, Folder
from xpatches.jobs.state import GROUP, READY, ROOT, Ready, StoredDataset, description_in
from xpatches.jobs.writer import CLAIMS, LostError, Run, beat_of


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


def set_up(run: Run, objects: Mapping[str, bytes], arrays: Iterable[str]) -> None:
    """Remove what there is, as `check_files` lists it, and write everything but what blocks make.

    Chunks that blocks will replace stay until they do: object stores remove without conditions.

    Parameters
    ----------
    run
        Who writes.
    objects
        All but the chunks of the arrays that blocks make.
    arrays
        Names of these.
    """
    folder, names = run.folder, StoredDataset(run.folder).check_files()
    root = folder.document(ROOT)
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    run.publish({GROUP: json.dumps(group).encode()})
    if root is not None and description_in(root) is not None:
        run.publish({ROOT: _described(root, complete=False)})
    run.remove_all([READY])
    documents = folder.contents(f"{name}/zarr.json" for name in arrays)
    kept_arrays = (name for name, content in documents.items() if content and _is_array(content))
    others = foreign(names, {name: objects[name] for name in kept_arrays})
    kept = (GROUP, f"{CLAIMS}/")
    run.remove_all(name for name in _in_order(others) if not name.startswith(kept))
    folder.prune()
    add(run, {name: content for name, content in objects.items() if name != ROOT})
    run.publish({ROOT: objects[ROOT]})  # which says what this is
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


def say_ready(run: Run, ready: Ready) -> None:
    """Say that everything but what blocks make is written."""
    run.publish({READY: json.dumps({"runs": ready.runs, "repair": ready.repair}).encode()})


def say_incomplete(run: Run) -> None:
    """Take back that a dataset is complete."""
    root = run.folder.document(ROOT) or {}
    run.publish({ROOT: _described(root, complete=False)})


def finish(run: Run, checksums: Mapping[str, int]) -> None:
    """Say that the dataset is complete, with some checksums, and remove what the job needed."""
    root = run.folder.document(ROOT)
    if root is None:
        raise LostError(f"zarr.json of store {run.folder} was removed; overwrite the store")
    run.publish({ROOT: _described(root, complete=True, checksums=checksums)})
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
