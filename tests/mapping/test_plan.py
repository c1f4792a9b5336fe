"""Blocks of a map: how large they are, what they cost, and how often patches are run."""

import threading
import tracemalloc
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from models import CUT, IMAGE, opened
from reference import Array
from strategies import axis_grids
from xpatches.geometry.coverage import cover_of
from xpatches.geometry.grid import AxisGrid
from xpatches.mapping.plan import MapCosts, block_lengths


@given(axis_grids(60), st.integers(1, 40), st.integers(1, 9), st.integers(1, 4000))
def test_blocks_cost_what_is_projected_at_most(
    grid: AxisGrid, unit: int, batch: int, most: int
) -> None:
    cover = cover_of(grid, Fraction(1), None)
    costs = MapCosts([grid], [cover], image=2, output=3, result=5, patch=9)
    (length,) = block_lengths(costs, [unit], most)
    assert length % unit == 0
    assert length >= min(cover.stride, cover.length)
    assert length < cover.stride + unit or costs.nbytes([length]) <= most
    for start in range(0, cover.length, length):
        stop = min(start + length, cover.length)
        over = cover.over(start, stop)
        first, last, _ = grid.region(over.start, len(over))
        band = cover.stride * batch
        rows = max(
            len(cover.over(at, min(at + band, stop))) for at in range(start, max(stop, 1), band)
        )
        held = 2 * (last - first) + 3 * cover.size * rows + 5 * (stop - start)
        assert held + batch * 9 <= costs.nbytes_with([length], batch)
        assert costs.nbytes([length]) <= replace(costs, patch=0).nbytes_with([length], batch)


class Counting:
    """The identity, and how often it was given which patch."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[int, int]] = Counter()
        self.batches: list[int] = []
        self._lock = threading.Lock()

    def __call__(self, batch: xr.DataArray) -> xr.DataArray:
        with self._lock:
            self.batches.append(batch.sizes["sample"])
            for origin in zip(batch.y_origin.values, batch.x_origin.values, strict=True):
                self.runs[(int(origin[0]), int(origin[1]))] += 1
        return batch


def test_an_image_in_memory_runs_every_patch_once_in_full_batches() -> None:
    p, count = IMAGE.patches(**CUT), Counting()
    p.map(count, labelled=True, batch_size=5)
    origins = product(p.grid["y"].origins, p.grid["x"].origins)
    assert count.runs == dict.fromkeys(origins, 1)
    assert max(count.batches) == 5
    assert len(count.batches) <= 1.25 * len(p) / 5
    assert p.plan("map")["runs_per_patch"] == 1.0


@pytest.mark.parametrize("chunked", [False, True])
def test_the_plan_says_how_often_patches_are_run(tmp_path: Path, chunked: bool) -> None:
    image = opened(IMAGE.chunk(y=32, x=32), tmp_path / "a")
    p = (IMAGE.chunk(y=32, x=32) if chunked else image).patches(**CUT)
    count = Counting()
    made = p.map(count, labelled=True, max_bytes=60_000)
    plan = p.plan("map", max_bytes=60_000)
    assert plan["chunks"] == dict(zip("yx", map(list, made.chunks), strict=True))
    assert plan["blocks"] == made.data.npartitions > 1
    made.compute()
    assert sum(count.runs.values()) == plan["runs"]
    assert plan["runs_per_patch"] == plan["runs"] / len(p)
    assert plan["runs_per_patch"] > 1
    assert plan["bytes_per_task"] <= 60_000 + 6 * 32 * 16 * 16 * 8


def test_blocks_grow_until_few_patches_are_run_again() -> None:
    image = xr.DataArray(dask.array.zeros((16384, 16384), chunks=1024), dims=("y", "x"))
    plan = image.patches(y=256, x=256, stride=128).plan("map", output={"dtype": "float32"})
    assert plan["runs_per_patch"] < 1.25
    assert plan["blocks"] < 100


def test_a_task_holds_what_the_plan_says(tmp_path: Path) -> None:
    image = opened(
        xr.DataArray(np.ones((1024, 1024, 3), "u1"), dims=("y", "x", "band")), tmp_path / "a"
    )
    output = {"dims": ("class", "y", "x"), "sizes": {"class": 4}, "dtype": "float32"}

    def model(batch: Array) -> Array:
        return np.broadcast_to(batch[:, None, :, :, 0], (len(batch), 4, 64, 64))

    p = image.patches(y=64, x=64, stride=32)
    most = 1 << 23
    made = p.map(model, output=output, batch_size=8, max_bytes=most, fill_value=0)
    plan = p.plan("map", output=output, batch_size=8, max_bytes=most)
    block = made.data.blocks[0, 0, 0]
    block.compute()  # what is loaded once
    tracemalloc.start()
    block.compute()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.data.npartitions > 1
    # The stitching takes a few rows of its own, and zarr a chunk that it decodes.
    assert peak <= plan["bytes_per_task"] + (1 << 22)
    assert peak > plan["bytes_per_task"] / 2
