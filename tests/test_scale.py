"""Images of any size: a patch costs a patch, a plan the blocks of a dim; too much is refused."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from strategies import axis_grids, chunkings
from xpatches import PatchError, stitch
from xpatches.geometry import lengths
from xpatches.geometry.grid import AxisGrid, PatchGrid
from xpatches.images.spec import SPEC_ATTR, write_spec
from xpatches.jobs.job import Report
from xpatches.lazy.sources import promised

SIDE, FEW = 10**9, 976
"""Both leave the same pads for "same"."""
HUGE = xr.DataArray(np.broadcast_to(np.uint8(7), (SIDE, SIDE)), dims=("y", "x"), name="image")
CHUNKED = xr.DataArray(da.full((SIDE, SIDE), 7, chunks=10**7, dtype="uint8"), dims=("y", "x"))
FINE = xr.DataArray(da.full((SIDE, SIDE), 7, chunks=10**5, dtype="uint8"), dims=("y", "x"))
SMALL = HUGE[:FEW, :FEW].copy(deep=True)
MIB = 2**20


@contextmanager
def peak_below(nbytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < nbytes


def cut(image: xr.DataArray, padding: Any = "valid") -> Any:
    return image.patches(y=64, x=64, stride=48, padding=padding)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("chunks", [None, 100])
def test_a_patch_of_a_huge_image_is_that_of_a_small_one_and_costs_no_more(
    padding: str, chunks: int | None
) -> None:
    small = SMALL if chunks is None else SMALL.chunk(y=chunks, x=chunks)
    huge = HUGE if chunks is None else CHUNKED.rename("image")
    expected = [cut(small, padding)[0], cut(small, padding)[-1]]
    with peak_below(MIB):
        p = cut(huge, padding)
        first, last = p[0], p[-1]
    assert first.identical(expected[0])
    shift = p.grid["x"].origins[-1] - cut(SMALL, padding).grid["x"].origins[-1]
    last = last.assign_coords({name: last[name] - shift for name in ("y_index", "x_index")})
    assert last.identical(expected[1])


def test_patches_of_a_huge_image_are_taken_in_turn_at_once() -> None:
    next(iter(cut(SMALL)))
    with peak_below(MIB):
        turn = iter(HUGE.patches(y=1, x=2, stride=1))
        next(turn)
        assert next(turn).x_index.values.tolist() == [1, 2]


@pytest.mark.parametrize(
    "ask",
    [
        lambda image: cut(image),
        lambda image: repr(cut(image)) + cut(image)._repr_html_(),
        lambda image: (len(cut(image)), cut(image).total, cut(image).nbytes, cut(image).sizes),
        lambda image: image.patches(y=1, x=1).plan(),
        lambda image: image.patches(y=1, x=1).plan("to_zarr"),
        lambda image: image.patches(y=5, x=5, stride=1).plan("to_zarr", layout="samples"),
        lambda image: image.patches(y=5, x=5).plan("reduce", how="mean"),
        lambda image: image.patches(y=5, x=5, stride=1).plan("reduce_to_zarr", how="max"),
    ],
)
def test_what_is_told_of_a_huge_image_takes_no_memory(ask: Callable[[Any], Any]) -> None:
    ask(SMALL)
    with peak_below(MIB):
        ask(HUGE)


def test_a_job_of_many_blocks_is_planned_without_listing_them() -> None:
    image = xr.DataArray(np.broadcast_to(np.uint8(0), (10**6, 10**6)), dims=("y", "x"))
    image[:64, :64].patches(y=4, x=4).plan("to_zarr")
    with peak_below(MIB):
        told = image.patches(y=4, x=4).plan("to_zarr", chunks={"y": 8, "x": 8}, shards=False)
        plain = image.patches(y=4, x=4, stride=1).plan("to_zarr", layout="samples")
    assert told["patches"] == 250_000**2
    assert told["bytes"] == 10**12
    assert plain["patches"] == (10**6 - 3) ** 2


class _Begun(Exception):
    """Blocks would be written next."""


def test_a_job_of_many_blocks_is_set_up_with_no_more_than_the_coords(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = []

    def begin(self: Report, blocks: int, done: int, nbytes: int) -> None:
        begun.append(blocks)
        raise _Begun

    monkeypatch.setattr(Report, "begin", begin)
    p = HUGE.patches(y=4096, x=4096)
    coords = 2 * 8 * (SIDE // 4096)
    with peak_below(MIB + 12 * coords), pytest.raises(_Begun):
        p.to_zarr(MemoryStore(), progress=False)
    assert begun == [p.plan("to_zarr")["tasks"]]
    assert begun[0] >= 10**7


def opened(shape: tuple[int, ...], chunks: Any) -> Any:
    """Give a dask array that reads storage, of which nothing is to be read."""
    return promised(shape, np.dtype("uint8"), chunks)


@given(axis_grids(25, "y"), axis_grids(25, "x"), st.data())
def test_the_plan_counts_the_tasks_of_the_graph_that_is_built(
    y: AxisGrid, x: AxisGrid, data: st.DataObject
) -> None:
    chunks = tuple(data.draw(chunkings(n)) for n in (y.length, x.length, 3))
    stored = opened((y.length, x.length, 3), chunks)
    source = stored if data.draw(st.booleans()) else stored + 1
    image = xr.DataArray(source, dims=("y", "x", "band"))
    how: dict[str, Any] = {
        "max_bytes": data.draw(st.sampled_from([None, 60, 200, 2000])),
        "engine": data.draw(st.sampled_from(["auto", "region"])) if source is stored else "auto",
        "flatten": data.draw(st.sampled_from([None, "patch"])),
    }
    p = image.patches(
        y=y.size, x=x.size, stride={"y": y.stride, "x": x.stride},
        rate={"y": y.rate, "x": x.rate}, padding={"y": y.padding, "x": x.padding},
    )  # fmt: skip
    try:
        told = p.plan(**how)
    except PatchError:  # one patch does not fit the budget
        assume(how["max_bytes"] is None)
        raise
    graph = p.extract(**how).data.__dask_graph__()
    assert told["tasks"] + told["image_tasks"] == len(dict(graph))
    assert told["image_tasks"] == (0 if told["engine"] == "region" else len(source.dask))


IMAGE = SMALL.copy(data=opened((FEW, FEW), (100, 100)))
PATCHES = IMAGE.patches(y=8, x=8, stride=4)
COMPUTED = IMAGE + 1
EXTRACTED = PATCHES.extract()
VERBS: dict[str, Callable[[], tuple[xr.DataArray | None, xr.DataArray]]] = {
    "extract": lambda: (IMAGE, PATCHES.extract()),
    "flatten": lambda: (IMAGE, PATCHES.extract(flatten="patch")),
    "regions": lambda: (None, PATCHES.extract(engine="region", max_bytes="1 MB")),
    "whole chunks": lambda: (COMPUTED, COMPUTED.patches(y=4, x=4).extract()),
    "reduce": lambda: (IMAGE, PATCHES.reduce("max")),
    "map": lambda: (None, PATCHES.map(np.copy, reduce="first", max_bytes="1 MB")),
    "map what was computed": lambda: (
        COMPUTED, COMPUTED.patches(y=8, x=8).map(np.copy, max_bytes="1 MB"),
    ),
    "stitch": lambda: (EXTRACTED, stitch(EXTRACTED, reduce="first", max_bytes="1 MB")),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_graph_is_refused_from_the_limit_on(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, result = VERBS[verb]()
    tasks = len(result.data.dask) - (len(source.data.dask) if source is not None else 0)
    monkeypatch.setattr(lengths, "MOST_TASKS", tasks + 1)
    VERBS[verb]()
    monkeypatch.setattr(lengths, "MOST_TASKS", tasks)
    with pytest.raises(PatchError, match=f"fewer than {tasks} tasks .blocks., got {tasks}; write"):
        VERBS[verb]()


@pytest.mark.parametrize(
    "ask",
    [
        lambda p: p.extract(),
        lambda p: p.extract(flatten="patch", label="origin"),
        lambda p: p.reduce("min", ignore_padding=True),
        lambda p: p.map(np.copy, reduce="first"),
        lambda p: p.map(np.copy, reduce="first", labelled=True, output={"scale": 2}),
    ],
)
def test_what_is_too_much_is_refused_before_anything_is_built(ask: Callable[[Any], Any]) -> None:
    p = FINE.patches(y=256, x=256, padding="same")
    with peak_below(32 * MIB), pytest.raises(PatchError) as refused:
        ask(p)
    assert "must have fewer than 10000000 tasks (blocks), got " in str(refused.value)
    assert "write a job instead, with to_zarr, map_to_zarr or reduce_to_zarr" in str(refused.value)


def test_too_many_blocks_along_one_dim_are_refused_by_plans_too() -> None:
    p = FINE.patches(y=256, x=256, stride=1)
    with peak_below(64 * MIB), pytest.raises(PatchError, match="one dim must have fewer than 1000"):
        p.plan()
    with peak_below(64 * MIB), pytest.raises(PatchError, match="one dim must have fewer than 1000"):
        HUGE.patches(y=1, x=1).plan(
            "map_to_zarr", chunks={"y": 1, "x": 1}, shards=False, max_bytes=64
        )


def test_too_many_patches_are_not_stitched_lazily() -> None:
    grid = PatchGrid(tuple(AxisGrid(dim, 8000, 2, 2) for dim in ("y", "x")))
    spec = write_spec(grid.dims, grid, np.array(0), "center", {})
    patches = da.zeros((4000, 4000, 2, 2), chunks=(1, 1, 2, 2))
    array = xr.DataArray(patches, dims=("y", "x", "y_patch", "x_patch"), attrs={SPEC_ATTR: spec})
    with peak_below(32 * MIB), pytest.raises(PatchError, match="a dask graph must have fewer than"):
        stitch(array)


def test_too_many_runs_of_a_model_are_not_materialized() -> None:
    with pytest.raises(PatchError, match="what materialize stores must have fewer than 10000000"):
        HUGE.patches(y=256, x=256).map_to_zarr(
            None, np.copy, materialize=MemoryStore(), progress=False
        )


def test_a_result_that_does_not_fit_memory_is_refused_before_patches_get_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xpatches.images.labels.patch_coords", None)
    p = HUGE.patches(y=1, x=1)
    asks: list[Callable[[], Any]] = [p.extract, lambda: p.reduce("max"), lambda: p.map(np.copy)]
    for ask in asks:
        with pytest.raises(MemoryError):
            ask()


def test_a_length_that_python_cannot_tell_names_the_total() -> None:
    before = 10**11 - SIDE
    p = HUGE.patches(y=1, x=1, padding=(before, 0))
    assert p.total == 10**22
    assert p
    for kind in (OverflowError, PatchError):
        with pytest.raises(kind, match=r"there are 10000000000000000000000 patches; use p.total"):
            len(p)
    assert p[-(10**22)].x_index.item() == -before
    assert p[10**22 - 1].x_index.item() == SIDE - 1
    with pytest.raises(IndexError, match=r"must lie in \[-10000000000000000000000, "):
        p[-(10**22) - 1]


NO_SCALES = [
    "1e9999999", "1e-9999999", Decimal("1e9999999"), Decimal("1e-9999999"), 1e308, 5e-324,
    "1/1e99999", "1/0", "0", "nan", "inf", float("nan"), float("inf"), Decimal("nan"),
    Decimal("sNaN"), "1" * 10_000, "3/2", 10**400, 0, -1, 1j, "two",
]  # fmt: skip


@pytest.mark.parametrize("scale", NO_SCALES, ids=lambda scale: repr(scale)[:12])
def test_no_scale_takes_long_to_be_refused(scale: Any) -> None:
    with peak_below(MIB), pytest.raises(PatchError, match="output scale on 'y' must be an integer"):
        SMALL.patches(y=4, x=4).map(np.copy, output={"scale": scale})


@pytest.mark.parametrize(
    "max_bytes", ["1e400", "1e9999999 GB", "1e9999999", "nan", "inf", "-1 MB", "1e-9", float("inf")]
)
def test_no_budget_takes_long_to_be_refused(max_bytes: Any) -> None:
    p = SMALL.chunk(y=100, x=100).patches(y=4, x=4)
    asks: list[Callable[[], Any]] = [
        lambda: p.extract(max_bytes=max_bytes),
        lambda: p.reduce("max", max_bytes=max_bytes),
        lambda: p.map(np.copy, max_bytes=max_bytes),
        lambda: p.plan(max_bytes=max_bytes),
        lambda: p.plan("map_to_zarr", max_bytes=max_bytes),
    ]
    for ask in asks:
        with peak_below(MIB), pytest.raises(PatchError, match="max_bytes must be "):
            ask()
