import sys
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import axis_grids, chunkings
from xpatches import PatchError
from xpatches.extraction.plan import AxisPlan, Plan, plan_blocks
from xpatches.geometry.blocks import Engine, overlap_of
from xpatches.geometry.grid import AxisGrid

ENGINES = pytest.mark.parametrize("engine", ["map_overlap", "region"])
Image = tuple[dict[int, AxisGrid], tuple[tuple[int, ...], ...]]


def along(axis: AxisGrid, chunks: tuple[int, ...], max_bytes: int = sys.maxsize) -> AxisPlan:
    """Plan an image of one dim, one byte per sample."""
    return plan_blocks("map_overlap", {0: axis}, (chunks,), 1, max_bytes).axes[0]


def regular(length: int, chunk: int) -> tuple[int, ...]:
    whole, rest = divmod(length, chunk)
    return (chunk,) * whole + ((rest,) if rest else ())


def held(plan: Plan) -> int:
    """Bytes that a task is given and returns, at most."""
    return plan.region_bytes + plan.chunk_bytes


@st.composite
def images(draw: st.DrawFn) -> Image:
    """One or two axes with patches, an axis before them and one behind."""
    count = draw(st.integers(1, 2))
    grids = {axis: draw(axis_grids(40)) for axis in range(1, count + 1)}
    lengths = [draw(st.integers(1, 4)), *(grid.length for grid in grids.values()), 3]
    return grids, tuple(draw(chunkings(length)) for length in lengths)


@ENGINES
@given(images(), st.integers(1, 3000))
def test_every_patch_is_in_one_chunk_and_its_samples_in_that_chunks_region(
    engine: Engine, image: Image, budget: int
) -> None:
    grids, chunks = image
    try:
        plan = plan_blocks(engine, grids, chunks, 1, budget)
    except PatchError:
        return
    for axis in plan.axes:
        first = 0
        for block, origin, count in axis.spans:
            start, stop = axis.regions[block]
            assert 0 <= start <= stop <= axis.grid.length
            assert count > 0
            assert start + origin == axis.grid.samples(first)[0]
            for i in range(first, first + count):
                samples = [x for x in axis.grid.samples(i) if 0 <= x < axis.grid.length]
                assert all(start <= x < stop for x in samples)
            first += count
        assert first == axis.grid.count


@ENGINES
@given(images(), st.integers(1, 3000))
def test_no_task_holds_more_than_the_budget_unless_one_patch_does(
    engine: Engine, image: Image, budget: int
) -> None:
    grids, chunks = image
    under = prod(min(grid.effective_size, grid.length) for grid in grids.values())
    least = under + prod(grid.size for grid in grids.values())
    if least <= budget:
        assert held(plan_blocks(engine, grids, chunks, 1, budget)) <= budget
    else:
        with pytest.raises(PatchError, match=f"max_bytes must be >= {least}, one patch"):
            plan_blocks(engine, grids, chunks, 1, budget)


def test_a_block_that_leaves_no_room_for_a_patch_is_cut() -> None:
    grids = {axis: AxisGrid(axis, length=1, size=2, stride=1, padding="same") for axis in (0, 1)}
    assert held(plan_blocks("map_overlap", grids, ((1,), (1,), (3,)), 1, max_bytes=6)) <= 6


@ENGINES
@pytest.mark.parametrize(
    ("size", "stride", "rate"), [(65, 1, 1), (256, 1, 1), (33, 1, 9), (500, 3, 1)]
)
def test_no_choice_of_patches_exceeds_the_default_budget(
    engine: Engine, size: int, stride: int, rate: int
) -> None:
    grids = {axis: AxisGrid(axis, 8192, size, stride, rate, "same") for axis in (0, 1)}
    plan = plan_blocks(engine, grids, ((256,) * 32,) * 2, 4, 2**27)
    assert held(plan) <= 2**27


@ENGINES
@given(axis_grids(60), st.integers(1, 60), st.integers(20, 2000))
def test_the_chunks_are_equal_as_zarr_requires_where_the_sources_are(
    engine: Engine, axis: AxisGrid, chunk: int, budget: int
) -> None:
    try:
        chunks = plan_blocks(
            engine, {0: axis}, (regular(axis.length, chunk),), 1, budget
        ).out_chunks[0]
    except PatchError:
        return
    assert set(chunks[:-1]) <= {chunks[0]}
    assert chunks[-1] <= chunks[0]


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 4), st.data())
def test_with_stride_1_and_same_the_chunks_line_up_with_the_sources(
    length: int, size: int, rate: int, data: st.DataObject
) -> None:
    chunks = data.draw(chunkings(length))
    assert along(AxisGrid("x", length, size, 1, rate, "same"), chunks).chunks == chunks


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_patches_that_do_not_overlap_need_no_halo_on_aligned_chunks(
    size: int, count: int, per_chunk: int
) -> None:
    axis = AxisGrid("x", size * count, size, size)
    chunks = tuple(size * n for n in regular(count, per_chunk))
    plan = plan_blocks("map_overlap", {0: axis}, (chunks,), 1, sys.maxsize)
    assert plan.axes[0].halo == (0, 0)
    assert overlap_of(chunks, plan.blocks.axes[0].regions) == (chunks, 0, 0)


@given(axis_grids(60), st.data())
def test_the_halo_is_no_wider_than_that_of_any_edge(axis: AxisGrid, data: st.DataObject) -> None:
    plan = along(axis, data.draw(chunkings(axis.length)))
    assert all(a <= b for a, b in zip(plan.halo, axis.halo, strict=True))


def test_zero_length_chunks_are_passed_over() -> None:
    axis = AxisGrid("x", 10, 3, 1, padding="same")
    assert along(axis, (0, 5, 0, 5, 0)) == along(axis, (5, 5))


def test_one_region_feeds_several_chunks_where_their_patches_would_not_fit() -> None:
    plan = along(AxisGrid("x", 64, 9, 1, padding="same"), (32, 32), max_bytes=200)
    assert plan.blocks == (32, 32)
    assert plan.chunks == (16,) * 4
    assert [block for block, _, _ in plan.spans] == [0, 0, 1, 1]


def test_the_first_axis_is_cut_first() -> None:
    grids = {axis: AxisGrid(axis, 64, 5, 1, padding="same") for axis in (0, 1)}
    plan = plan_blocks("map_overlap", grids, ((64,), (64,)), 1, 2**15)
    assert plan.out_chunks[:2] == ((16,) * 4, (64,))


@given(axis_grids(60), st.integers(1, 20), st.integers(100, 3000))
def test_the_read_amplification_is_counted_over_stored_samples(
    axis: AxisGrid, chunk: int, budget: int
) -> None:
    stored = regular(axis.length, chunk)
    plan = plan_blocks("region", {0: axis}, (stored,), 1, budget)
    reads = [{x // chunk for x in range(start, stop)} for start, stop in plan.axes[0].regions]
    total = sum(stored[number] for read in reads for number in read)
    once = sum(stored[number] for number in set().union(*reads))
    assert plan.read_amplification == pytest.approx(total / once if once else 1.0)


def test_regions_grow_until_little_is_read_twice() -> None:
    grids = {axis: AxisGrid(axis, 16384, 5, 1, padding="same") for axis in (0, 1)}
    plan = plan_blocks("region", grids, ((256,) * 64,) * 2, 2, 2**30)
    assert plan.read_amplification < 1.3
    assert held(plan) <= 2**30
    assert all(count % 256 == 0 for axis in plan.axes for count in axis.blocks)


@ENGINES
def test_the_plan_of_an_array_is_in_blocks_not_in_patches(engine: Engine) -> None:
    grids = {axis: AxisGrid(axis, 10**6, 5, 1, padding="same") for axis in (0, 1)}
    plan = plan_blocks(engine, grids, ((1000,) * 1000,) * 2, 2, 2**27)
    assert prod(len(axis.blocks) for axis in plan.axes) <= 10**6
    assert held(plan) <= 2**27
