"""Images as people have them, opened lazily: zarr groups and arrays, files that xarray knows."""

import os
import posixpath
import re
from collections.abc import Mapping
from typing import Any

import xarray as xr
import zarr
from zarr.storage import LocalStore

from xpatches.credentials import redacted
from xpatches.datasets.open import undamaged
from xpatches.documents import Unfit, text
from xpatches.errors import PatchError
from xpatches.jobs.folder import Folder
from xpatches.jobs.open import open_folder
from xpatches.jobs.state import attrs_of

_DIMS_ATTR = "_ARRAY_DIMENSIONS"
"""Where xarray keeps the names of dims that zarr of format 2 has no place for."""
_DEPTH = 3
"""So many groups around an array are searched for what OME-Zarr says of it."""
_LISTED = 20
"""Of what a group holds, at most so much is named."""


def open_image(
    source: str,
    group: str | None = None,
    dims: tuple[str, ...] | None = None,
    decode: bool | None = None,
) -> xr.Dataset:
    """Open an image lazily: a zarr group or array, or a file of a format that xarray knows.

    Parameters
    ----------
    source
        A path, or for zarr a URL.
    group
        Path inside of it, of a group or, in zarr, of an array.
    dims
        Names of the dims of a zarr array; those that are stored with it if None.
    decode
        Whether stored numbers are scaled and those that stand for nodata become NaN, which makes
        floats of integers. None is as xarray does it, but for GeoTIFF and other rasters, which keep
        their dtype.

    Raises
    ------
    PatchError
        If there is no image; it says what there is.
    """
    if os.path.isfile(source) and not source.endswith(".zip"):
        if dims:
            raise PatchError(f"--dims names the dims of a zarr array, {source} is a file")
        return _open_file(source, group, decode)
    root = open_folder(source, read_only=True)
    folder = Folder(root.store, root.key(group.strip("/"))) if group else root
    with undamaged(folder):
        node = _node(folder)
        if node is None:
            inside = f"; it holds {_contents(root)}" if group and _node(root) == "group" else ""
            where = f"no {group!r}" if inside else "no zarr group or array, and is no file"
            raise PatchError(f"{redacted(source)} holds {where}{inside or '; check the path'}")
        if node == "array":
            return _open_array(folder, dims, decode)
        if dims:
            raise PatchError(
                f"--dims names the dims of a zarr array, {folder} is a group; it holds "
                f"{_contents(folder)}"
            )
        return _open_group(folder, decode)


def _open_file(source: str, group: str | None, decode: bool | None) -> xr.Dataset:
    engines = xr.backends.list_engines()
    able = {name for name, engine in engines.items() if engine.guess_can_open(source)}
    if not able:
        raise PatchError(
            f"{source} is of no format that xarray opens here; GeoTIFF needs rioxarray, netCDF "
            "h5netcdf or netCDF4"
        )
    raster = "rasterio" in able
    if raster and group is not None:  # which rioxarray takes for a pattern, and says nothing
        raise PatchError(f"--group names what zarr, netCDF and HDF5 hold, {source} is a raster")
    scaled = not raster if decode is None else decode
    how: dict[str, Any] = {"mask_and_scale": scaled, "decode_coords": "all"}
    if group is not None:
        how["group"] = group
    image = xr.open_dataset(source, chunks=None, **how)
    if not image.data_vars:
        names = [name for name in xr.open_groups(source) if name != "/"] if group is None else []
        what = f"but the groups {_listed(names)}; choose one with --group" if names else "at all"
        raise PatchError(f"{source} holds no variables {what}")
    return image


def _open_group(folder: Folder, decode: bool | None) -> xr.Dataset:
    levels = [path for levels, _ in _multiscales(folder) for path in levels]
    if levels:
        raise PatchError(
            f"{folder} is an OME-Zarr image of the levels {_listed(levels)}; choose one with "
            f"--group. It holds {_contents(folder)}"
        )
    root = folder.document("zarr.json") or {}
    consolidated = bool(root.get("consolidated_metadata")) or folder.get(".zmetadata") is not None
    try:
        image: xr.Dataset = xr.open_zarr(
            folder.store,
            group=folder.path or None,
            chunks=None,
            consolidated=consolidated,
            mask_and_scale=decode is not False,
            decode_coords="all",
        )
    except (KeyError, ValueError) as error:  # dims without names, or of several lengths
        reason = error.args[0] if error.args else error
        raise PatchError(
            f"{folder} is no image as a whole, {redacted(reason)}: it holds {_contents(folder)}, "
            "choose one with --group"
        ) from error
    if not image.data_vars:
        inside = _contents(folder)
        hint = "; choose one with --group" if inside != "nothing" else ""
        raise PatchError(f"{folder} is no image: it holds {inside}{hint}")
    return image


def _open_array(folder: Folder, dims: tuple[str, ...] | None, decode: bool | None) -> xr.Dataset:
    from xpatches.lazy.sources import opened

    array: Any = zarr.open_array(folder.store, path=folder.path, mode="r")
    names = dims or _stored_dims(array) or _axes(folder)
    what = f"the zarr array {folder} of shape {array.shape}"
    if names is None:
        example = ",".join("zyx"[-array.ndim :]) if array.ndim <= 3 else "..."
        raise PatchError(f"the dims of {what} have no names; give them: --dims {example}")
    if len(names) != array.ndim or len(set(names)) < array.ndim or not all(names):
        raise PatchError(f"--dims must name every dim of {what} once, got {','.join(names)}")
    attrs = {key: value for key, value in array.attrs.items() if key != _DIMS_ATTR}
    if _DIMS_ATTR in array.attrs and array.fill_value is not None:
        attrs.setdefault("_FillValue", array.fill_value)  # where xarray keeps it in format 2
    encoding = {"chunks": array.chunks, "shards": array.shards}
    variable = xr.Variable(names, opened(array), attrs, encoding)
    name = re.split("[.?#]", posixpath.basename(str(folder).rstrip("/")))[0]
    image = xr.Dataset({name or "image": variable})
    return xr.decode_cf(image, mask_and_scale=decode is not False)


def _node(folder: Folder) -> str | None:
    """Tell what of zarr's lies in a folder: a "group", an "array", or nothing."""
    document = folder.document("zarr.json")
    if document is not None:
        return str(document.get("node_type"))
    if folder.get(".zarray") is not None:
        return "array"
    older = (folder.get(name) for name in (".zgroup", ".zmetadata"))
    return "group" if any(content is not None for content in older) else None


def _around(folder: Folder) -> Folder | None:
    """Give the folder around a folder, as far as that can be seen."""
    if folder.path:
        return Folder(folder.store, posixpath.dirname(folder.path))
    if isinstance(folder.store, LocalStore):
        return Folder(LocalStore(folder.store.root.parent, read_only=True))
    return None


def _stored_dims(array: Any) -> tuple[str, ...] | None:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get(_DIMS_ATTR)
    return None if names is None or None in names else tuple(names)


def _axes(folder: Folder) -> tuple[str, ...] | None:
    """Give the dims that OME-Zarr names for an array, where that is a level of an image."""
    path, around = "", folder
    for _ in range(_DEPTH):
        parent = _around(around)
        if parent is None:
            return None
        path = posixpath.join(posixpath.basename(str(around)), path).rstrip("/")
        around = parent
        for levels, axes in _multiscales(around):
            if path in levels:
                return axes
    return None


def _multiscales(folder: Folder) -> list[tuple[list[str], tuple[str, ...]]]:
    """Give what OME-Zarr, 0.5 or older, says of images in a group: paths of levels, and axes."""
    attrs = attrs_of(folder.document("zarr.json")).get("ome") or folder.document(".zattrs") or {}
    try:
        return [
            (
                [text("path", level["path"]) for level in image.get("datasets", ())],
                tuple(
                    text("axis", axis["name"] if isinstance(axis, Mapping) else axis)
                    for axis in image.get("axes", ())
                ),
            )
            for image in attrs.get("multiscales") or ()
        ]
    except (AttributeError, KeyError, TypeError, Unfit) as error:
        raise PatchError(
            f"what OME-Zarr says of {folder} is damaged, {error!r}; mend the attr 'multiscales'"
        ) from error


def _contents(folder: Folder) -> str:
    """Say which arrays and groups a group holds."""
    if not folder.store.supports_listing:
        return "what cannot be listed there"
    members = sorted(zarr.open_group(folder.store, path=folder.path, mode="r").members())
    arrays = [f"{name!r} {node.shape}" for name, node in members if isinstance(node, zarr.Array)]
    groups = [repr(name) for name, node in members if isinstance(node, zarr.Group)]
    kinds = [("array", arrays), ("group", groups)]
    parts = [
        f"the {kind}{'s' * (len(names) > 1)} {_listed(names)}" for kind, names in kinds if names
    ]
    return " and ".join(parts) or "nothing"


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
