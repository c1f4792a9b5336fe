from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from strategies import axis_grids, chunkings
from xpatches.geometry import AxisGrid
from xpatches.plan import AxisPlan, plan_array, plan_axis


@st.composite
def axis_plans(draw: st.DrawFn) -> tuple[AxisPlan, tuple[int, ...]]:
    axis = draw(axis_grids(60))
    chunks = draw(chunkings(axis.length))
    return plan_axis(axis, chunks), chunks


def haloed_blocks(plan: AxisPlan) -> list[tuple[int, int]]:
    """Start and stop in the source of every block with its halo."""
    stops = list(accumulate(plan.blocks))
    before, after = plan.halo
    return [
        (max(0, stop - length - before), min(stops[-1], stop + after))
        for length, stop in zip(plan.blocks, stops, strict=True)
    ]


@given(axis_plans())
def test_every_chunk_finds_all_its_samples_in_its_haloed_block(
    planned: tuple[AxisPlan, tuple[int, ...]],
) -> None:
    plan, _ = planned
    axis, first = plan.grid, 0
    blocks = haloed_blocks(plan)
    for parent, (start, count), patches in zip(plan.parents, plan.spans, plan.chunks, strict=True):
        low, high = blocks[parent]
        assert low + start == axis.samples(first)[0]
        for i in range(first, first + count):
            assert all(low <= x < high for x in axis.samples(i) if 0 <= x < axis.length)
        assert count == patches
        first += count
    assert first == axis.count


@given(axis_plans())
def test_no_chunk_is_empty_and_blocks_tile_the_image(
    planned: tuple[AxisPlan, tuple[int, ...]],
) -> None:
    plan, chunks = planned
    assert all(count > 0 for count in plan.chunks)
    assert sum(plan.blocks) == sum(chunks)
    assert all(length > 0 for length in plan.blocks)


@given(axis_plans())
def test_no_block_is_shorter_than_the_halo(planned: tuple[AxisPlan, tuple[int, ...]]) -> None:
    plan, _ = planned
    assert len(plan.blocks) == 1 or min(plan.blocks) >= max(plan.halo)
    assert all(a <= b for a, b in zip(plan.halo, plan.grid.halo, strict=True))


@given(axis_grids(60), st.integers(1, 60))
def test_the_chunks_are_equal_as_zarr_requires_where_the_sources_are(
    axis: AxisGrid, chunk: int
) -> None:
    whole, rest = divmod(axis.length, chunk)
    plan = plan_axis(axis, (chunk,) * whole + ((rest,) if rest else ()))
    assert set(plan.chunks[:-1]) <= {plan.chunks[0]}
    assert plan.chunks[-1] <= plan.chunks[0]


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 4), st.data())
def test_with_stride_1_and_same_the_chunks_line_up_with_the_sources(
    length: int, size: int, rate: int, data: st.DataObject
) -> None:
    chunks = data.draw(chunkings(length))
    plan = plan_axis(AxisGrid("x", length, size, 1, rate, "same"), chunks)
    assert plan.chunks == chunks


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_patches_that_do_not_overlap_need_no_halo_on_aligned_chunks(
    size: int, count: int, per_chunk: int
) -> None:
    axis = AxisGrid("x", size * count, size, size)
    whole, rest = divmod(count, per_chunk)
    chunks = (size * per_chunk,) * whole + ((size * rest,) if rest else ())
    plan = plan_axis(axis, chunks)
    assert plan.halo == (0, 0)
    assert plan.blocks == chunks


def test_zero_length_chunks_are_passed_over() -> None:
    axis = AxisGrid("x", 10, 3, 1, padding="same")
    assert plan_axis(axis, (0, 5, 0, 5, 0)) == plan_axis(axis, (5, 5))


def test_the_plan_of_an_array_is_in_blocks_not_in_patches() -> None:
    grids = {
        0: AxisGrid("y", 10**6, 5, 1, padding="same"),
        1: AxisGrid("x", 10**6, 5, 1, padding="same"),
    }
    plan = plan_array(grids, ((1000,) * 1000, (1000,) * 1000), itemsize=2)
    assert plan.chunk_count == 10**6
    assert plan.bytes_per_task == (1004**2 + 1008**2 + 1000**2 * 25) * 2
