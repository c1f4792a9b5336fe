"""Every benchmark runs, on small images; nothing is timed."""

import inspect
import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks import suites
from benchmarks.cases import SMALL
from benchmarks.peers import WAYS


def runs() -> list[Any]:
    """List every method of every suite, with its first and its last parameters."""
    found = []
    for _, suite in inspect.getmembers(suites, inspect.isclass):
        if hasattr(suite, "params"):
            every = list(itertools.product(*suite.params))
            names = [
                name for name in vars(suite) if name.startswith(("time_", "peakmem_", "track_"))
            ]
            found += [
                pytest.param(suite, name, given, id=f"{suite.__name__}.{name}{given}")
                for name in names
                for given in dict.fromkeys((every[0], every[-1]))
            ]
    return found


@pytest.mark.parametrize(("suite", "name", "given"), runs())
def test_a_suite_runs(suite: Any, name: str, given: tuple[Any, ...]) -> None:
    made = suite()
    if suite is suites.Kernel:
        given = (str(SMALL[0]), given[1])
    if suite is suites.Graph:
        given = (suite.params[0][0], given[1])
    made.length = 200
    made.setup(*given)
    tracked = getattr(made, name)(*given)
    assert not name.startswith("track_") or 0 < tracked < 13


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_every_way_makes_as_many_bytes(case: Any, dtype: str) -> None:
    images = case.images(dtype)
    made = {name: make(case, images) for name, make in WAYS.items()}
    patches = case.extract(images).ravel()
    for name, way in made.items():
        if way is not None:
            result = np.asarray(way())
            assert result.size == patches.size, name
            if name in ("naive", "tensorflow"):
                assert np.array_equal(result.ravel(), patches)


TABLES = [
    *("kernel", "images", "engines", "each", "writing", "chunks", "schedule", "reduce", "graphs"),
    *("stitch", "merge", "growth"),
]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_printed(table: str) -> None:
    command = [sys.executable, "-m", "benchmarks.table", "--quick", table]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n|") >= 4
