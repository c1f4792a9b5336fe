from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from xpatches.geometry.coverage import AxisCover


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.integers(1, 3)),
    st.integers(-6, 4),
    st.integers(0, 5),
    st.sets(st.integers(0, 4)),
)
def test_samples_in_no_patch_are_counted(
    numbers: tuple[int, int, int, int], origin: int, count: int, held: set[int]
) -> None:
    length, size, stride, rate = numbers
    cover = AxisCover("x", length, size, stride, rate, origin, count)
    for some in (range(size), held & {*range(size)}):
        covered = {origin + i * stride + j * rate for i in range(count) for j in some}
        assert cover.bare(some) == len({*range(length)} - covered)


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.integers(1, 3)),
    st.integers(-6, 4),
    st.integers(0, 5),
)
def test_patches_overlap_where_a_sample_of_the_image_is_in_two(
    numbers: tuple[int, int, int, int], origin: int, count: int
) -> None:
    length, size, stride, rate = numbers
    cover = AxisCover("x", length, size, stride, rate, origin, count)
    held = Counter(origin + i * stride + j * rate for i in range(count) for j in range(size))
    assert cover.overlaps == any(held[place] > 1 for place in range(length))
