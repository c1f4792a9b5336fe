"""Whatever is given to whatever is public, it is a result or an error of xpatches.

A hostile value takes the place of each argument of each valid call in turn; pairs are drawn.
"""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache, partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import xpatches
from hostile import DUNDERS, copied, raising, settle
from xpatches import JobError, MapError, PatchError, Patches
from xpatches.accessor import PatchesAccessor
from xpatches.jobs.options import JobOptions


class Text(str):
    """A string that is not compared, hashed or shown."""

    __eq__ = __repr__ = __str__ = lambda self, *_: 1 / 0  # type: ignore[assignment]
    __hash__ = str.__hash__


class HostileMapping(Mapping[Any, Any]):
    def __getitem__(self, key: object) -> Any:
        raise ZeroDivisionError

    def __iter__(self) -> Iterator[Any]:
        raise ZeroDivisionError

    def __len__(self) -> int:
        return 2


class Odd:
    def __init__(self, a: int, b: int, c: int) -> None:
        raise AssertionError("has three arguments")


ALL = [name for name in DUNDERS if name not in ("__call__", "__fspath__")]

VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "np.True_": lambda: np.True_,
    "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "-9": lambda: -9,
    "2**62": lambda: 2**62,
    "2**63": lambda: 2**63,
    "-2**63-1": lambda: -(2**63) - 1,
    "10**30": lambda: 10**30,
    "10**5000": lambda: 10**5000,
    "-10**5000": lambda: -(10**5000),
    "1.5": lambda: 1.5,
    "3.0": lambda: 3.0,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "1j": lambda: 1j,
    "np.float64": lambda: np.float64("nan"),
    "np.int8": lambda: np.int8(3),
    "''": lambda: "",
    "'1e400'": lambda: "1e400",
    "'-1e400 GiB'": lambda: "-1e400 GiB",
    "'auto'": lambda: "auto",
    "'nan'": lambda: "nan",
    "'x'": lambda: "x",
    "long text": lambda: "y" * 100_000,
    "NUL": lambda: "a\0b",
    "surrogate": lambda: "\ud800",
    "newlines": lambda: "a\nb\r\t",
    "np.str_": lambda: np.str_("maximum"),
    "hostile text": lambda: Text("center"),
    "bytes": lambda: b"y\0",
    "long bytes": lambda: b"y" * 100_000,
    "bytearray": lambda: bytearray(b"mean"),
    "0-d": lambda: np.array(3),
    "0-d text": lambda: np.array("mean"),
    "1-d": lambda: np.arange(3),
    "1 of 1-d": lambda: np.array([3]),
    "texts": lambda: np.array(["y", "x"]),
    "empty array": lambda: np.array([]),
    "2-d": lambda: np.eye(3),
    "objects": lambda: np.array([None, {}, "y"], dtype=object),
    "0-d object": lambda: np.array(None, dtype=object),
    "structured": lambda: np.zeros(3, [("a", "i4"), ("b", "f8")]),
    "void": lambda: np.zeros(1, [("a", "i4")])[0],
    "structured dtype": lambda: np.dtype([("a", "i4"), ("b", "O")]),
    "dtype of nothing": lambda: np.dtype([]),
    "subarray dtype": lambda: np.dtype("(2,2)i4"),
    "masked": lambda: np.ma.masked_array([1, 2, 3], mask=[False, True, False]),
    "masked constant": lambda: np.ma.masked,
    "large array": lambda: np.broadcast_to(np.int8(1), (2**20, 2**20)),
    "NA": lambda: pd.NA,
    "NaT": lambda: pd.NaT,
    "np.NaT": lambda: np.datetime64("NaT", "s"),
    "Timestamp": lambda: pd.Timestamp("2020-01-01"),
    "Series": lambda: pd.Series([3, 3], index=["y", "x"]),
    "DataFrame": lambda: pd.DataFrame({"y": [3], "x": [3]}),
    "Decimal": lambda: Decimal("NaN"),
    "sNaN": lambda: Decimal("sNaN"),
    "Decimal 3": lambda: Decimal(3),
    "Fraction": lambda: Fraction(3, 7),
    "()": lambda: (),
    "[]": list,
    "{}": dict,
    "set": lambda: {3, "y"},
    "{0: 3}": lambda: {0: 3},
    "{None: 3}": lambda: {None: 3},
    "{NA: 3}": lambda: {pd.NA: 3},
    "{nan: {}}": lambda: {float("nan"): {}},
    "{('y',): 3}": lambda: {("y",): 3},
    "{b'y': 3}": lambda: {b"y": 3},
    "{'y': array}": lambda: {"y": np.arange(3)},
    "{'image': 3}": lambda: {"image": 3},
    "hostile keys": lambda: {raising("__eq__", "__repr__", "__str__"): 3},
    "hostile values": lambda: {"y": raising(*ALL), "x": 3},
    "hostile mapping": HostileMapping,
    "nested": lambda: [[3, [3, [3]]], 3],
    "ragged": lambda: [[1, 2], [3]],
    "deep": lambda: deep(),
    "list of hostiles": lambda: [raising(*ALL)] * 2,
    "pair": lambda: (1, 1),
    "slice": lambda: slice(0, 2),
    "ellipsis": lambda: ...,
    "range": lambda: range(3),
    "generator": lambda: (i for i in range(3)),
    "endless": count,
    "type": lambda: int,
    "class": lambda: Odd,
    "no arguments": lambda: lambda: None,
    "three arguments": lambda: lambda a, b, c: a,
    "gives nothing": lambda: lambda *args, **kwargs: None,
    "gives hostile": lambda: lambda *args, **kwargs: raising(*ALL),
    "gives ragged": lambda: lambda *args, **kwargs: [[1, 2], [3]],
    "raises": lambda: raising("__call__").__call__,
    "module": lambda: np,
    "DataArray": lambda: xr.DataArray(np.ones((3, 3)), dims=("y", "x")),
    "0-d DataArray": lambda: xr.DataArray(3),
    "Dataset": lambda: xr.Dataset({"y": 3, "x": 3}),
    "Variable": lambda: xr.Variable("y", [3]),
    "dask": lambda: da.ones(3, chunks=2),
    "0-d dask": lambda: da.from_array(np.array(3)),
    "unknown chunks": lambda: da.ones(3, chunks=2)[da.ones(3, chunks=2) > 0],
    "all raise": lambda: raising(*DUNDERS),
    **{name: lambda name=name: raising(name) for name in DUNDERS},  # type: ignore[misc]
}


def deep() -> list[Any]:
    made: list[Any] = []
    for _ in range(10_000):
        made = [made]
    return made


def image(dtype: str = "f8") -> xr.DataArray:
    labels = {"y": np.arange(6) * 10.0, "x": np.arange(8)}
    return xr.DataArray(np.ones((6, 8), dtype), labels, ("y", "x"), "image")


def patches(lazy: bool = False) -> Patches[xr.DataArray]:
    cut = image().chunk(y=3, x=4) if lazy else image()
    made: Patches[xr.DataArray] = cut.patches(y=3, x=3, stride=2, padding="same")
    return made


@cache
def stored() -> MemoryStore:
    store = MemoryStore()
    patches().to_zarr(store, progress=False)
    return store


@dataclass(frozen=True)
class Call:
    """A valid call: what is called, and its arguments, each made anew."""

    call: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    places: str = ""
    """Arguments that hostile values take the place of; all if empty."""
    step: int = 1
    """Every n-th value does: another call has all of them."""


JOB = {
    "chunks": None, "shards": None, "encoding": None, "checksums": True, "resume": False,
    "overwrite": False, "retries": 0, "lock": True, "fsync": False, "progress": False,
}  # fmt: skip
OUTPUT = {
    "dims": ("y", "x"), "sizes": {"y": 3}, "dtype": "f8", "scale": 1, "name": "made",
    "attrs": {}, "nodata": 0,
}  # fmt: skip
MAP = {
    "func": copied, "batch_size": 4, "taper": "flat", "reduce": "mean", "output": OUTPUT,
    "labelled": False, "factory": False, "fill_value": 0.0, "skipna": True, "max_bytes": 2**20,
}  # fmt: skip
MAP_JOB = {**MAP, "store": None, "materialize": None, **JOB}
REDUCE = {
    "how": "mean", "skipna": True, "min_count": 1, "ignore_padding": False, "label": "center",
    "max_bytes": 2**20,
}  # fmt: skip
STITCH = {
    "like": image(), "taper": "flat", "reduce": "mean", "fill_value": 0.0, "dtype": "f8",
    "skipna": True, "max_bytes": 2**20,
}  # fmt: skip
WRITE = {"layout": "grid", "chunks": {"y": 2}, "shards": {"y": 2}}


def both(call: Callable[[Patches[Any]], Callable[..., Any]], **arguments: Any) -> list[Call]:
    """Of patches in memory, and of lazy ones."""
    return [
        Call(lambda **given: call(patches())(**given), lambda: dict(arguments)),
        Call(lambda **given: call(patches(lazy=True))(**given), lambda: dict(arguments), step=7),
    ]


# Every public callable, with all arguments of its signature.
CALLS: dict[str, list[Call]] = {
    "patches": [
        Call(
            lambda **given: image().patches(**given),
            lambda: {
                "size": {"y": 3, "x": 3}, "stride": {"y": 2, "x": 2}, "rate": 1,
                "padding": {"y": "same", "x": (1, 1)}, "fill_value": 0.0,
            },
        ),
        Call(
            lambda **given: image().to_dataset().patches(**given),
            lambda: {
                "size": {"y": 3}, "stride": 2, "rate": {"y": 1}, "padding": "valid",
                "fill_value": {"image": 0.0},
            },
        ),
    ],
    "Patches.isel": both(lambda p: p.isel, indexers={"y": 0, "x": 1}),
    "Patches.sel": both(
        lambda p: p.sel, indexers={"y": 20.0, "x": [2, 4]}, method="nearest", tolerance=3
    ),
    "Patches.extract": both(
        lambda p: p.extract, flatten=None, label="center", engine="auto", max_bytes=2**20
    ),
    "Patches.reduce": both(
        lambda p: p.reduce, how="mean", skipna=True, min_count=1, ignore_padding=False,
        label="center", engine="auto", max_bytes=2**20,
    ) + both(
        lambda p: p.reduce, how="median", skipna=True, min_count=None, ignore_padding=True,
        label="center", engine="auto", max_bytes=2**20,
    ) + both(
        lambda p: p.reduce, how=np.max, skipna=None, min_count=None, ignore_padding=None,
        label="origin", engine="map_overlap", max_bytes=None,
    ),
    "Patches.map": both(lambda p: p.map, **MAP),
    "Patches.map_to_zarr": [
        Call(
            lambda **given: patches().map_to_zarr(**given),
            lambda: {
                **MAP_JOB, "store": MemoryStore(), "chunks": {"y": 2}, "shards": {"y": 2},
                "encoding": {"made": {"fill_value": 0}},
            },
            "func output store chunks shards encoding checksums resume overwrite retries "
            "lock fsync progress",
        ),
        Call(
            lambda **given: patches().map_to_zarr(**given),
            lambda: {**MAP_JOB, "materialize": MemoryStore()},
            "func materialize store",
        ),
    ],
    "Patches.reduce_to_zarr": [
        Call(
            lambda lazy=lazy, **given: patches(lazy).reduce_to_zarr(**given),
            lambda: {
                **REDUCE, **JOB, "store": MemoryStore(), "chunks": {"y": 2}, "shards": {"y": 2},
                "encoding": {"image": {"fill_value": 0}},
            },
            step=step,
        )
        for lazy, step in ((False, 1), (True, 7))
    ],
    "Patches.to_zarr": [
        Call(
            lambda **given: patches().to_zarr(**given),
            lambda: {
                **JOB, "store": MemoryStore(), "label": "center", **WRITE,
                "encoding": {"image": {"fill_value": 0}},
            },
        )
    ],
    "Patches.plan": [
        *both(lambda p: p.plan, verb="extract", flatten=None, engine="auto", max_bytes=2**20),
        *both(lambda p: p.plan, verb="to_zarr", **WRITE),
        *both(
            lambda p: p.plan, verb="map", output=OUTPUT, batch_size=4, reduce="mean",
            max_bytes=2**20,
        ),
        *both(
            lambda p: p.plan, verb="map_to_zarr", output=OUTPUT, batch_size=4, reduce="mean",
            max_bytes=2**20, chunks={"y": 2}, shards={"y": 2},
        ),
        *both(lambda p: p.plan, verb="reduce", **REDUCE, engine="auto"),
        *both(lambda p: p.plan, verb="reduce_to_zarr", **REDUCE, chunks={"y": 2}),
    ],
    "Patches.__getitem__": both(lambda p: p.__getitem__, index=(0, 1)),
    "Patches.__len__": both(lambda p: p.__len__),
    "Patches.__iter__": both(lambda p: p.__iter__),
    "stitch": [
        Call(xpatches.stitch, lambda: {"patches": patches().extract(), **STITCH}),
        Call(
            xpatches.stitch, lambda: {"patches": patches(lazy=True).extract(), **STITCH}, step=7
        ),
    ],
    "patches.stitch": [
        Call(lambda **given: patches().extract().patches.stitch(**given), lambda: dict(STITCH))
    ],
    "extract_patches": [
        Call(
            xpatches.extract_patches,
            lambda: {
                "images": np.ones((1, 6, 6, 1)), "sizes": [1, 3, 3, 1], "strides": [1, 2, 2, 1],
                "rates": [1, 1, 1, 1], "padding": "SAME",
            },
        )
    ],
    "verify": [
        Call(
            xpatches.verify, lambda: {"store": stored(), "repair": False, "progress": False}
        )
    ],
    "AxisGrid": [
        Call(
            xpatches.AxisGrid,
            lambda: {
                "dim": "x", "length": 10, "size": 3, "stride": 2, "rate": 1, "padding": "same",
            },
        )
    ],
    "PatchGrid": [
        Call(xpatches.PatchGrid, lambda: {"axes": (xpatches.AxisGrid("x", 10, 3, 2),)})
    ],
    "open_patches": [Call(xpatches.open_patches, lambda: {"store": stored(), "chunks": {"y": 1}})],
}  # fmt: skip
CLASSES = {"Patches": Patches, "patches": PatchesAccessor}
ERRORS = {"BlockFailure", "JobError", "MapError", "PatchError", "PatchIndexError"}
"""Raised, not called."""


def signatures() -> dict[str, inspect.Signature]:
    """Of everything public."""
    found = {"patches": inspect.signature(PatchesAccessor.__call__)}
    for name in xpatches.__all__:
        if name not in {*ERRORS, *CLASSES}:
            found[name] = inspect.signature(getattr(xpatches, name))
    for name, of in CLASSES.items():
        for member, function in inspect.getmembers(of, inspect.isfunction):
            if not member.startswith("_") or member in ("__getitem__", "__len__", "__iter__"):
                found[f"{name}.{member}"] = inspect.signature(function)
    return found


def named(signature: inspect.Signature) -> set[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    job = JobOptions.__annotations__ if "job" in signature.parameters else {}
    return {*job} | {
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind not in kinds and name != "self"
    }


def test_every_public_callable_is_called_here_with_all_of_its_arguments() -> None:
    assert CALLS.keys() == signatures().keys()
    for name, signature in signatures().items():
        for call in CALLS[name]:
            assert named(signature) <= call.arguments().keys(), name


def nested(arguments: Mapping[str, Any], name: str) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Give the places of values in an argument: its own, and inside of mappings."""
    yield name, lambda value: value
    given = arguments[name]
    if isinstance(given, dict):
        for key in given:
            for place, put in nested(given, key):
                yield f"{name}.{place}", partial(_put, given, key, put)


def _put(given: Mapping[str, Any], key: str, put: Callable[[Any], Any], value: Any) -> Any:
    return {**given, key: put(value)}


# What an error names instead of the argument: its method, or what is stored under the name that
# `output` gives, with its attrs.
NAMED_AS = {
    "indexers": ("isel", "sel", "index on"),
    "index": ("index", "number of the patch"),
    "size": ("size", "stride names"),
    "output": ("output", "name", "attr", "reduce='mean'"),
}
EXPECTED = (PatchError, MapError, JobError)


def problem(call: Call, given: dict[str, Any], changed: dict[str, str]) -> str | None:
    """Say what is wrong with how a call ends; None if nothing is."""
    try:
        settle(call.call(**given))
    except EXPECTED as error:
        text = str(error)
        words = [word for name in changed for word in NAMED_AS.get(name, (name,))]
        if any(word in text for word in words) and len(text) < 2000:
            return None
        return f"{changed} is not named by {type(error).__name__}: {text[:300]}"
    except Exception as error:
        return f"{changed} raises {type(error).__name__}: {str(error)[:300]}"
    return None


CASES = [(name, number) for name, calls in CALLS.items() for number in range(len(calls))]
PLACES = [
    (f"{name}-{number}-{place}", call, place, put)
    for name, number in CASES
    for call in [CALLS[name][number]]
    for argument in call.places.split() or call.arguments()
    for place, put in nested(call.arguments(), argument)
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write in a folder of the test whatever a hostile value names."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("call", "place", "put", "first"),
    [pytest.param(*of, number, id=name) for number, (name, *of) in enumerate(PLACES)],
)
def test_a_hostile_argument_gives_a_result_or_an_error_that_names_it(
    call: Call, place: str, put: Callable[[Any], Any], first: int
) -> None:
    argument = place.partition(".")[0]
    problems = []
    for value, make in islice(VALUES.items(), first % call.step, None, call.step):
        given = call.arguments() | {argument: put(make())}
        problems.append(problem(call, given, {argument: f"{value} in {place}"}))
    found = [text for text in problems if text is not None]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize("number", range(20))
def test_two_hostile_arguments_give_a_result_or_an_error_that_names_one(number: int) -> None:
    rng = random.Random(number)
    problems = []
    for _ in range(25):
        call = CALLS[(case := rng.choice(CASES))[0]][case[1]]
        given = call.arguments()
        changed = {}
        for argument in rng.sample([*given], min(2, len(given))):
            value = rng.choice([*VALUES])
            given[argument], changed[argument] = VALUES[value](), value
        problems.append(problem(call, given, changed) if changed else None)
    found = [text for text in problems if text is not None]
    assert not found, "\n".join(["", *found])
