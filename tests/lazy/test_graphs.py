import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.callbacks import Callback
from hypothesis import given
from hypothesis import strategies as st

from reference import Array, four_loops, same_bits
from strategies import arguments, chunkings, problems
from xpatches import JobError, PatchError, extract_patches
from xpatches.dtypes import as_fill_value
from xpatches.extraction.kernel import extract_block, extract_flat
from xpatches.extraction.plan import Plan, plan_blocks
from xpatches.geometry.blocks import Engine, Form
from xpatches.geometry.grid import AxisGrid
from xpatches.lazy import graphs as lazy
from xpatches.lazy.sources import check_chunks


def planned(
    image: Any, grids: dict[int, AxisGrid], max_bytes: int = 2**27, form: Form = "grid"
) -> Plan:
    return plan_blocks("map_overlap", grids, image.chunks, image.dtype.itemsize, max_bytes, form)


def exchange(image: Any, plan: Plan, fill: Array) -> Any:
    kernel = partial(extract_flat if plan.form == "flat" else extract_block, fill_value=fill)
    return lazy.exchange(image, plan.blocks, kernel, image.dtype)


def read(image: Array, plan: Plan, fill: Array) -> Any:
    kernel = partial(extract_block, fill_value=fill)
    return lazy.read(image.__getitem__, "image", plan.blocks, kernel, image.dtype)


def extract(image: Any, grids: dict[int, AxisGrid]) -> Any:
    return exchange(image, planned(image, grids), as_fill_value(None, image.dtype))


def grids_of(image: Any, size: int, stride: int, padding: Any = "same") -> dict[int, AxisGrid]:
    return {
        axis: AxisGrid(axis, n, size, stride, padding=padding) for axis, n in enumerate(image.shape)
    }


@pytest.mark.parametrize("engine", ["map_overlap", "region"])
@given(problems(max_spatial=2), st.data(), st.integers(100, 5000))
def test_patches_are_those_of_the_four_loops_under_any_chunking_and_budget(
    engine: Engine,
    problem: tuple[Array, dict[int, AxisGrid]],
    data: st.DataObject,
    max_bytes: int,
) -> None:
    image, grids = problem
    chunks = tuple(data.draw(chunkings(n)) if n else (0,) for n in image.shape)
    fill = as_fill_value(None, image.dtype)
    try:
        plan = plan_blocks(engine, grids, chunks, image.dtype.itemsize, max_bytes)
    except PatchError:
        plan = plan_blocks(engine, grids, chunks, image.dtype.itemsize, 2**27)
    if engine == "map_overlap":
        result = exchange(da.from_array(image, chunks=chunks), plan, fill)
    else:
        result = read(image, plan, fill)
    expected = four_loops(image, arguments(grids), fill)
    patches = result.compute()
    assert same_bits(patches, expected)
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    for index in np.ndindex(*result.numblocks):
        assert result.blocks[index].compute().shape == result.blocks[index].shape


def test_a_region_as_long_as_its_chunk_but_elsewhere_is_not_taken_for_it() -> None:
    image = np.arange(10)
    grids = {0: AxisGrid("x", 10, 6, 4, padding=(2, 0))}  # reads [2, 8) for the chunk [4, 10)
    source = da.from_array(image, chunks=((4, 6),))
    fill = np.array(0)
    expected = four_loops(image, arguments(grids), fill)
    assert same_bits(exchange(source, planned(source, grids), fill).compute(), expected)


@given(problems(max_spatial=2), st.data())
def test_flattening_joins_the_patch_axes_and_those_behind_them(
    problem: tuple[Array, dict[int, AxisGrid]], data: st.DataObject
) -> None:
    image, grids = problem
    chunks = tuple(data.draw(chunkings(n)) if n else (0,) for n in image.shape)
    source = da.from_array(image, chunks=chunks)
    fill = as_fill_value(None, image.dtype)
    plan = planned(source, grids, form="flat")
    expected = four_loops(image, arguments(grids), fill)
    kept = expected.shape[: plan.patch_axis]
    size = int(np.prod(expected.shape[plan.patch_axis :]))
    assert same_bits(exchange(source, plan, fill).compute(), expected.reshape(*kept, size))


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_the_scheduler_makes_no_difference(scheduler: str) -> None:
    image = np.random.default_rng(0).integers(0, 99, (40, 50))
    result = extract(da.from_array(image, chunks=(7, 9)), grids_of(image, 5, 2))
    expected = four_loops(image, arguments(grids_of(image, 5, 2)), 0)
    assert same_bits(result.compute(scheduler=scheduler), expected)


def test_keys_are_deterministic_and_tell_every_parameter_apart() -> None:
    image = da.from_array(np.zeros((20, 20)), chunks=10, name="image")
    fill = np.array(0.0)

    def name(
        size: int = 3, stride: int = 2, rate: int = 1, padding: Any = "same", f: Array = fill
    ) -> str:
        grids = {0: AxisGrid("y", 20, size, stride, rate, padding)}
        return str(exchange(image, planned(image, grids), f).name)

    assert name() == name()
    others = [
        name(size=4),
        name(stride=1),
        name(rate=2),
        name(padding="valid"),
        name(f=np.array(1.0)),
    ]
    assert len({name(), *others}) == 6


@pytest.mark.parametrize(
    ("size", "stride", "padding", "most"),
    [
        (4, 4, "valid", 1),
        (5, 1, "valid", 7),
        (5, 1, "same", 12),
        (8, 4, "same", 12),
        (5, 3, "valid", 14),  # the edges of the chunks are no multiples of the stride
        (5, 3, "same", 14),
        (41, 4, "valid", 11),  # the halo is longer than two chunks
    ],
)
def test_tasks_per_chunk(size: int, stride: int, padding: str, most: int) -> None:
    image = da.zeros((320, 320), chunks=16)
    (optimized,) = dask.optimize(extract(image, grids_of(image, size, stride, padding)))
    assert len(optimized.__dask_graph__()) <= most * image.npartitions + 1  # what all share


class Results(Callback):
    """Keep every result of a computation."""

    def __init__(self) -> None:
        super().__init__(posttask=self._keep)  # type: ignore[no-untyped-call]
        self.kept: dict[Any, Any] = {}

    def _keep(self, key: Any, result: Any, *_: Any) -> None:
        self.kept[key] = result


def test_chunks_of_patches_are_contiguous_and_own_their_memory() -> None:
    image = da.from_array(np.arange(64 * 64).reshape(64, 64), chunks=16)
    result = extract(image, grids_of(image, 5, 2))
    with Results() as results:
        result.compute()
    patches = [array for key, array in results.kept.items() if key[0] == result.name]
    assert len(patches) == result.npartitions
    assert all(array.flags.c_contiguous and array.base is None for array in patches)


def test_annotations_and_configuration_are_those_of_the_user() -> None:
    image = da.zeros((64, 64), chunks=16)
    with dask.annotate(priority=7):
        result = extract(image, grids_of(image, 5, 2))
    added = [layer for name, layer in result.dask.layers.items() if name not in image.dask.layers]
    assert added
    assert all(layer.annotations == {"priority": 7} for layer in added)

    used = []

    def scheduler(graph: Any, keys: Any, **kwargs: Any) -> Any:
        used.append(keys)
        return dask.get(graph, keys, **kwargs)

    with dask.config.set(scheduler=scheduler):
        result.compute()
    assert len(used) == 1


def test_chunks_of_unknown_length_are_refused() -> None:
    image = da.from_array(np.arange(9), chunks=3)
    with pytest.raises(
        PatchError, match=r"images has chunks of unknown length; call compute_chunk"
    ):
        check_chunks("images", image[image > 3])


def test_chunks_of_other_libraries_are_refused() -> None:
    masked = da.ma.masked_array(da.zeros(9, chunks=3), mask=False)
    with pytest.raises(PatchError, match="images must hold NumPy chunks, got MaskedArray"):
        check_chunks("images", masked)


def labelled(blocks: Any) -> xr.DataArray:
    return xr.DataArray(blocks, dims=("y", "x"), name="image")


def patches_of(image: xr.DataArray, flatten: str | None = None) -> xr.DataArray:
    """Give patches of one sample each, held by the blocks of an image."""
    whole = xr.DataArray(np.zeros(image.shape), dims=image.dims)
    patches: xr.DataArray = whole.patches(y=1, x=1).extract(flatten=flatten)
    held = image.data[..., None] if flatten else image.data[..., None, None]
    return patches.copy(data=held)


def samples_of(image: xr.DataArray) -> xr.DataArray:
    """Give patches along one dim, in an order that is not that of the grid."""
    whole = xr.DataArray(np.zeros(image.shape), dims=image.dims)
    patches: xr.DataArray = whole.patches(x=1).extract().rename(x="sample")
    patches = patches.assign_coords(x_origin=patches.x_origin[::-1].variable)
    return patches.copy(data=image.data[..., None])


def stitched(patches: xr.DataArray) -> Any:
    return patches.patches.stitch(reduce="first")


JOB: dict[str, Any] = {"progress": False, "retries": 0}
WAYS: dict[str, Callable[[xr.DataArray, Path], Any]] = {
    "extract": lambda image, _: image.patches(y=5, x=5, stride=2, padding="same").extract(),
    "whole chunks": lambda image, _: image.patches(y=10, x=5, stride=5).extract(),
    "flatten": lambda image, _: image.patches(y=4, x=4).extract(flatten="patch"),
    "reduce": lambda image, _: image.patches(y=5, x=5, stride=2).reduce("max", skipna=False),
    "one patch": lambda image, _: image.patches(y=4, x=4)[0],
    "one padded patch": lambda image, _: image.patches(y=5, x=5, padding="same")[0],
    "iteration": lambda image, _: next(iter(image.patches(y=4, x=4))),
    "map": lambda image, _: image.patches(y=4, x=4).map(np.copy),
    "job": lambda image, path: image.patches(y=4, x=4).to_zarr(path, **JOB),
    "mapped job": lambda image, path: image.patches(y=4, x=4).map_to_zarr(path, np.copy, **JOB),
    "parity": lambda image, _: extract_patches(
        image.data[None, :, :, None], [1, 3, 3, 1], [1, 1, 1, 1], [1, 1, 1, 1], "VALID"
    ),
    "stitch": lambda image, _: stitched(patches_of(image)),
    "stitch samples": lambda image, _: stitched(samples_of(image)),
    "stitch flattened": lambda image, _: stitched(patches_of(image, flatten="patch")),
}
"""What reads the blocks of an image."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lambda block: block[::2], "must have the shape .*10.*, got .*5.*; say what lengths"),
        (lambda block: block.repeat(2, 1), "must have the shape .*10.*, got .*20.*; say what"),
        (lambda block: block.astype("f4"), "must hold float64, got float32; say what they hold"),
    ],
)
def test_blocks_that_are_not_as_promised_are_refused_wherever_they_are_read(
    way: str, lie: Any, message: str, tmp_path: Path
) -> None:
    blocks = da.zeros((40, 40), chunks=10).map_blocks(lie, dtype=float, meta=np.empty((0, 0)))
    with pytest.raises((PatchError, JobError), match=r"block \(.*\), samples \[.*\], " + message):
        WAYS[way](labelled(blocks), tmp_path / "out").compute()


def test_the_error_of_a_block_says_which_and_how_long() -> None:
    blocks = da.ones((40, 30), chunks=(20, 10)).map_blocks(
        lambda block, block_id: block[:13] if block_id == (1, 2) else block, dtype=float
    )
    image = labelled(blocks)
    with pytest.raises(PatchError) as caught:
        image.patches(y=5, x=5).extract().compute()
    assert str(caught.value) == (
        "block (1, 2), samples [20:40, 20:30], must have the shape (20, 10), got (13, 10); say "
        "what lengths blocks have where they are made, as map_blocks(..., chunks=...) does"
    )
    assert (image.patches(y=5, x=5)[0] == 1).all()  # it lies in other blocks


class Source:
    """What can be sliced, and gives something else than it says."""

    shape, dtype, ndim = (40, 40), np.dtype(float), 2

    def __init__(self, lie: Callable[[Array], Array]) -> None:
        self.lie = lie

    def __getitem__(self, region: Any) -> Array:
        return self.lie(np.arange(1600.0).reshape(40, 40)[region])


@pytest.mark.parametrize("way", ["region", "map_overlap", "job"])
def test_regions_that_are_not_as_promised_are_refused(way: str, tmp_path: Path) -> None:
    image = labelled(da.from_array(Source(lambda samples: samples[1:]), 10))
    p = image.patches(y=4, x=4, stride=2)
    with pytest.raises((PatchError, JobError), match=r"samples \[.*:.*\],? must have the shape"):
        _ = p.to_zarr(tmp_path, **JOB) if way == "job" else p.extract(engine=way).compute()
    right = labelled(da.from_array(Source(np.copy), 10)).patches(y=4, x=4, stride=2)
    assert (right.extract(engine="region").max() == 1599).all()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "parity"])
def test_masked_blocks_have_missing_samples(way: str, tmp_path: Path) -> None:
    def masked(block: Array) -> Any:
        return np.ma.masked_less(block, 40)

    image = labelled(da.arange(1600, chunks=400, dtype=float).reshape(40, 40).rechunk(10))
    hidden = image.data.map_blocks(masked, dtype=float, meta=np.empty((0, 0)))
    made = WAYS[way](labelled(hidden), tmp_path / "hidden")
    expected = WAYS[way](image.where(image >= 40), tmp_path / "shown")
    np.testing.assert_array_equal(made, expected)
    assert np.isnan(expected).any()


def test_masked_samples_of_a_dtype_without_a_missing_value_are_refused() -> None:
    def hidden(dtype: str, first: int) -> Any:
        blocks = da.arange(20, chunks=10).map_blocks(
            lambda block: np.ma.masked_array(block.astype(dtype), block >= first),
            dtype=dtype,
            meta=np.empty(0, dtype),
        )
        return xr.DataArray(blocks, dims="x").patches(x=4).extract()

    with pytest.raises(PatchError, match=r"block \(1,\), .* masked samples, for which int16"):
        hidden("i2", 15).compute()
    assert (hidden("i2", 99) == np.arange(20).reshape(5, 4)).all()  # nothing is masked
    times = hidden("M8[s]", 15)
    assert np.isnat(times.values.ravel()).tolist() == [False] * 15 + [True] * 5


class Memory(Callback):
    """Measure the tasks whose names begin with a prefix: bytes in, out, and in all at the peak."""

    def __init__(self, prefix: str) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            start_state=self._begin, pretask=self._before, posttask=self._after
        )
        self.prefix = prefix
        self.nbytes: dict[Any, int] = {}
        self.held = self.peak = self.before = 0
        self.dependencies: dict[Any, Any] = {}

    def _begin(self, dsk: Any, state: Any) -> None:
        self.dependencies = state["dependencies"]
        self.nbytes |= {key: getattr(data, "nbytes", 0) for key, data in state["cache"].items()}

    def _before(self, *_: Any) -> None:
        tracemalloc.reset_peak()
        self.before = tracemalloc.get_traced_memory()[0]

    def _after(self, key: Any, result: Any, *_: Any) -> None:
        peak = tracemalloc.get_traced_memory()[1]
        self.nbytes[key] = getattr(result, "nbytes", 0)
        if key[0].startswith(self.prefix):
            given = sum(self.nbytes[k] for k in self.dependencies[key])
            self.peak = max(self.peak, given + peak - self.before)
            if not key[0].endswith(
                "-cut"
            ):  # which is given a chunk of the source, whatever its size
                self.held = max(self.held, given + self.nbytes[key])


@pytest.mark.parametrize(
    ("size", "stride", "rate"), [(5, 1, 1), (32, 16, 1), (7, 3, 4), (150, 9, 1)]
)
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("engine", ["map_overlap", "region"])
@pytest.mark.parametrize("max_bytes", [2**20, 2**22])
def test_no_task_takes_more_memory_than_projected(
    size: int, stride: int, rate: int, padding: Any, engine: str, max_bytes: int
) -> None:
    image = np.zeros((400, 400), "f4")
    grids = {i: AxisGrid(i, n, size, stride, rate, padding) for i, n in enumerate(image.shape)}
    source = da.from_array(image, chunks=128)
    fill = np.array(0, "f4")
    if engine == "map_overlap":
        plan = planned(source, grids, max_bytes)
        result = exchange(source, plan, fill)
    else:
        plan = plan_blocks("region", grids, source.chunks, 4, max_bytes)
        result = read(image, plan, fill)
    blocks = result.map_blocks(
        lambda block: block[:0], chunks=((0,) * result.numblocks[0], *result.chunks[1:])
    )
    tracemalloc.start()
    with Memory("patches-") as memory:
        dask.compute(blocks, scheduler="synchronous", optimize_graph=False)
    tracemalloc.stop()
    slack = 20_000  # Python's own objects
    assert 0 < memory.held <= max_bytes
    assert memory.held <= memory.peak <= plan.bytes_per_task + slack
