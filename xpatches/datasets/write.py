"""Datasets that jobs write of an image."""

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import xarray as xr
from zarr.storage import MemoryStore

from xpatches.arguments import check_among, said
from xpatches.datasets.chunks import CHUNK
from xpatches.datasets.copies import copy_of
from xpatches.datasets.descriptions import VERSION
from xpatches.datasets.encoding import check_storable, decoding_of, with_checksums, without_codecs
from xpatches.datasets.open import open_patches
from xpatches.datasets.source_stores import check_apart, places_of
from xpatches.errors import PatchError
from xpatches.images.image import Image
from xpatches.images.packing import drop_dangling, kept_encoding, links_of
from xpatches.images.samples import in_memory
from xpatches.jobs.blocks import BlockArray, Job
from xpatches.jobs.folder import JOB, Folder
from xpatches.jobs.job import Report, check_job, write_job
from xpatches.jobs.open import open_folder, takes_zarr_alone
from xpatches.lazy.sources import as_budget, placeholder


class Product(ABC):
    """What is written of an image."""

    source: Image[Any]
    layout: str
    """How what is written lies in the store."""
    max_bytes: int | str | None
    """Budget of a task."""

    @abstractmethod
    def arrays(self, encoding: Mapping[Any, Mapping[str, Any]]) -> Sequence[BlockArray]:
        """Lay out what is made of every variable that is cut, in their order."""

    def coords(self) -> xr.Coordinates:
        """Label it; by nothing, if nothing is known."""
        return xr.Coordinates()

    @abstractmethod
    def attrs(self, name: Hashable) -> dict[Any, Any]:
        """Give the attrs of what is made of a variable."""

    def described(self) -> dict[str, Any]:
        """Describe, as plain data, how it is made; a job with another description is another."""
        return {}


def write_dataset(
    product: Product,
    store: Any,
    encoding: Mapping[Any, Mapping[str, Any]] | None,
    report: Report,
    *,
    checksums: bool,
    **options: Any,
) -> xr.DataArray | xr.Dataset:
    """Write what is made of an image, and open it, as `Patches.to_zarr` documents.

    Parameters
    ----------
    product
        What is written.
    store, encoding, checksums
        As in `Patches.to_zarr`.
    report
        Is told of the progress.
    **options
        Of `write_job`.
    """
    job, objects, places = _planned(product, store, encoding, checksums)
    # Nothing is written, either, where a store takes zarr alone.
    sources = [place for place in places if not takes_zarr_alone(place.store)]
    write_job(job, objects, sources, report, **options)
    return open_patches(job.folder)


def check_dataset(
    product: Product,
    store: Any,
    encoding: Mapping[Any, Mapping[str, Any]] | None,
    *,
    checksums: bool,
    **options: bool,
) -> None:
    """Refuse what `write_dataset` would refuse before the first block; nothing is touched."""
    job, objects, _ = _planned(product, store, encoding, checksums)
    check_job(job, objects, **options)


def _planned(
    product: Product,
    store: Any,
    encoding: Mapping[Any, Mapping[str, Any]] | None,
    checksums: bool,
) -> tuple[Job, dict[str, bytes], list[Folder]]:
    """Plan a job: its blocks, all objects but theirs, and where the image lies."""
    encodings = dict(encoding or {})
    template, arrays = _template(product, encodings)
    check_among("encoding", encodings, template.variables, "variables")
    for stored in (array.stored for array in arrays):
        lengths = {"chunks": stored.chunks, "shards": stored.shards}
        encodings[stored.name] = {**stored.encoding, **lengths}
    for name, variable in template.variables.items():
        summed = checksums and variable.dtype.kind in "biufcmM"
        if name in encodings:  # which replaces the variable's own
            encodings[name] = {**links_of(variable), **encodings[name]}
            if summed:
                encodings[name] = with_checksums(encodings[name])
        elif summed:  # of its own, xarray ignores what is of another format
            variable.encoding = with_checksums(variable.encoding)
    folder, places = open_folder(store), places_of(product.source.dataset)
    check_apart(places, folder)
    # Their numbers are told of, and so do not depend on the order of variables.
    job = Job(folder, tuple(sorted(arrays, key=lambda array: array.stored.name)))
    return job, _objects(template, encodings), places


def _template(
    product: Product, encoding: Mapping[Any, Mapping[str, Any]]
) -> tuple[xr.Dataset, list[BlockArray]]:
    """Give the dataset, with a placeholder for every variable that blocks make, and these.

    Those are what is made of the variables that are cut, and copies of all others that are large
    and not in memory; what is left is read.
    """
    source, arrays = product.source, [*product.arrays(encoding)]
    coords, cut = product.coords(), {array.stored.name: array.stored for array in arrays}
    variables: dict[str, xr.Variable] = {}
    for name, variable in source.dataset.data_vars.variables.items():
        called = source.stored(name)
        if called in {*variables, *coords}:
            raise PatchError(
                f"the name {called!r} of the image is that of a coord or of another variable; "
                "rename it"
            )
        if name in source.fill_values:
            attrs, kept = product.attrs(name), kept_encoding(variable)
            data = placeholder(cut[called].shape, cut[called].dtype)
            variable = xr.Variable(cut[called].dims, data, attrs, kept)
        variables[called] = variable
    template = xr.Dataset(variables, coords, source.dataset.attrs)
    check_storable(template)
    for name, variable in template.variables.items():
        if name in cut:
            continue
        drop_dangling(variable, template.variables)
        large = variable.nbytes > CHUNK and not variable.dtype.hasobject
        if large and not in_memory(variable):
            whole, budget = variable.copy(deep=False), as_budget(product.max_bytes)
            arrays.append(copy_of(str(name), whole, encoding.get(name, {}), budget))
            variable.encoding = links_of(variable)
            variable.data = placeholder(variable.shape, variable.dtype)
        else:
            variable.load()
            variable.encoding = without_codecs(variable)
    template.attrs[JOB] = json.dumps(_described(product, template, arrays), sort_keys=True)
    return template, arrays


def _described(
    product: Product, template: xr.Dataset, arrays: Sequence[BlockArray]
) -> dict[str, Any]:
    """Describe a job, as `read_description` reads it."""
    source = product.source
    (first, *_) = source.fill_values
    links = {str(name): sorted(links_of(v)) for name, v in template.variables.items()}
    return {
        "version": VERSION,
        "xpatches": version("xpatches"),
        "layout": product.layout,
        **product.described(),
        "array": {"stored": source.stored(first), "name": source.source.name}
        if source.is_array
        else None,
        "blocks": {
            array.stored.name: {"count": len(array), "shape": array.lengths} for array in arrays
        },
        "source": {
            source.stored(name): {
                "dims": list(map(str, source.dataset[name].dims)),
                "shape": list(source.dataset[name].shape),
                "dtype": str(source.dataset[name].dtype),
            }
            for name in source.fill_values
        },
        "coords": sorted(map(str, template.coords)),
        "links": {name: keys for name, keys in links.items() if keys},
        **decoding_of(template),
    }


def _objects(template: xr.Dataset, encoding: Mapping[Any, Any]) -> dict[str, bytes]:
    """Give all objects of a dataset, as zarr stores them, but those of dask arrays' chunks."""
    buffers = dict[str, Any]()
    try:
        template.to_zarr(
            MemoryStore(buffers), "w", encoding=encoding, compute=False, consolidated=False,
            zarr_format=3,
        )  # fmt: skip
    except Exception as error:  # whatever xarray and zarr raise for what they cannot store
        notes = " ".join(str(note).split("\n")[0] for note in getattr(error, "__notes__", []))
        raise PatchError(
            f"the dataset cannot be stored: {said(error)} {notes}; change the attrs, coords or "
            "encoding"
        ) from error
    return {name: buffers[name].to_bytes() for name in sorted(buffers)}
