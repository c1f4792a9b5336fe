"""Whatever image there is, whatever is done with its patches is a result or an error."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from zarr.storage import MemoryStore

from hostile import DUNDERS, copied, raising, settle
from xpatches import JobError, MapError, PatchError

NAMES: dict[str, Any] = {
    "NUL": "a\0b", "surrogate": "\ud800", "empty": "", "long": "y" * 10_000, "slash": "a/b",
    "number": 3, "tuple": ("a", 1), "float": 1.5, "NaN": float("nan"), "bytes": b"a",
    "None": None, "True": True, "enum": type("Name", (str,), {})("a"), "job": "xpatches_job",
    "sample": "sample", "patch": "patch", "y_patch": "y_patch", "y_origin": "y_origin",
    "NaT": pd.NaT, "hostile": raising("__repr__", "__str__"), "spaces": " ",
}  # fmt: skip
ATTRS: dict[str, Any] = {
    "FillValue": {"_FillValue": raising(*DUNDERS)}, "ragged": {"_FillValue": [[1], [2, 3]]},
    "text": {"missing_value": "none"}, "NaN": {"nodata": float("nan")}, "huge": {"nodata": 10**400},
    "spec": {"xpatches": "{"}, "no spec": {"xpatches": raising(*DUNDERS)}, "NA": {"nodata": pd.NA},
    "object": {"made": object()}, "number": {3: 4}, "NUL": {"a\0b": "\0"}, "units": {"units": 3},
    "surrogate": {"\ud800": "\ud800"}, "links": {"grid_mapping": raising(*DUNDERS), "bounds": 3},
    "hostile key": {raising("__repr__", "__str__"): 1}, "array": {"made": np.arange(3)},
    "transform": {"GeoTransform": raising("__str__")}, "scale": {"scale_factor": "a"},
    "dict": {"made": {1: {2: np.float32(1)}}}, "masked": {"_FillValue": np.ma.masked},
}  # fmt: skip
DTYPES = [
    *("?", "i1", "u8", "f2", "f8", "g", "c16", "G", "M8[ns]", "M8[s]", "m8[D]", "m8[ns]", "U3"),
    *("S3", "V3", "O", "U0", "S0", "V0", "T", "i4,f8", "O,i4", "(2,)i4,f8"),
]
"""Numpy's, with those that xarray holds in another."""


def array(dtype: str = "f8", dims: tuple[Any, ...] = ("y", "x"), **others: Any) -> xr.DataArray:
    shape = tuple(range(4, 4 + len(dims)))
    data: Any = np.zeros(shape, np.dtypes.StringDType() if dtype == "T" else dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xr.DataArray(data, dims=dims, name="image", **others)


def renamed(name: Any) -> xr.DataArray:
    image = array(coords={"y": np.arange(4)})
    image.name = name
    return image


def encoded(encoding: dict[str, Any]) -> xr.DataArray:
    image = array()
    image.encoding = encoding
    return image


def in_dataset(name: Any) -> xr.Dataset:
    return xr.Dataset({name: array().variable, "other": array("i4", ("y",))})


def of_dims(count: int) -> xr.DataArray:
    return xr.DataArray(np.zeros((2,) + (1,) * (count - 1)), dims=["y", *map(str, range(1, count))])


IMAGES: dict[str, Callable[[], Any]] = {
    **{f"dtype {dtype}": lambda dtype=dtype: array(dtype) for dtype in DTYPES},  # type: ignore[misc]
    **{f"name {key}": lambda name=name: renamed(name) for key, name in NAMES.items()},  # type: ignore[misc]
    **{f"dim {key}": lambda name=name: array(dims=("y", name)) for key, name in NAMES.items()},  # type: ignore[misc]
    **{f"variable {key}": lambda name=name: in_dataset(name) for key, name in NAMES.items()},  # type: ignore[misc]
    **{
        f"coord {key}": lambda name=name: array(coords={name: ("y", np.arange(4.0))})  # type: ignore[misc]
        for key, name in NAMES.items()
        if key != "y"
    },
    **{f"attr {key}": lambda attrs=attrs: array("i2", attrs=attrs) for key, attrs in ATTRS.items()},  # type: ignore[misc]
    **{
        f"attr of a coord, {key}": lambda attrs=attrs: array(  # type: ignore[misc]
            coords={"y": ("y", np.arange(4), attrs), "crs": ((), 0, attrs)}
        )
        for key, attrs in ATTRS.items()
    },
    **{
        f"attr of the dataset, {key}": lambda attrs=attrs: in_dataset("a").assign_attrs(attrs)  # type: ignore[misc]
        for key, attrs in ATTRS.items()
    },
    **{f"encoding {key}": lambda attrs=attrs: encoded(dict(attrs)) for key, attrs in ATTRS.items()},  # type: ignore[misc]
    "encoded chunks": lambda: encoded({"chunks": "a", "preferred_chunks": 3, "dtype": "b"}),
    **{
        f"labels {dtype}": lambda dtype=dtype: array(coords={"y": ("y", array(dtype).data[:, 0])})  # type: ignore[misc]
        for dtype in DTYPES
    },
    **{
        f"labels beside {dtype}": lambda dtype=dtype: array(  # type: ignore[misc]
            coords={"of": (("y", "x"), array(dtype).data)}
        )
        for dtype in DTYPES
        if dtype != "V0"  # which dask cannot rechunk
    },
    "labels surrogate": lambda: array(coords={"y": ["\ud800", "a", "\0", ""]}),
    "labels hostile": lambda: array(coords={"of": ("y", np.array([raising(*DUNDERS)] * 4, "O"))}),
    "labels NaN": lambda: array(coords={"y": [1, np.nan, np.nan, 2]}),
    "labels infinite": lambda: array(coords={"y": [1e308, -1e308, np.inf, 2]}),
    "labels large": lambda: array(coords={"y": [2**63, 2**64 - 1, 0, 1]}),
    "labels far": lambda: array(coords={"y": np.array([2**62, -(2**62), 0, 1], "M8[s]")}),
    "labels mixed": lambda: array(coords={"y": np.array([1, "a", None, 1.5], "O")}),
    "labels of several": lambda: array(dims=("z", "x")).stack(y=("z", "x")),
    "intervals": lambda: array(coords={"y": pd.interval_range(0, 4)}),
    "categories": lambda: array(coords={"y": pd.CategoricalIndex(list("abca"))}),
    "periods": lambda: array(coords={"y": pd.period_range("2000", periods=4, freq="M")}),
    "zones": lambda: array(coords={"y": pd.date_range("2000", periods=4, tz="CET")}),
    "no dims": lambda: array(dims=()),
    "one dim": lambda: array(dims=("y",)),
    "no samples": lambda: array()[:, :0],
    "nothing": lambda: array()[:0],
    "twice": lambda: array(dims=("y", "y"))[:, :4],
    "another twice": lambda: array(dims=("y", "a", "a")),
    **{f"{n} dims": lambda n=n: of_dims(n) for n in (20, 31, 32, 64)},  # type: ignore[misc]
    "no variables": xr.Dataset,
    "coords alone": lambda: xr.Dataset(coords={"y": range(4)}),
    "strings beside": lambda: xr.Dataset({"a": array(), "b": array("T"), "c": array("O")}),
    "objects that are not cut": lambda: xr.Dataset({"a": array(), "b": array("O", ("z",))}),
    "strings that are not cut": lambda: xr.Dataset({"a": array(), "b": array("T", ("z",))}),
    "fields that are not cut": lambda: xr.Dataset({"a": array(), "b": array("i4,f8", ("z",))}),
    "backwards": lambda: array()[::-1, ::-1],
    "read only": lambda: array().copy(data=np.broadcast_to(1.0, (4, 5))),
    "broadcast": lambda: array().copy(data=np.broadcast_to(np.arange(5), (4, 5))),
    "hostile values": lambda: array().copy(data=np.full((4, 5), raising(*DUNDERS))),
}

VERBS: dict[str, Callable[[Any], Any]] = {
    "repr": repr,
    "html": lambda p: p._repr_html_(),
    "nbytes": lambda p: p.nbytes,
    "extract": lambda p: p.extract(),
    "origins": lambda p: p.extract(label="origin"),
    "flat": lambda p: p.extract(flatten="patch"),
    "mean": lambda p: p.reduce("mean"),
    "min": lambda p: p.reduce("min"),
    "argmax": lambda p: p.reduce("argmax", label="origin"),
    "count": lambda p: p.reduce("count"),
    "median": lambda p: p.reduce("median"),
    "std": lambda p: p.reduce("std", ignore_padding=True),
    "function": lambda p: p.reduce(lambda patches, axis: patches.min(axis)),
    "map": lambda p: p.map(copied, fill_value=0),
    "labelled": lambda p: p.map(copied, labelled=True, reduce="first", fill_value=0),
    "stitch": lambda p: p.extract().patches.stitch(),
    "stitch first": lambda p: p.extract().patches.stitch(reduce="first", like=p.source),
    "stitch samples": lambda p: p.to_zarr(
        MemoryStore(), layout="samples", progress=False, retries=0
    ).patches.stitch(reduce="vote"),
    "to_zarr": lambda p: p.to_zarr(MemoryStore(), progress=False, retries=0),
    "map to zarr": lambda p: p.map_to_zarr(
        MemoryStore(), copied, progress=False, retries=0, reduce="first", fill_value=0
    ),
    "reduce to zarr": lambda p: p.reduce_to_zarr(MemoryStore(), "max", progress=False, retries=0),
    "first": lambda p: p[0],
    "last": lambda p: p[-1],
    "isel": lambda p: p.isel(dict.fromkeys(p.grid.dims, 0)),
    "sel": lambda p: p.sel(dict.fromkeys(p.grid.dims, 1), method="nearest"),
    "several": lambda p: p.sel({dim: [1] for dim in p.grid.dims}),
    "iteration": list,
    "plan": lambda p: p.plan(),
    "plan to_zarr": lambda p: p.plan("to_zarr"),
    "plan map": lambda p: p.plan("map"),
    "plan map_to_zarr": lambda p: p.plan("map_to_zarr"),
    "plan reduce": lambda p: p.plan("reduce", how="std"),
    "plan reduce_to_zarr": lambda p: p.plan("reduce_to_zarr", how="argmin"),
    "again": lambda p: p.extract().patches({p.grid.dims[0]: 1}).extract().patches.stitch(),
}


def step_of(name: str) -> int:
    """Of kinds of images that there are many of, every n-th verb is tried on each."""
    return next((step for kind, step in _STEPS.items() if name.startswith(kind)), 1)


_STEPS = {"attr": 4, "encod": 4, "name": 2, "dim": 2, "variable": 3, "coord": 3, "labels beside": 3}
CASES = [(name, lazy) for name in IMAGES for lazy in (False, True)]


@pytest.mark.filterwarnings("ignore:`pandas.Index` does not support the `float16`:FutureWarning")
@pytest.mark.parametrize(("name", "lazy"), CASES)
def test_any_image_gives_a_result_or_an_error(name: str, lazy: bool) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = IMAGES[name]().chunk() if lazy else IMAGES[name]()
            accessor = image.patches
    except Exception:
        pytest.skip("not an image of xarray's")
    problems = []
    first, verbs = CASES.index((name, lazy)), list(VERBS.items())
    for size in ({"y": 2}, dict.fromkeys([*image.dims][:2], 2)):
        step = step_of(name) * (3 if lazy else 1) * (2 if len(size) > 1 else 1)
        for verb, do in [("patches", None), *verbs[first % step :: step]]:
            try:
                p = accessor(size, stride=2, padding="same")
                if do is not None:
                    settle(do(p))
            except (PatchError, MapError, JobError):
                pass
            except Exception as error:
                problems.append(f"{verb} {len(size)}: {type(error).__name__}: {str(error)[:200]}")
    assert not problems, "\n".join(["", *problems])
