"""Datasets that jobs wrote, opened again as what the image was."""

import gzip
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from types import MappingProxyType
from typing import Any

import xarray as xr

from xpatches.arguments import as_lengths, check_among, shown
from xpatches.credentials import told
from xpatches.datasets.descriptions import read_description
from xpatches.datasets.encoding import open_kwargs
from xpatches.display.text import readable
from xpatches.errors import PatchError
from xpatches.images.packing import relink
from xpatches.jobs.blocks import numbers_of
from xpatches.jobs.folder import JOB, Folder
from xpatches.jobs.open import open_folder
from xpatches.jobs.state import StoredDataset, attrs_of

_LABELS = 1 << 31
"""Bytes of labels along dims, which xarray holds in memory."""
_OBJECTS = 10**7
"""Dask chunks of a variable."""


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
    if lengths is not None:
        for name in described["blocks"]:
            dataset[name] = _chunked(name, dataset.variables[name], lengths)
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
    dataset = StoredDataset(folder)
    if not dataset.exists():
        raise PatchError(
            f"store {folder} holds no patch dataset; name one that Patches.to_zarr wrote"
        )
    job = read_description(attrs_of(folder.document("zarr.json")), folder)
    counts = {name: blocks["count"] for name, blocks in job["blocks"].items()}
    total = sum(counts.values())
    complete = dataset.state() == "complete"
    return {
        "job": job,
        "state": "complete" if complete else "incomplete",
        "blocks": total,
        "missing": 0 if complete else total - len(numbers_of(dataset.marks(), counts)),
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


def _chunked(name: str, variable: xr.Variable, lengths: Mapping[Any, int]) -> xr.Variable:
    """Give dask chunks of these lengths, and along other dims of those of stored objects."""
    objects = variable.encoding.get("shards") or variable.encoding["chunks"]
    if min(objects, default=1) < 1:
        raise PatchError(f"{name!r} lies in chunks of the lengths {objects}; write it anew")
    pairs = zip(variable.sizes.items(), objects, strict=True)
    own = {dim: min(length, max(1, n)) for (dim, n), length in pairs if dim not in lengths}
    count = prod(-(-variable.sizes[dim] // length) for dim, length in own.items())
    if count > _OBJECTS:
        raise PatchError(
            f"{name!r} lies in {count} stored objects, more than the {_OBJECTS} chunks that dask "
            "is given; open it with chunks=None, or with larger chunks={dim: length}"
        )
    return variable.chunk(own | {dim: lengths[dim] for dim in variable.dims if dim in lengths})
