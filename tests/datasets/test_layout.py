from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import Array, four_loops
from strategies import arguments, problems
from xpatches.datasets.chunks import BLOCKS, CHUNK, SHARD, lay_out
from xpatches.datasets.layout import Arrangement
from xpatches.datasets.patches import PatchArray
from xpatches.errors import PatchError
from xpatches.geometry.boxes import divide, split_run
from xpatches.geometry.grid import AxisGrid
from xpatches.jobs.blocks import Samples, StoredArray


def array_of(
    image: Array, grids: dict[int, AxisGrid], flat: bool, max_bytes: int, **given: Any
) -> PatchArray:
    every = tuple(
        grids.get(axis) or AxisGrid(f"d{axis}", length, size=1, stride=1)
        for axis, length in enumerate(image.shape)
    )
    patches = Arrangement(flat, every, tuple(grids), image.itemsize, max_bytes // 2)
    lengths = lay_out("'image'", patches, **given)
    shape = (patches.dims, patches.shape, image.dtype)
    stored = StoredArray("image", *shape, lengths.chunks, lengths.shards, {})
    source, fill = (image.__getitem__, image.itemsize), np.zeros((), image.dtype)
    return PatchArray(stored, lengths.blocks, *source, patches, lengths.steps, fill)


def expected(image: Array, grids: dict[int, AxisGrid], flat: bool) -> Array:
    """All patches by four loops, in the layout's order of dims."""
    patches = four_loops(image, arguments(grids), np.zeros((), image.dtype)[()])
    if not flat:
        return patches
    spatial, after = list(grids), list(grids)[-1] + 1
    sizes = list(range(after, after + len(grids)))
    others = [axis for axis in range(patches.ndim) if axis not in (*spatial, *sizes)]
    moved = patches.transpose(*spatial, *sizes, *others)
    return moved.reshape(-1, *moved.shape[len(spatial) :])


@given(problems(), st.booleans(), st.integers(0, 3), st.randoms())
def test_blocks_hold_every_patch_once_in_whole_objects(
    problem: tuple[Array, dict[int, AxisGrid]], flat: bool, scarce: int, random: Any
) -> None:
    image, grids = problem
    if not image.size:
        return
    array = array_of(image, grids, flat, 2**20)
    most = [2**20, 40, 400, 4000][scarce]
    dims, shape = array.stored.dims, array.stored.shape
    lengths = {dim: random.randint(1, 4) for dim in dims if random.random() < 0.5}
    array = array_of(image, grids, flat, 2**20, chunks=lengths, shards=False)
    steps = tuple(
        -(-n // length) * length if str(dim).endswith("_patch") else length * random.randint(1, 2)
        for dim, n, length in zip(dims, shape, array.stored.chunks, strict=True)
    )
    blocks = tuple(length * random.randint(1, 3) for length in steps)
    regions: list[tuple[slice, ...]] = []

    def read(region: tuple[slice, ...]) -> Array:
        regions.append(region)
        return image[region]

    patches = replace(array.patches, max_bytes=most)
    array = replace(array, lengths=blocks, read=read, patches=patches, steps=steps)
    made = np.full(shape, 1, image.dtype)
    times = np.zeros(shape, int)
    for number in range(len(array)):
        samples = Samples(array.read)

        def put(step: tuple[slice, ...], patches: Array) -> None:
            made[step] = patches
            times[step] += 1
            for along, length, n in zip(step, array.stored.chunks, shape, strict=True):
                assert along.start % length == 0
                assert along.stop % length == 0 or along.stop == n

        array.write(number, samples, put)
        assert regions == array.reads(number)
        assert (times[array.place(number)] == 1).all()
        again = Samples(array.read)
        for region in array.reads(number):
            again.of(region)
        assert samples.checksum == again.checksum
        if most == 2**20:
            assert len(array.reads(number)) == 1
        regions.clear()
    assert (times == 1).all()
    assert made.tobytes() == np.ascontiguousarray(expected(image, grids, flat)).tobytes()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_a_run_is_split_into_boxes_in_order(counts: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, prod(counts)))
    stop = data.draw(st.integers(start, prod(counts)))
    found = [
        int(np.ravel_multi_index(index, counts))
        for box in split_run(counts, start, stop)
        for index in product(*box)
    ]
    assert found == list(range(start, stop))
    assert len([*split_run(counts, start, stop)]) <= 2 * len(counts) - 1


GRIDS = {
    "large": (AxisGrid("y", 16384, 256, 128), AxisGrid("x", 16384, 256, 128)),
    "small": (AxisGrid("y", 16384, 3, 1), AxisGrid("x", 16384, 3, 1)),
    "huge": (AxisGrid("y", 10**6, 256, 128), AxisGrid("x", 10**6, 256, 128)),
    "one": (AxisGrid("y", 64, 32, 32), AxisGrid("x", 64, 32, 32)),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("flat", [False, True])
def test_chunks_and_shards_have_sizes_that_stores_like(name: str, flat: bool) -> None:
    image = np.empty((), "uint16")
    grids = dict(enumerate(GRIDS[name]))
    shape = tuple(grid.length for grid in GRIDS[name])
    array = array_of(np.broadcast_to(image, shape), grids, flat, 2**27)
    patch = 2 * prod(grid.size for grid in GRIDS[name])
    total = 2 * prod(array.stored.shape)
    chunk = 2 * prod(array.stored.chunks)
    stored = 2 * prod(array.stored.shards or array.stored.chunks)
    assert min(total, max(patch, CHUNK // 4)) <= chunk <= max(patch, CHUNK)
    assert min(total, SHARD // 4) <= stored <= SHARD
    assert 2 * prod(array.steps) <= SHARD
    assert 2 * prod(array.lengths) <= 2**29
    assert len(array) >= min(BLOCKS, total // stored)
    for number in (0, len(array) // 2, len(array) - 1):
        for region in array.reads(number):
            assert 2 * prod(along.stop - along.start for along in region) <= 2**26


def test_what_several_objects_need_is_read_once() -> None:
    image = np.broadcast_to(np.empty((), "uint16"), (16384, 16384))
    for flat in (False, True):
        array = array_of(image, dict(enumerate(GRIDS["large"])), flat, 2**27)
        number = len(array) // 2
        assert len([*divide(array.place(number), array.steps)]) >= 4
        assert len(array.reads(number)) == 1


def test_other_dims_lie_in_the_same_chunk_as_their_patch() -> None:
    grids = {1: AxisGrid("y", 512, 64, 32), 2: AxisGrid("x", 512, 64, 32)}
    image = np.broadcast_to(np.empty((), "uint16"), (5, 512, 512, 13))
    grid = array_of(image, grids, False, 2**27)
    assert (grid.stored.chunks[0], *grid.stored.chunks[3:]) == (5, 64, 64, 13)
    assert array_of(image, grids, True, 2**27).stored.chunks[1:] == (64, 64, 5, 13)


@pytest.mark.parametrize(
    ("bands", "size", "dtype", "expected"),
    [
        (3, 256, "u1", (3, 2, 2)),  # and several patches
        (3, 256, "u2", (3, 1, 2)),
        (13, 256, "u2", (13, 1, 1)),  # 1.6 MiB
        (3, 512, "f4", (3, 1, 1)),  # 3 MiB
        (1000, 256, "u2", (8, 1, 1)),  # as much as makes 1 MiB
        (3, 1024, "f4", (1, 1, 1)),
    ],
)
def test_dims_before_those_that_are_cut_are_whole_in_a_chunk_where_it_can_hold_them(
    bands: int, size: int, dtype: str, expected: tuple[int, ...]
) -> None:
    grids = {1: AxisGrid("y", 8192, size, size // 2), 2: AxisGrid("x", 8192, size, size // 2)}
    image = np.broadcast_to(np.empty((), dtype), (bands, 8192, 8192))
    array = array_of(image, grids, False, 2**27)
    assert array.stored.chunks == (*expected, size, size)
    given = array_of(image, grids, False, 2**27, chunks={"d0": 1})
    assert given.stored.chunks[0] == 1


def test_a_region_larger_than_the_budget_is_read_in_pieces() -> None:
    grids = {0: AxisGrid("x", 10**9, 2, 10**6)}
    image = np.broadcast_to(np.empty((), "uint8"), (10**9,))
    array = array_of(image, grids, False, 2**24)
    block = array.place(0)
    assert array.patches.region(block) is None
    (step,) = divide(block, array.steps)
    pieces = [*array.patches.pieces(step)]
    assert len(pieces) > 100
    assert all(piece.region[0].stop - piece.region[0].start <= 2**23 for piece in pieces)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chunks": {"y": 4}, "shards": {"y": 6}}, r"shards on 'y' must be a multiple of .* got 6"),
        ({"shards": {"y": -1, "x": -1}}, r"must be <= 67108864 bytes, half of .* got 21\d+: "),
    ],
)
def test_lengths_that_do_not_fit_are_refused(given: Any, message: str) -> None:
    image = np.broadcast_to(np.empty((), "uint16"), (16384, 16384))
    with pytest.raises(PatchError, match=message):
        array_of(image, dict(enumerate(GRIDS["large"])), False, 2**27, **given)
