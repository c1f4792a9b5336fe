import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import pads_of, starts_on_line
from strategies import axis_grids, chunkings
from xpatches import PatchError, PatchIndexError
from xpatches.geometry.boxes import clip
from xpatches.geometry.grid import AxisGrid, PatchGrid


def reads(axis: AxisGrid) -> list[list[int]]:
    """Source indices of every patch, by counting on the padded line."""
    before, after = pads_of(axis.length, axis.size, axis.stride, axis.rate, axis.padding)
    starts = starts_on_line(before + axis.length + after, axis.size, axis.stride, axis.rate)
    if axis.padding == "same":
        starts = [start for start in starts if start < axis.length]
    return [[start + j * axis.rate - before for j in range(axis.size)] for start in starts]


@given(axis_grids())
def test_every_patch_reads_the_samples_that_counting_on_the_padded_line_finds(
    axis: AxisGrid,
) -> None:
    expected = reads(axis)
    assert axis.count == len(expected)
    assert [list(axis.samples(i)) for i in range(axis.count)] == expected
    assert list(axis.origins) == [samples[0] for samples in expected]
    assert [o + axis.origins[0] for o in axis.offsets] == expected[0]
    assert axis.effective_size == expected[0][-1] - expected[0][0] + 1


@given(axis_grids())
def test_the_center_is_the_middle_sample_and_inside_the_image(axis: AxisGrid) -> None:
    for center, samples in zip(axis.centers, reads(axis), strict=True):
        footprint = range(samples[0], samples[-1] + 1)
        assert center == footprint[(len(footprint) - 1) // 2]
        if axis.padding in ("valid", "same"):
            assert 0 <= center < axis.length


@given(axis_grids())
def test_same_pads_an_odd_sample_after(axis: AxisGrid) -> None:
    same = AxisGrid("x", axis.length, axis.size, axis.stride, axis.rate, "same")
    before, after = same.pads
    assert after - before in (0, 1)


@given(axis_grids(), st.data())
def test_every_patch_is_owned_once_by_the_block_of_its_anchor(
    axis: AxisGrid, data: st.DataObject
) -> None:
    chunks = data.draw(chunkings(axis.length))
    owners, start = [], 0
    for length in chunks:
        owned = axis.owned(start, start + length)
        assert all(start <= axis.anchor(i) < start + length for i in owned)
        owners += list(owned)
        start += length
    assert owners == list(range(axis.count))


@given(axis_grids(), st.data())
def test_the_constant_halo_suffices_for_any_block(axis: AxisGrid, data: st.DataObject) -> None:
    before, after = axis.halo
    start = 0
    for length in data.draw(chunkings(axis.length)):
        for i in axis.owned(start, start + length):
            inside = [x for x in reads(axis)[i] if 0 <= x < axis.length]
            assert all(start - before <= x < start + length + after for x in inside)
        start += length


@given(axis_grids())
def test_coverage_counts_the_patches_that_hold_a_sample(axis: AxisGrid) -> None:
    every = [sample for samples in reads(axis) for sample in samples]
    for sample in range(axis.length):
        assert axis.coverage(sample) == every.count(sample)


@pytest.mark.parametrize(
    ("rate", "origins", "offsets"), [(1, [0, 5], [0, 1, 2]), (2, [0, 5], [0, 2, 4])]
)
def test_the_seed_example_of_tensorflow(rate: int, origins: list[int], offsets: list[int]) -> None:
    axis = AxisGrid("x", length=10, size=3, stride=5, rate=rate)
    assert (list(axis.origins), list(axis.offsets)) == (origins, offsets)


@given(st.integers(-20, 20), st.integers(0, 9), st.integers(1, 5), st.integers(0, 20))
def test_clip_splits_positions_into_before_inside_and_after(
    start: int, count: int, step: int, length: int
) -> None:
    positions = range(start, start + count * step, step)
    before, inside, after = clip(positions, length)
    assert before == sum(x < 0 for x in positions)
    assert after == sum(x >= length for x in positions)
    assert list(range(length))[inside] == [x for x in positions if 0 <= x < length]


def test_numbers_of_other_libraries_become_plain_integers() -> None:
    axis = AxisGrid("x", np.int64(10), np.uint8(3), np.int16(5), padding=[np.int8(1), 2])  # type: ignore[arg-type]
    assert axis == AxisGrid("x", 10, 3, 5, padding=(1, 2))
    assert type(axis.size) is int
    assert hash(axis) == hash(AxisGrid("x", 10, 3, 5, padding=(1, 2)))


@pytest.mark.parametrize(
    "value", [1.0, True, "3", None, np.array([3]), np.array(3.0), np.array([2, 2])]
)
def test_what_is_no_integer_is_refused(value: object) -> None:
    with pytest.raises(PatchError, match="size on 'x' must be an integer, got"):
        AxisGrid("x", 10, value, 1)  # type: ignore[arg-type]


def test_a_patch_has_one_number_and_one_index() -> None:
    grid = PatchGrid((AxisGrid("y", 10, 3, 5), AxisGrid("x", 9, 3, 3)))
    assert [grid.unravel(i) for i in range(grid.total)] == [
        (i, j) for i in (0, 1) for j in (0, 1, 2)
    ]
    assert grid.unravel(-1) == (1, 2)
    assert grid.index({"x": -1, "y": 0}) == (0, 2)
    with pytest.raises(PatchIndexError, match=r"number of the patch must lie in \[-6, 6\), got 6"):
        grid.unravel(6)
    with pytest.raises(PatchIndexError, match=r"index on 'x' must lie in \[-3, 3\), got -4"):
        grid.index({"x": -4, "y": 0})
    with pytest.raises(PatchError, match=r"must be an integer, got 1.0 \(float\)"):
        grid.unravel(1.0)


def test_valid_counts_the_patches_that_fit_and_none_where_none_does() -> None:
    for n, k, s, r in itertools.product(range(12), range(1, 5), range(1, 5), range(1, 4)):
        axis = AxisGrid("x", n, k, s, r)
        assert axis.count == len(starts_on_line(n, k, s, r)), axis


def test_a_grid_names_its_dims() -> None:
    grid = PatchGrid((AxisGrid("y", 10, 3, 5), AxisGrid("x", 9, 3, 3)))
    assert list(grid) == [grid["y"], grid["x"]]
    with pytest.raises(PatchError, match=r"the grid has the dims \('y', 'x'\), got 'z'"):
        grid["z"]
