"""Patch datasets: what is written of an image's patches, and how it is opened again."""

import json
import os
import posixpath
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from types import MappingProxyType
from typing import Any

import xarray as xr
import zarr

from xpatches import labels, lazy
from xpatches.arrays import Array, is_dask
from xpatches.blocks import Job, Part
from xpatches.errors import PatchError
from xpatches.geometry import PatchGrid
from xpatches.jobs import Report, write_job
from xpatches.layout import SAMPLE_DIM, Layout, lay_out
from xpatches.spec import SPEC_ATTR, write_spec
from xpatches.states import done_blocks, holds_patches, state_of
from xpatches.storable import (
    check_storable,
    decoding_of,
    encoding_of,
    open_kwargs,
    without_codecs,
)
from xpatches.store import JOB, Folder, open_folder
from xpatches.variables import every_axis, kept_encoding, region_reader

_VERSION = 3
"""Of what describes a dataset."""
_LOOKED_AT = 100
"""Blocks whose regions are looked at for a plan."""


@dataclass(frozen=True)
class Cut:
    """An image, and the patches that are written of it."""

    dataset: xr.Dataset
    grid: PatchGrid
    fill_values: Mapping[Hashable, Array]
    """For every variable that is cut, by name."""
    array: tuple[Hashable, Hashable] | None
    """Name of the variable in the dataset, and of the DataArray it stands for; None for none."""
    layout: str
    chunks: Mapping[Any, int] | None
    shards: Mapping[Any, int] | bool | None
    """As in `Patches.to_zarr`."""

    def stored(self, name: Hashable) -> str:
        """Name that a variable has in the store."""
        if self.array is None or name != self.array[0]:
            return str(name)
        return "patches" if self.array[1] is None else str(self.array[1])

    def parts(self, encoding: Mapping[Any, Mapping[str, Any]]) -> list[Part]:
        """Lay out the patches of every variable."""
        parts = []
        for name, fill_value in self.fill_values.items():
            variable, stored = self.dataset.variables[name], self.stored(name)
            given = encoding_of(repr(stored), variable.dtype, encoding.get(stored, {}))
            layout = self._lay_out(stored, variable)
            parts.append(Part(stored, region_reader(variable), layout, fill_value, given))
        known = {dim: None for part in parts for dim in part.layout.dims}
        for argument, lengths in (("chunks", self.chunks), ("shards", self.shards)):
            for dim in lengths if isinstance(lengths, Mapping) else ():
                if dim not in known:
                    raise PatchError(
                        f"{argument} names {dim!r}, which is not among the dims {tuple(known)}; "
                        "name one of those"
                    )
        return parts

    def coords(self) -> xr.Coordinates:
        """Label the patches, along the dims of the grid or along one."""
        coords = labels.patch_coords(self.dataset.coords, self.grid, "center")
        if self.layout == "grid":
            return coords
        labels.check_names(self.dataset, [SAMPLE_DIM])
        for name in self.fill_values:
            missing = [dim for dim in self.grid.dims if dim not in self.dataset[name].dims]
            if missing:
                raise PatchError(
                    f"layout='samples' needs variables with all of the dims {self.grid.dims}, "
                    f"{name!r} lacks {missing[0]!r}; drop it, or use layout='grid'"
                )
        return labels.flatten_coords(coords, self.grid.counts, SAMPLE_DIM)

    def template(self, parts: Iterable[Part]) -> xr.Dataset:
        """Give the dataset, with a placeholder for every variable that is cut; all else is read."""
        coords = self.coords()
        made: dict[str, xr.Variable] = {}
        for name, variable in self.dataset.data_vars.variables.items():
            if self.stored(name) in {*made, *coords}:
                raise PatchError(
                    f"the name {self.stored(name)!r} of the image is that of a coord or of another "
                    "variable; rename it"
                )
            made[self.stored(name)] = variable
        for part, (name, fill_value) in zip(parts, self.fill_values.items(), strict=True):
            variable = self.dataset.variables[name]
            grid = self.grid.restrict(variable.dims)
            spec = write_spec(variable.dims, grid, fill_value, "center", {}, self.layout)
            made[part.name] = xr.Variable(
                part.layout.dims,
                lazy.placeholder(part.layout.shape, variable.dtype),
                {**variable.attrs, SPEC_ATTR: spec},
                kept_encoding(variable),
            )
        job = {
            "version": _VERSION,
            "xpatches": version("xpatches"),
            "layout": self.layout,
            "array": self.array and {"stored": self.stored(self.array[0]), "name": self.array[1]},
            "blocks": {
                part.name: {"count": len(part.layout), "shape": part.layout.blocks}
                for part in parts
            },
            "source": {
                self.stored(name): {
                    "dims": list(map(str, self.dataset[name].dims)),
                    "shape": list(self.dataset[name].shape),
                    "dtype": str(self.dataset[name].dtype),
                }
                for name in self.fill_values
            },
        }
        template = xr.Dataset(made, coords, self.dataset.attrs)
        check_storable(template)
        template.attrs[JOB] = json.dumps({**job, **decoding_of(template)})
        placeholders = {part.name for part in parts}
        for name, variable in template.variables.items():
            if name not in placeholders:
                variable.load()
                variable.encoding = without_codecs(variable)
        return template

    def _lay_out(self, stored: str, variable: xr.Variable) -> Layout:
        """Lay out the patches of a variable along those dims of the grid that it has."""
        grid, flat = self.grid.restrict(variable.dims), self.layout == "samples"
        dims = labels.patch_dims(variable.dims, grid, flat=False)
        if flat:
            others = [dim for dim in variable.dims if dim not in grid.dims]
            dims = (SAMPLE_DIM, *(f"{dim}_patch" for dim in grid.dims), *others)
        return lay_out(
            repr(stored),
            flat,
            dims,
            every_axis(variable, grid),
            tuple(variable.dims.index(dim) for dim in grid.dims),
            variable.dtype.itemsize,
            lazy.as_budget(None),
            self.chunks,
            self.shards,
        )


def write_patches(
    cut: Cut,
    store: Any,
    encoding: Mapping[Any, Mapping[str, Any]] | None,
    report: Report,
    **how: Any,
) -> xr.DataArray | xr.Dataset:
    """Write all patches and open them, as `Patches.to_zarr` documents.

    Parameters
    ----------
    cut
        What is written.
    store, encoding
        As in `Patches.to_zarr`.
    report
        Is told of the progress.
    **how
        Its arguments `resume`, `overwrite` and `retries`.
    """
    if encoding is not None and not isinstance(encoding, Mapping):
        raise PatchError(f"encoding must be a mapping by variable, got {encoding!r}")
    parts = cut.parts(encoding or {})
    given = {name: dict(of) for name, of in (encoding or {}).items()}
    template = cut.template(parts)
    for name in given:
        if name not in template.variables:
            raise PatchError(f"encoding names {name!r}, which is none of {(*template.variables,)}")
    for part in parts:
        stored = {"chunks": part.layout.chunks, "shards": part.layout.shards}
        given[part.name] = {**part.encoding, **stored}
    folder = open_folder(store)
    for name in cut.fill_values:
        if same_place(cut.dataset.variables[name], folder):
            raise PatchError(f"store {folder} is where the image lies; give another store")
    write_job(Job(folder, tuple(parts)), template, given, report=report, **how)
    return open_patches(folder)


def plan_patches(cut: Cut) -> dict[Hashable, dict[str, Any]]:
    """Say how patches will be written, as `Patches.plan_zarr` documents, by variable."""
    return {
        name: _plan(part.layout, cut.dataset.variables[name])
        for name, part in zip(cut.fill_values, cut.parts({}), strict=True)
    }


def _plan(layout: Layout, image: xr.Variable) -> dict[str, Any]:
    stored = labels.chunk_lazy(image).chunks or [(1,)] * image.ndim  # any sample alone in memory

    def read(region: Iterable[slice]) -> int:
        """Count the samples of the stored chunks that a region touches."""
        count = 1
        for along, lengths, n in zip(region, stored, image.shape, strict=True):
            chunk = max(lengths)
            count *= min(-(-along.stop // chunk) * chunk, n) - along.start // chunk * chunk
        return count

    looked_at = range(0, len(layout), -(-len(layout) // _LOOKED_AT))
    blocks = [layout.reads(layout.block(number)) for number in looked_at]
    regions = [region for of in blocks for region in of]
    whole = read(slice(*grid.region(0, grid.count)[:2]) for grid in layout.grids)
    step = prod(map(min, layout.writes, layout.shape))
    largest = max(prod(along.stop - along.start for along in region) for region in regions)
    return {
        "patches": prod(layout.grids[axis].count for axis in layout.spatial),
        "bytes": layout.itemsize * prod(layout.shape),
        "dims": dict(zip(layout.dims, layout.shape, strict=True)),
        "chunks": layout.chunks,
        "shards": layout.shards,
        "tasks": len(layout),
        "bytes_per_task": layout.itemsize * (3 * step + 2 * largest),
        "read_amplification": sum(map(read, regions)) * len(layout) / len(blocks) / max(1, whole),
    }


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
    folder = open_folder(store, read_only=True)
    state = dataset_state(folder)
    described = state["job"]
    if state["state"] != "complete":
        raise PatchError(
            f"store {folder} is incomplete: {state['missing']} of {state['blocks']} blocks are "
            "missing; finish it with resume=True"
        )
    dataset: xr.Dataset = folder.again(
        lambda: xr.open_zarr(
            folder.store,
            group=folder.path or None,
            chunks=None,
            consolidated=False,
            **open_kwargs(described),
        )
    )
    for name in () if chunks is None else described["blocks"]:
        variable = dataset.variables[name]
        lengths = variable.encoding.get("shards") or variable.encoding["chunks"]
        objects = dict(zip(variable.dims, lengths, strict=True))
        given = {dim: length for dim, length in (chunks or {}).items() if dim in objects}
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
    root = folder.document("zarr.json") or {}
    try:
        job = json.loads(root["attributes"][JOB])
        known = job["version"] == _VERSION
    except (TypeError, ValueError, KeyError) as error:
        raise PatchError(f"attr {JOB!r} of store {folder} is damaged, {error!r}") from error
    if not known:
        raise PatchError(
            f"store {folder} is a patch dataset of version {job['version']}, this xpatches reads "
            f"{_VERSION}; write it anew"
        )
    blocks = sum(of["count"] for of in job["blocks"].values())
    complete = state_of(folder) == "complete"
    missing = 0 if complete else blocks - len(done_blocks(folder))
    return {
        "job": job,
        "state": "complete" if complete else "incomplete",
        "blocks": blocks,
        "missing": missing,
    }


def same_place(variable: xr.Variable, folder: Folder) -> bool:
    """Tell whether a variable was opened from a folder, as far as that can be seen."""
    data: Any = variable._data
    sources = lazy.sources(data) if is_dask(data) else [data]
    return any(_lies_in(source, folder) for source in sources)


def _lies_in(data: Any, folder: Folder) -> bool:
    while data is not None and not isinstance(data, zarr.Array):
        data = getattr(data, "array", getattr(data, "_array", None))
    if data is None:
        return False
    at = Folder(data.store, posixpath.dirname(data.path))
    here, there = at.on_disk, folder.on_disk
    if here is not None and there is not None:
        return os.path.commonpath([here, there]) in (here, there)
    return str(at) == str(folder)
