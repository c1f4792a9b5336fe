"""Where the arrays of an image lie, as far as that can be seen: nothing else is written there."""

import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

import xarray as xr
import zarr
from zarr.storage import LocalStore

from xpatches.dtypes import is_dask
from xpatches.errors import PatchError
from xpatches.jobs.folder import Folder
from xpatches.jobs.state import StoredDataset
from xpatches.lazy.sources import sources
from xpatches.private_names import held


def places_of(image: xr.Dataset) -> list[Folder]:
    """Find where the arrays of an image lie."""
    return [
        Folder(array.store, array.path)
        for variable in image.variables.values()
        for array in _arrays(variable)
    ]


def check_apart(places: Iterable[Folder], folder: Folder) -> None:
    """Refuse to write where the arrays of an image lie.

    What is written may lie beside them, in a group of its own below theirs.

    Raises
    ------
    PatchError
        If the folder holds one of the arrays, lies in one, or holds anything below their group that
        no job wrote.
    """
    groups: list[Folder] = []
    for place in places:
        if place.overlaps(folder):
            raise PatchError(f"store {folder} is where the image lies; give another store")
        group = _group_of(place)
        if group not in groups and _is_group(group):
            groups.append(group)
    for group in groups:
        path = folder.below(group)
        names = [] if path is None else path.split("/")
        for depth in range(1, len(names) + 1):
            node, inner = (
                Folder(group.store, group.key("/".join(names[:depth]))),
                depth < len(names),
            )
            other = not inner and _is_group(node) and not StoredDataset(node).exists()
            if _is_array(node) or other:
                where = f"lies in the array {node}" if inner else "holds zarr already"
                raise PatchError(
                    f"store {folder} is in the group of the image, and {where}; give another store"
                )


def _group_of(array: Folder) -> Folder:
    """Find where an array lies, also where it was opened by itself from a disk."""
    if not array.path and array.on_disk is not None:
        return Folder(LocalStore(array.on_disk.parent, read_only=True))
    return Folder(array.store, posixpath.dirname(array.path))


def _is_array(node: Folder) -> bool:
    document = node.document("zarr.json") or {}
    return document.get("node_type") == "array" or node.get(".zarray") is not None


def _is_group(node: Folder) -> bool:
    return node.get("zarr.json") is not None or node.get(".zgroup") is not None


def _arrays(variable: xr.Variable) -> Iterator[Any]:
    """Find the zarr arrays that a variable was opened from, as far as that can be seen."""
    if isinstance(variable, xr.IndexVariable):  # labels, which were read
        return
    data = held(variable)
    for source in sources(data) if is_dask(data) else [data]:
        if isinstance(source, xr.Variable):
            yield from _arrays(source)
        else:
            while source is not None and not isinstance(source, zarr.Array):
                source = getattr(source, "array", getattr(source, "_array", None))
            if source is not None:
                yield source
