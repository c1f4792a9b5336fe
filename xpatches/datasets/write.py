"""Datasets that jobs write: what is written of an image, and how it is opened again."""

import gzip
import json
import posixpath
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from math import prod
from types import MappingProxyType
from typing import Any, Protocol

import xarray as xr
import zarr
from zarr.storage import LocalStore

from xpatches.arguments import as_lengths, check_among, shown
from xpatches.datasets.copies import copy_of
from xpatches.datasets.descriptions import VERSION, read_description
from xpatches.datasets.encoding import (
    check_storable,
    decoding_of,
    open_kwargs,
    with_checksums,
    without_codecs,
)
from xpatches.datasets.layout import CHUNK
from xpatches.display.text import readable
from xpatches.dtypes import is_dask
from xpatches.errors import PatchError
from xpatches.images.image import Image
from xpatches.images.packing import drop_dangling, kept_encoding, links_of, relink
from xpatches.images.samples import in_memory
from xpatches.jobs.blocks import Job, Part, numbers_of
from xpatches.jobs.folder import JOB, Folder, open_folder, takes_zarr_alone
from xpatches.jobs.job import Report, check_job, write_job
from xpatches.jobs.state import attrs_of, holds_patches, marked_blocks, state_of
from xpatches.lazy.sources import as_budget, placeholder, sources
from xpatches.redaction import told

_LABELS = 1 << 31
"""Bytes of labels along dims, which xarray holds in memory."""
_OBJECTS = 10**7
"""Dask chunks of a variable."""


class Written(Protocol):
    """What is written of an image."""

    @property
    def source(self) -> Image[Any]:
        """The image."""

    @property
    def layout(self) -> str:
        """How what is written lies in the store."""

    @property
    def max_bytes(self) -> int | str | None:
        """Budget of a task."""

    def parts(self, encoding: Mapping[Any, Mapping[str, Any]]) -> Sequence[Part]:
        """Lay out what is made of every variable that is cut, in their order."""

    def coords(self) -> xr.Coordinates:
        """Label it."""

    def attrs(self, name: Hashable) -> dict[Any, Any]:
        """Give the attrs of what is made of a variable."""

    def described(self) -> dict[str, Any]:
        """Describe, as plain data, how it is made; a job with another description is another."""


def write_dataset(
    written: Written,
    store: Any,
    encoding: Mapping[Any, Mapping[str, Any]] | None,
    report: Report,
    *,
    checksums: bool,
    **how: Any,
) -> xr.DataArray | xr.Dataset:
    """Write what is made of an image, and open it, as `Patches.to_zarr` documents.

    Parameters
    ----------
    written
        What is written.
    store, encoding
        As in `Patches.to_zarr`.
    report
        Is told of the progress.
    checksums
        As in `Patches.to_zarr`.
    **how
        Its arguments `resume`, `overwrite`, `retries`, `lock` and `fsync`.
    """
    job, template, given = _prepared(written, store, encoding, checksums)
    sources = [
        Folder(array.store, array.path)
        for variable in written.source.dataset.variables.values()
        for array in _arrays(variable)
        if not takes_zarr_alone(array.store)  # where nothing is written either
    ]
    write_job(job, template, given, sources, report=report, **how)
    return open_patches(job.folder)


def check_dataset(
    written: Written,
    store: Any,
    encoding: Mapping[Any, Mapping[str, Any]] | None,
    *,
    checksums: bool,
    resume: bool,
    overwrite: bool,
) -> None:
    """Refuse what `write_dataset` would refuse before the first block; nothing is touched."""
    check_job(*_prepared(written, store, encoding, checksums), resume=resume, overwrite=overwrite)


def _prepared(
    written: Written,
    store: Any,
    encoding: Mapping[Any, Mapping[str, Any]] | None,
    checksums: bool,
) -> tuple[Job, xr.Dataset, dict[Any, Mapping[str, Any]]]:
    """Give the arguments of `write_job`."""
    given = dict(encoding or {})
    template, parts = _template(written, given)
    check_among("encoding", given, template.variables, "variables")
    for part in parts:
        given[part.name] = {**part.encoding, "chunks": part.chunks, "shards": part.shards}
    for name in given:  # what is given replaces the variable's own
        given[name] = {**links_of(template.variables[name]), **given[name]}
    for name, variable in template.variables.items():
        if not checksums or variable.dtype.kind not in "biufcmM":
            continue
        if name in given:
            given[name] = with_checksums(given[name])
        else:  # of which xarray ignores what is of another format
            variable.encoding = with_checksums(variable.encoding)
    folder = open_folder(store)
    check_apart(written.source.dataset, folder)
    # Their numbers are told of, and so do not depend on the order of variables.
    return Job(folder, tuple(sorted(parts, key=lambda part: part.name))), template, given


def check_dims(dims: Iterable[Iterable[Hashable]], **given: Any) -> None:
    """Refuse lengths by dim, of chunks and shards, that name dims which no array has."""
    known = {dim: None for of in dims for dim in of}
    for argument, lengths in given.items():
        check_among(argument, lengths or (), known)


def _template(
    written: Written, encoding: Mapping[Any, Mapping[str, Any]]
) -> tuple[xr.Dataset, list[Part]]:
    """Give the dataset, with a placeholder for every variable that blocks make, and these.

    Those are what is made of the variables that are cut, and copies of all others that are large
    and not in memory; what is left is read.
    """
    source, cut = written.source, written.parts(encoding)
    coords = written.coords()
    made: dict[str, xr.Variable] = {}
    for name, variable in source.dataset.data_vars.variables.items():
        if source.stored(name) in {*made, *coords}:
            raise PatchError(
                f"the name {source.stored(name)!r} of the image is that of a coord or of another "
                "variable; rename it"
            )
        made[source.stored(name)] = variable
    for part, name in zip(cut, source.fill_values, strict=True):
        made[part.name] = xr.Variable(
            part.dims,
            placeholder(part.shape, part.dtype),
            written.attrs(name),
            kept_encoding(source.dataset.variables[name]),
        )
    template = xr.Dataset(made, coords, source.dataset.attrs)
    check_storable(template)
    parts, budget = [*cut], as_budget(written.max_bytes)
    placeholders = {part.name for part in cut}
    for name, variable in template.variables.items():
        if name in placeholders:
            continue
        drop_dangling(variable, template.variables)
        large = variable.nbytes > CHUNK and not variable.dtype.hasobject
        if large and not in_memory(variable):
            whole = variable.copy(deep=False)
            part = copy_of(str(name), whole, encoding.get(name, {}), budget)
            parts.append(part)
            variable.encoding = links_of(variable)
            variable.data = placeholder(part.shape, part.dtype)
        else:
            variable.load()
            variable.encoding = without_codecs(variable)
    job = {
        "version": VERSION,
        "xpatches": version("xpatches"),
        "layout": written.layout,
        **written.described(),
        "array": {"stored": cut[0].name, "name": source.source.name} if source.is_array else None,
        "blocks": {part.name: {"count": len(part), "shape": part.lengths} for part in parts},
        "source": {
            source.stored(name): {
                "dims": list(map(str, source.dataset[name].dims)),
                "shape": list(source.dataset[name].shape),
                "dtype": str(source.dataset[name].dtype),
            }
            for name in source.fill_values
        },
    }
    links = {str(name): sorted(links_of(of)) for name, of in template.variables.items()}
    job["coords"] = sorted(map(str, template.coords))
    job["links"] = {name: keys for name, keys in links.items() if keys}
    template.attrs[JOB] = json.dumps({**job, **decoding_of(template)}, sort_keys=True)
    return template, parts


def open_patches(
    store: Any, chunks: Mapping[Any, int] | None = MappingProxyType({})
) -> xr.DataArray | xr.Dataset:
    """Open a patch dataset that `Patches.to_zarr` or the command ``xpatches`` wrote.

    Parameters
    ----------
    store
        Where it lies: a path, a zip file, a URL, or a zarr store.
    chunks
        Lengths of dask chunks by dim; those of the stored objects where left out. None is without
        dask: whatever is taken is read at once, and no more than the stored chunks under it, which
        is fastest for single samples and batches.

    Returns
    -------
    DataArray or Dataset
        What the image was, lazily.

    Raises
    ------
    PatchError
        If there is no patch dataset, or if it is incomplete.

    Examples
    --------
    >>> import numpy as np
    >>> from zarr.storage import MemoryStore
    >>> image = xr.DataArray(np.arange(100).reshape(10, 10), dims=("y", "x"), name="image")
    >>> store = MemoryStore()
    >>> _ = image.patches(y=3, x=3, stride=5).to_zarr(store, layout="samples", progress=False)
    >>> open_patches(store).sizes
    Frozen({'sample': 4, 'y_patch': 3, 'x_patch': 3})
    """
    lengths = as_lengths("chunks", chunks)
    folder = open_folder(store, read_only=True)
    state = dataset_state(folder)
    described = state["job"]
    if state["state"] != "complete":
        raise PatchError(
            f"store {folder} is incomplete: {state['missing']} of {state['blocks']} blocks are "
            "missing; finish it with resume=True"
        )
    with undamaged(folder):
        dataset = _opened(folder, described)
    check_among("chunks", lengths or (), dataset.dims)
    for name in () if lengths is None else described["blocks"]:
        variable = dataset.variables[name]
        objects = _objects(name, variable)
        given = {dim: length for dim, length in (lengths or {}).items() if dim in objects}
        _check_count(name, variable, {dim: n for dim, n in objects.items() if dim not in given})
        dataset[name] = variable.chunk({**objects, **given})
    dataset.attrs = {key: value for key, value in dataset.attrs.items() if key != JOB}
    if described["array"] is None:
        return dataset
    array: xr.DataArray = dataset[described["array"]["stored"]]
    array.name = described["array"]["name"]
    return array


def dataset_state(folder: Folder) -> dict[str, Any]:
    """Tell how far a patch dataset is.

    Returns
    -------
    dict
        ``job``: what describes it; ``state``: ``"complete"`` or ``"incomplete"``; ``blocks``: how
        many there are; ``missing``: how many are not written.

    Raises
    ------
    PatchError
        If there is no patch dataset.
    """
    if not holds_patches(folder):
        raise PatchError(
            f"store {folder} holds no patch dataset; name one that Patches.to_zarr wrote"
        )
    job = read_description(attrs_of(folder.document("zarr.json")), folder)
    counts = {name: of["count"] for name, of in job["blocks"].items()}
    blocks = sum(counts.values())
    complete = state_of(folder) == "complete"
    missing = 0 if complete else blocks - len(numbers_of(marked_blocks(folder), counts))
    return {
        "job": job,
        "state": "complete" if complete else "incomplete",
        "blocks": blocks,
        "missing": missing,
    }


def _opened(folder: Folder, described: Mapping[str, Any]) -> xr.Dataset:
    """Open what lies in the store of a dataset, with the labels along its dims, and nothing else.

    Raises
    ------
    PatchError
        If it is not what the description says, or the labels do not fit into memory.
    """
    dataset: xr.Dataset = folder.again(
        lambda: xr.open_zarr(
            folder.store,
            group=folder.path or None,
            chunks=None,
            consolidated=False,
            create_default_indexes=False,
            **open_kwargs(described),
        )
    )
    for what in ("blocks", "coords", "links"):
        for name in described[what]:
            if name not in dataset.variables:
                raise PatchError(
                    f"store {folder} lacks {shown(name)}, which its {what} name; write it anew"
                )
    # xarray takes coords that an attr of another variable names, such as the CRS, for variables.
    dataset = dataset.set_coords(described["coords"])
    for name, links in described["links"].items():
        relink(dataset.variables[name], links)
    along = [name for name, coord in dataset.coords.items() if coord.dims == (name,)]
    size = sum(dataset.variables[name].nbytes for name in along)
    if size > _LABELS:
        raise PatchError(
            f"store {folder} has labels of {readable(size)} along {shown(along)}, more than the "
            f"{readable(_LABELS)} that are held in memory; drop them with zarr if that is so"
        )
    return dataset.assign_coords(xr.Coordinates({name: dataset.variables[name] for name in along}))


@contextmanager
def undamaged(folder: Folder) -> Iterator[None]:
    """Say of a store that what lies in it is damaged, whatever zarr and xarray raise for that."""
    try:
        yield
    except PatchError:
        raise
    except Exception as error:
        unreachable = isinstance(error, OSError)
        if unreachable and not isinstance(error, FileNotFoundError | gzip.BadGzipFile):
            raise
        raise PatchError(
            f"store {folder} cannot be opened, {told(error)}; it is damaged, take it "
            "from where it came again, or write it anew"
        ) from error


def _objects(name: str, variable: xr.Variable) -> dict[Hashable, int]:
    """Give the lengths of stored objects along the dims of a variable, or those of the dims."""
    lengths = variable.encoding.get("shards") or variable.encoding["chunks"]
    if min(lengths, default=1) < 1:
        raise PatchError(f"{name!r} lies in chunks of the lengths {lengths}; write it anew")
    pairs = zip(variable.sizes.items(), lengths, strict=True)
    return {dim: min(length, max(1, n)) for (dim, n), length in pairs}


def _check_count(name: str, variable: xr.Variable, lengths: Mapping[Hashable, int]) -> None:
    """Refuse to make more dask chunks than there can be."""
    count = prod(-(-variable.sizes[dim] // n) for dim, n in lengths.items())
    if count > _OBJECTS:
        raise PatchError(
            f"{name!r} lies in {count} stored objects, more than the {_OBJECTS} chunks that dask "
            "is given; open it with chunks=None, or with larger chunks={dim: length}"
        )


def check_apart(image: xr.Dataset, folder: Folder) -> None:
    """Refuse to write where objects of an image lie, as far as that can be seen.

    What is written may lie beside the arrays of the image, in a group of its own below theirs.

    Raises
    ------
    PatchError
        If the folder holds one of the arrays, lies in one, or holds anything below their group that
        no job wrote.
    """
    groups: list[Folder] = []
    for variable in image.variables.values():
        for array in _arrays(variable):
            if Folder(array.store, array.path).overlaps(folder):
                raise PatchError(f"store {folder} is where the image lies; give another store")
            group = _group_of(array)
            if group not in groups and _is_group(group):
                groups.append(group)
    for group in groups:
        path = folder.below(group)
        names = [] if path is None else path.split("/")
        for depth in range(1, len(names) + 1):
            node = Folder(group.store, group.key("/".join(names[:depth])))
            inner = depth < len(names)
            if _is_array(node) or (not inner and _is_group(node) and not holds_patches(node)):
                where = f"lies in the array {node}" if inner else "holds zarr already"
                raise PatchError(
                    f"store {folder} is in the group of the image, and {where}; give another store"
                )


def _group_of(array: Any) -> Folder:
    """Find where an array lies, also where it was opened by itself from a disk."""
    disk = None if array.path else Folder(array.store).on_disk
    if disk is not None:
        return Folder(LocalStore(disk.parent, read_only=True))
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
    data: Any = variable._data
    for source in sources(data) if is_dask(data) else [data]:
        if isinstance(source, xr.Variable):
            yield from _arrays(source)
        else:
            while source is not None and not isinstance(source, zarr.Array):
                source = getattr(source, "array", getattr(source, "_array", None))
            if source is not None:
                yield source
