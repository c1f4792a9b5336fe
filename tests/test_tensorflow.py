import itertools
import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from reference import Array, four_loops, same_bits
from xpatches import PatchError, extract_patches
from xpatches.geometry.grid import AxisGrid

# Random chunkings of each golden: some 500 in all; more on demand.
CHUNKINGS = int(os.environ.get("XPATCHES_CHUNKINGS", "4"))

# tf.extract_volume_patches lets its pad go below zero, so that it reads from inside the image.
UNCLAMPED = (4, 12)


@cache
def goldens() -> tuple[list[dict[str, Any]], dict[str, Array]]:
    with np.load(Path(__file__).parent / "data" / "tf_goldens.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    return json.loads(arrays.pop("meta").tobytes())["cases"], arrays


def cases(*ops: str) -> list[Any]:
    return [
        pytest.param(case, id=f"{case['op']}-{case['case']}")
        for case in goldens()[0]
        if case["op"] in ops and case["case"] not in UNCLAMPED
    ]


def ask(case: dict[str, Any], images: Any) -> Any:
    sizes, strides, rates = ([1, *case[name], 1] for name in ("size", "stride", "rate"))
    return extract_patches(images, sizes, strides, rates, case["padding"])


def chunks(rng: random.Random, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    def cut(n: int) -> tuple[int, ...]:
        cuts = rng.sample(range(1, n), min(n - 1, rng.randint(0, 3))) if n > 1 else []
        edges = [0, *sorted(cuts), n]
        return tuple(b - a for a, b in itertools.pairwise(edges))

    return tuple(map(cut, shape))


@pytest.mark.parametrize("case", cases("extract", "volume"))
def test_the_answer_is_tensorflows_bit_for_bit(case: dict[str, Any]) -> None:
    arrays, number = goldens()[1], case["case"]
    images = arrays[f"x{number}"]
    if "error" in case:
        for source in (images, da.from_array(images, chunks=2)):
            with pytest.raises(PatchError, match="Computed output size would be negative"):
                ask(case, source)
    else:
        assert same_bits(ask(case, images), arrays[f"y{number}"])


@pytest.mark.parametrize(
    "case", [c for c in cases("extract", "volume") if "error" not in c.values[0]]
)
def test_the_answer_is_tensorflows_under_any_chunking(case: dict[str, Any]) -> None:
    arrays, number = goldens()[1], case["case"]
    images, expected = arrays[f"x{number}"], arrays[f"y{number}"]
    rng = random.Random(number)
    different = {chunks(rng, images.shape) for _ in range(CHUNKINGS)}
    results = [ask(case, da.from_array(images, chunks=c)) for c in different]
    for result, patches in zip(results, dask.compute(*results), strict=True):
        assert same_bits(patches, expected)
        assert result.shape == expected.shape
        assert all(map(all, result.chunks)) or not expected.size


@pytest.mark.parametrize("number", UNCLAMPED)
def test_the_volume_answers_that_differ_are_those_with_a_pad_below_zero(number: int) -> None:
    case, arrays = goldens()[0][number], goldens()[1]
    images = arrays[f"x{number}"]
    assert (case["op"], case["padding"]) == ("volume", "SAME")
    assert any(
        (-(-n // s) - 1) * s + k < n
        for n, k, s in zip(images.shape[1:-1], case["size"], case["stride"], strict=True)
    )
    spatial = zip(case["size"], case["stride"], strict=True)
    axes = {axis: (k, s, 1, "same") for axis, (k, s) in enumerate(spatial, start=1)}
    ours, theirs = four_loops(images, axes, 0), arrays[f"y{number}"]
    assert same_bits(ask(case, images), ours.reshape(theirs.shape))
    assert not same_bits(ask(case, images), theirs)


@pytest.mark.parametrize("case", cases("extract", "volume"))
def test_building_computes_nothing(case: dict[str, Any], no_compute: None) -> None:
    images = da.from_array(goldens()[1][f"x{case['case']}"], chunks=3)
    if "error" not in case:
        assert ask(case, images).dtype == images.dtype


SEED = np.arange(1, 101).reshape(1, 10, 10, 1)


@pytest.mark.parametrize("source", [SEED, da.from_array(SEED, chunks=(1, 4, 3, 1))])
@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (1, [[1, 2, 3, 11, 12, 13, 21, 22, 23], [6, 7, 8, 16, 17, 18, 26, 27, 28],
             [51, 52, 53, 61, 62, 63, 71, 72, 73], [56, 57, 58, 66, 67, 68, 76, 77, 78]]),
        (2, [[1, 3, 5, 21, 23, 25, 41, 43, 45], [6, 8, 10, 26, 28, 30, 46, 48, 50],
             [51, 53, 55, 71, 73, 75, 91, 93, 95], [56, 58, 60, 76, 78, 80, 96, 98, 100]]),
    ],
)  # fmt: skip
def test_the_seed_example(source: Any, rate: int, expected: list[list[int]]) -> None:
    patches = extract_patches(source, [1, 3, 3, 1], [1, 5, 5, 1], [1, rate, rate, 1], "VALID")
    assert np.asarray(patches).reshape(4, 9).tolist() == expected


@pytest.mark.parametrize("stride", range(1, 8))
@pytest.mark.parametrize("n", range(8))
def test_too_large_patches_raise_where_the_truncated_quotient_is_negative(
    n: int, stride: int
) -> None:
    images = np.zeros((1, n, 1))
    eff = 9
    if int((n - eff + stride) / stride) < 0:
        with pytest.raises(PatchError, match="Computed output size would be negative"):
            extract_patches(images, [1, 9, 1], [1, stride, 1], [1, 1, 1], "VALID")
    else:
        assert extract_patches(images, [1, 9, 1], [1, stride, 1], [1, 1, 1], "VALID").shape == (
            1,
            0,
            9,
        )


def test_lists_are_taken_and_strings_and_times_have_patches_too() -> None:
    assert extract_patches([[[1], [2], [3]]], [1, 2, 1], [1, 1, 1], [1, 1, 1], "SAME").tolist() == [
        [[1, 2], [2, 3], [3, 0]]
    ]
    times = np.array(["2000-01-01", "2000-01-02"], "M8[D]").reshape(1, 2, 1)
    patches = extract_patches(times, [1, 2, 1], [1, 1, 1], [1, 1, 1], "SAME")
    assert np.isnat(patches[0, 1, 1])


@pytest.mark.parametrize("images", [xr.DataArray(SEED), xr.Dataset(), np.ma.masked_array(SEED)])
def test_labels_and_masks_are_not_dropped_in_silence(images: Any) -> None:
    with pytest.raises(PatchError, match="images must be a NumPy or dask array, got"):
        extract_patches(images, [1, 3, 3, 1], [1, 5, 5, 1], [1, 1, 1, 1], "VALID")


def test_stored_arrays_and_ragged_lists_are_refused_and_memory_maps_taken(tmp_path: Path) -> None:
    asked: Any = ([1, 3, 3, 1], [1, 5, 5, 1], [1, 1, 1, 1], "VALID")
    stored = zarr.create_array(tmp_path / "a.zarr", data=SEED)
    with pytest.raises(PatchError, match="images must be a NumPy or dask array, got Array; for"):
        extract_patches(stored, *asked)
    with pytest.raises(PatchError, match=r"images must be an array, got \[\[1, 2\], \[3\]\]"):
        extract_patches([[1, 2], [3]], *asked)
    np.save(tmp_path / "a.npy", SEED)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert same_bits(extract_patches(mapped, *asked), extract_patches(SEED, *asked))


def test_tensorflow_itself_agrees_where_it_is_installed() -> None:
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    for _ in range(300):
        images = rng.integers(0, 99, (2, *rng.integers(1, 20, 2), 3)).astype("i4")
        sizes, strides, rates = ([1, *rng.integers(1, 5, 2).tolist(), 1] for _ in range(3))
        padding = str(rng.choice(["VALID", "SAME"]))
        try:
            expected = tf.image.extract_patches(images, sizes, strides, rates, padding).numpy()
        except tf.errors.InvalidArgumentError:
            with pytest.raises(PatchError):
                extract_patches(images, sizes, strides, rates, padding)
        else:
            assert same_bits(extract_patches(images, sizes, strides, rates, padding), expected)


def test_the_grid_of_an_axis_is_what_tensorflow_calls_out_rows() -> None:
    axis = AxisGrid("y", 10, 3, 5, padding="same")
    patches = extract_patches(SEED, [1, 3, 3, 1], [1, 5, 5, 1], [1, 1, 1, 1], "SAME")
    assert patches.shape[1] == axis.count
