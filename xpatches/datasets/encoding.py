"""What zarr can hold of a labelled dataset, and how it is read back as it was.

xarray keeps names, times and packing in attrs and encodings, and applies them when it opens a
store. Here they are checked before anything is written, and only what was encoded is decoded again.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from xpatches.arguments import is_name, said, shown
from xpatches.errors import PatchError
from xpatches.images.samples import check_held
from xpatches.jobs.folder import JOB

_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_PACKING = {"scale_factor", "add_offset", "_FillValue", "missing_value"}
"""Attrs by which xarray changes values when it opens a store."""
_CODING = {"dtype", "_Unsigned", *_PACKING}
"""Encodings by which it does when it stores a variable."""
_CODECS = ("compressor", "compressors", "filters", "serializer", "chunks", "shards")
"""Encodings that belong to the store an image was read from."""


def check_storable(dataset: xr.Dataset) -> None:
    """Refuse names, dtypes and attrs that would not come back as they are.

    Raises
    ------
    PatchError
        It names the variable, dim or attr.
    """
    for what, names in (("dim", dataset.dims), ("variable", dataset.variables)):
        for name in names:
            _check_name(what, name, spaces=name in dataset.data_vars)
    for name, variable in dataset.variables.items():
        what = "variable" if name in dataset.data_vars else "coord"
        if not isinstance(variable.dtype, np.dtype):
            raise PatchError(
                f"{what} {name!r} of dtype {variable.dtype} cannot be stored; drop it, or convert "
                "it"
            )
        if variable.dtype.kind == "V":
            raise _not_of_zarr(f"{what} {name!r}", variable.dtype)
        check_held(f"{what} {name!r}", variable)
        if sum(dim in variable.dims for dim in dataset.dims) < variable.ndim:
            raise PatchError(f"{name!r} must have every dim once, got {variable.dims}; rename one")
    for name, index in dataset.xindexes.items():
        if len(dataset.xindexes.get_all_coords(name)) > 1 and hasattr(index, "index"):
            raise PatchError(f"coord {name!r} is of a MultiIndex; use reset_index first")
    attrs = {repr(name): variable.attrs for name, variable in dataset.variables.items()}
    for what, attrs_there in {"the Dataset": dataset.attrs, **attrs}.items():
        for key, value in attrs_there.items():
            _check_attr(what, key, value)


def encoding_of(what: str, dtype: np.dtype[Any], encoding: Mapping[str, Any]) -> dict[str, Any]:
    """Normalise how the user wants values to be encoded; times keep their units.

    Raises
    ------
    PatchError
        If it would change what is stored.
    """
    for key in ("chunks", "shards"):
        if key in encoding:
            raise PatchError(
                f"encoding of {what} must not hold {key!r}; give {key}={{dim: length}}"
            )
    if dtype.kind == "V":
        raise _not_of_zarr(what, dtype)
    if dtype.kind not in "mM":
        return dict(encoding)
    for key in ("units", "dtype", "calendar", *_PACKING):
        if key in encoding:
            raise PatchError(
                f"encoding of {what} must not hold {key!r}: times are stored as they are, in their "
                "own units; convert the image with .astype(...)"
            )
    name, count = np.datetime_data(dtype)
    if name not in _UNITS or count != 1:
        raise PatchError(
            f"{what} of dtype {dtype} cannot be stored; use .astype('{dtype.kind}8[s]')"
        )
    unit = _UNITS[name]
    units = unit if dtype.kind == "m" else f"{unit} since 1970-01-01"
    return {"units": units, "dtype": "int64", **encoding}


def without_codecs(variable: xr.Variable) -> dict[str, Any]:
    """Give the encoding of a variable without what only fits the store it was read from."""
    return {key: value for key, value in variable.encoding.items() if key not in _CODECS}


def coding_of(variable: xr.Variable) -> dict[str, Any]:
    """Give what of an encoding changes values that are stored; times have their own units."""
    kept = () if variable.dtype.kind in "mMSU" else _CODING
    return {key: value for key, value in variable.encoding.items() if key in kept}


def with_checksums(encoding: Mapping[str, Any]) -> dict[str, Any]:
    """Let chunks of numbers be stored with a CRC-32C behind what compresses them.

    Parameters
    ----------
    encoding
        Of a variable; zarr's own compressors where it names none.
    """
    chosen: Any = encoding.get("compressors", "auto")
    if isinstance(chosen, str) and chosen == "auto":
        chosen = zarr.create_array(MemoryStore(), shape=(1,), dtype="u1").compressors
    codecs = [*chosen] if isinstance(chosen, list | tuple) else [] if chosen is None else [chosen]
    names = {codec.get("name") for codec in codecs if isinstance(codec, Mapping)}
    if "crc32c" not in names and not any(isinstance(codec, Crc32cCodec) for codec in codecs):
        codecs.append(Crc32cCodec())
    return {**encoding, "compressors": codecs}


def decoding_of(dataset: xr.Dataset) -> dict[str, Any]:
    """Describe, as plain data, what `open_kwargs` needs to read variables back as they are."""
    variables = sorted((str(name), variable) for name, variable in dataset.variables.items())
    return {
        "dtypes": {name: str(v.dtype) for name, v in variables if not v.dtype.hasobject},
        "packed": [name for name, v in variables if not _PACKING.isdisjoint(v.attrs)],
    }


def open_kwargs(described: Mapping[str, Any]) -> dict[str, Any]:
    """Choose what `xarray.open_zarr` decodes: what was encoded, times with the units they had."""
    dtypes = {name: np.dtype(text) for name, text in described["dtypes"].items()}

    def coders(kind: str, coder: Any) -> dict[str, Any]:
        return {
            name: dtype.kind == kind and coder(time_unit=np.datetime_data(dtype)[0])
            for name, dtype in dtypes.items()
        }

    return {
        "decode_times": coders("M", xr.coders.CFDatetimeCoder),
        "decode_timedelta": coders("m", xr.coders.CFTimedeltaCoder),
        "mask_and_scale": dict.fromkeys(described["packed"], False),
    }


def _not_of_zarr(what: str, dtype: np.dtype[Any]) -> PatchError:
    instead = "take its fields one by one" if dtype.names else "convert it with .astype('float32')"
    return PatchError(f"{what} of dtype {dtype} cannot be stored; {instead}, or drop it")


def _check_name(what: str, name: object, *, spaces: bool) -> None:
    if not isinstance(name, str):
        raise PatchError(
            f"{what} {shown(name)} must have a string for a name to be stored; rename it"
        )
    bad = "/" in name or name in ("", ".", "..", "zarr.json", JOB) or name.startswith("__")
    if bad or not is_name(name) or len(name.encode()) > 200 or (" " in name and not spaces):
        raise PatchError(f"{what} {shown(name)} cannot be stored under this name; rename it")


def _check_attr(what: str, key: object, value: Any) -> None:
    """Refuse what JSON does not hold: xarray makes lists of arrays, but not of those inside."""
    try:
        if not isinstance(key, str):
            raise TypeError("its name is no string")
        if _is_plain(value):
            value = value.tolist()
        json.dumps(value, default=_refuse)
    except Exception as error:  # whatever JSON raises, and what it asks
        raise PatchError(
            f"attr {shown(key)} of {what} cannot be stored, {said(error)}; drop it, or convert it"
        ) from error


def _is_plain(item: Any) -> bool:
    """Whether an item is NumPy's and becomes Python's by its `tolist`."""
    numpy = isinstance(item, np.ndarray | np.generic)
    return numpy and item.dtype.kind in "biufU" and item.dtype != np.longdouble


def _refuse(item: Any) -> Any:
    hint = ", use .tolist()" if _is_plain(item) else ""
    raise TypeError(f"{type(item).__name__} is no JSON{hint}")
