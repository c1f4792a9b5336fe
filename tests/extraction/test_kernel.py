import datetime
import tracemalloc
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import Array, four_loops, same_bits
from strategies import DTYPES, arguments, image_of, problems
from xpatches import PatchError
from xpatches.dtypes import as_fill_value, check_dtype
from xpatches.extraction import kernel
from xpatches.extraction import small_patches as tiles
from xpatches.extraction.kernel import extract_block
from xpatches.geometry.boxes import Span
from xpatches.geometry.grid import AxisGrid


def whole(image: Array, grids: dict[int, AxisGrid], fill: Array, threads: int = 1) -> Array:
    spans = [Span(axis, grid, -grid.before, grid.count) for axis, grid in grids.items()]
    return extract_block(image, spans, fill, threads)


@given(problems())
def test_patches_are_those_of_the_four_loops_bit_for_bit(
    problem: tuple[Array, dict[int, AxisGrid]],
) -> None:
    image, grids = problem
    fill = as_fill_value(None, image.dtype)
    patches = whole(image, grids, fill)
    assert same_bits(patches, four_loops(image, arguments(grids), fill))
    assert patches.flags.c_contiguous
    assert patches.base is None
    assert not np.shares_memory(patches, image)


@given(problems(), st.integers(1, 8), st.integers(1, 60), st.integers(1, 400))
def test_patches_do_not_depend_on_the_tiles_they_are_copied_by(
    problem: tuple[Array, dict[int, AxisGrid]], row: int, count: int, scratch: int
) -> None:
    image, grids = problem
    fill = as_fill_value(None, image.dtype)
    with pytest.MonkeyPatch.context() as patch:
        for limit, value in (("_ROW", row), ("_PATCHES", count), ("_SCRATCH", (1, scratch))):
            patch.setattr(tiles, limit, value)
        patch.setattr(kernel, "_TILE", scratch)
        patches = whole(image, grids, fill)
    assert same_bits(patches, four_loops(image, arguments(grids), fill))


@given(problems(), st.integers(2, 5))
def test_patches_do_not_depend_on_the_threads_they_are_copied_by(
    problem: tuple[Array, dict[int, AxisGrid]], threads: int
) -> None:
    image, grids = problem
    fill = as_fill_value(None, image.dtype)
    with mock.patch.object(kernel, "_LARGE", 1):
        patches = whole(image, grids, fill, threads)
    assert same_bits(patches, whole(image, grids, fill))
    assert patches.flags.c_contiguous


@pytest.mark.parametrize("depth", range(1, 18))
@pytest.mark.parametrize(("size", "stride", "rate"), [(3, 1, 1), (2, 3, 2), (5, 2, 3)])
def test_patches_of_any_bytes_per_sample_are_copied(
    depth: int, size: int, stride: int, rate: int
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, depth), "u1")
    grids = {a: AxisGrid(str(a), image.shape[a], size, stride, rate, "same") for a in (0, 1)}
    assert same_bits(whole(image, grids, np.array(7, "u1")), four_loops(image, arguments(grids), 7))


@pytest.mark.parametrize(("size", "dtype"), [(3, "u1"), (5, "u2"), (9, "f8")])
@pytest.mark.parametrize("threads", [1, 4])
def test_no_more_is_allocated_than_the_patches_and_one_padded_block(
    size: int, dtype: str, threads: int
) -> None:
    image = np.zeros((1500, 1500), dtype)
    grids = {axis: AxisGrid(str(axis), 1500, size, 1, padding="same") for axis in (0, 1)}
    tracemalloc.start()
    patches = whole(image, grids, np.array(0, dtype), threads)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert patches.nbytes < peak
    padded = (1500 + threads * (size - 1)) * (1500 + size - 1) * image.itemsize
    assert peak <= patches.nbytes + padded + 50_000 * threads


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_every_dtype_come_through(dtype: str) -> None:
    image = image_of((9, 8), dtype, seed=1)
    grids = {0: AxisGrid("y", 9, 3, 2, 2), 1: AxisGrid("x", 8, 2, 3)}
    patches = whole(image, grids, as_fill_value(None, image.dtype))
    assert patches.dtype == image.dtype
    assert same_bits(patches, four_loops(image, arguments(grids), 0))


def test_nan_inf_and_minus_zero_keep_their_bits() -> None:
    bits = np.array([0x7FF8000000000001, 0xFFF0000000000000, 0x8000000000000000], "u8")
    patches = whole(bits.view("f8"), {0: AxisGrid("x", 3, 2, 1)}, np.array(0.0))
    assert patches.view("u8").tolist() == [bits[:2].tolist(), bits[1:].tolist()]


@given(st.sampled_from(["read-only", "fortran", "reversed", "strided", "swapped"]))
def test_any_memory_layout_is_read(layout: str) -> None:
    image = np.arange(12 * 14, dtype="i2").reshape(12, 14)
    view = {
        "read-only": image,
        "fortran": np.asfortranarray(image),
        "reversed": image[::-1, ::-1],
        "strided": image[::2, ::3],
        "swapped": image.T,
    }[layout]
    view.flags.writeable = False
    axes = {i: AxisGrid(str(i), n, 2, 2, 1, "same") for i, n in enumerate(view.shape)}
    expected = four_loops(view.copy(), arguments(axes), 0)
    assert same_bits(whole(view, axes, np.array(0, "i2")), expected)


def test_zero_length_batches_give_zero_length_patches() -> None:
    image = np.empty((0, 10, 2), "f4")
    assert whole(image, {1: AxisGrid("x", 10, 3, 5)}, np.array(0, "f4")).shape == (0, 2, 3, 2)


def test_a_patch_of_one_sample_is_a_copy_not_a_view() -> None:
    image = np.arange(5)
    patches = whole(image, {0: AxisGrid("x", 5, 1, 1)}, np.array(0))
    assert not np.shares_memory(patches, image)


HELD: list[tuple[Any, str]] = [
    *[(0, dtype) for dtype in ("u1", "i8", "f2", "c8", "?")],
    *[(255, "u1"), (5.0, "u1"), (2**64 - 1, "u8"), (-(2**63), "i8"), (True, "?"), (1, "?")],
    *[
        (np.nan, "f4"),
        (np.inf, "f2"),
        (0.1, "f4"),
        (2**70, "f8"),
        (1j, "c8"),
        (np.float32(2), "u1"),
    ],
    *[("abc", "U3"), (b"ab", "S2"), (np.datetime64("NaT", "s"), "M8[D]"), (pd.NaT, "M8[ns]")],
    *[
        (pd.Timestamp(1), "M8[ns]"),
        (datetime.datetime(2000, 1, 1), "M8[s]"),
        ("2000-01-01", "M8[D]"),
    ],
    *[(np.timedelta64(3, "s"), "m8[ms]"), (datetime.timedelta(1), "m8[ns]")],
]
REFUSED: list[tuple[Any, str]] = [
    *[(300, "u1"), (-1, "u1"), (np.nan, "u1"), (1.5, "i4"), (2**63, "i8"), (2.0**63, "i8")],
    *[(2, "?"), (1e300, "f4"), (70000, "f2"), (10**400, "f8"), (1j, "f8"), (1 + 0j, "i4")],
    *[("5", "u1"), ("nan", "f4"), ("abcd", "U3"), (1, "U3"), ("ab", "S2"), (0, "M8[ns]")],
    *[(np.timedelta64(1, "s"), "M8[s]"), (np.timedelta64(3, "ms"), "m8[s]"), (1.0, "m8[s]")],
    *[(np.datetime64("9999-01-01"), "M8[ns]"), ([1, 2], "f4"), ({}, "u1"), (object(), "f8")],
]


@pytest.mark.parametrize(("value", "dtype"), HELD)
def test_a_fill_value_that_the_dtype_holds_is_taken(value: Any, dtype: str) -> None:
    held = as_fill_value(value, np.dtype(dtype))
    assert held.shape == ()
    assert held.dtype == dtype


@pytest.mark.parametrize(("value", "dtype"), REFUSED)
def test_a_fill_value_that_the_dtype_cannot_hold_is_refused(value: Any, dtype: str) -> None:
    with pytest.raises(PatchError, match=r"fill_value must be a value that .* can hold, got"):
        as_fill_value(value, np.dtype(dtype))


def test_the_default_fill_value_is_zero_or_missing() -> None:
    defaults = {"u1": 0, "f4": 0.0, "?": False, "U2": "", "S2": b""}
    for dtype, value in defaults.items():
        assert as_fill_value(None, np.dtype(dtype)) == value
    assert np.isnat(as_fill_value(None, np.dtype("M8[s]")))
    assert np.isnat(as_fill_value(None, np.dtype("m8[s]")))


@pytest.mark.parametrize("dtype", ["O", "i4,O", np.dtypes.StringDType()])
def test_dtypes_that_are_not_fixed_bits_are_refused(dtype: Any) -> None:
    with pytest.raises(PatchError, match="dtype of images must be a fixed-width NumPy dtype"):
        check_dtype("images", np.dtype(dtype))
