"""Reductions as jobs: what is written is what `reduce` gives, to the bit."""

import re
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import xpatches
from models import opened
from stores import files
from xpatches import JobError, PatchError
from xpatches.datasets import reduced as reduced_module
from xpatches.threads import available_cores

RNG = np.random.default_rng(0)
QUIET: dict[str, Any] = {"progress": False}


def image_of(dtype: str = "f4", dims: tuple[str, ...] = ("y", "x")) -> xr.DataArray:
    sizes = {"y": 46, "x": 61, "band": 3}
    samples = RNG.integers(0, 200, [sizes[dim] for dim in dims]).astype(dtype)
    if samples.dtype.kind in "fc":
        samples[RNG.random(samples.shape) < 0.1] = np.nan
        samples.ravel()[:5] = [np.inf, -0.0, 0.0, -np.inf, np.nan]
    coords = {"y": np.linspace(50, 41, 46), "x": np.arange(61) * 10, "crs": 0}
    attrs = {"units": "m", "long_name": "height", "grid_mapping": "crs"}
    return xr.DataArray(samples, coords, dims, "image", attrs)


def patches_of(image: Any, padding: Any = "same") -> Any:
    return image.patches(y=5, x=7, stride={"y": 3, "x": 4}, rate={"x": 2}, padding=padding)


def check(written: Any, expected: Any) -> None:
    """Compare everything, and of numbers all bits."""
    expected = expected.compute()
    xr.testing.assert_identical(written.compute(), expected)
    pairs = [(written, expected)]
    if isinstance(expected, xr.Dataset):
        pairs = [(written[name], expected[name]) for name in expected.data_vars]
    for array, other in pairs:
        assert array.dtype == other.dtype
        assert array.values.tobytes() == other.values.tobytes()
        assert array.dims == other.dims
        assert list(array.attrs) == list(other.attrs)


NAMES = [
    *("min", "max", "sum", "mean", "var", "std", "any", "all", "count", "argmin", "argmax"),
    "median",
]


@pytest.mark.parametrize("dtype", ["u1", "i8", "f4", "f8"])
@pytest.mark.parametrize("how", NAMES)
def test_what_is_written_is_what_reduce_gives(how: str, dtype: str) -> None:
    p = patches_of(image_of(dtype))
    store = MemoryStore()
    expected = p.reduce(how)
    check(p.reduce_to_zarr(store, how, max_bytes=20_000, **QUIET), expected)
    check(xpatches.open_patches(store, chunks=None), expected)


@pytest.mark.parametrize("dtype", ["?", "c8", "M8[ns]", "m8[s]"])
def test_other_dtypes_are_reduced_as_far_as_they_are_lazily(dtype: str) -> None:
    image = image_of("i8").astype(dtype).drop_attrs()
    p = patches_of(image)
    for how in NAMES:
        refused = None
        try:
            expected = p.reduce(how)
        except PatchError as error:
            refused = str(error)
        if refused is None:
            check(p.reduce_to_zarr(MemoryStore(), how, **QUIET), expected)
        else:
            with pytest.raises(PatchError, match=re.escape(refused)):
                p.reduce_to_zarr(MemoryStore(), how, **QUIET)


@pytest.mark.parametrize(
    "options",
    [
        {"skipna": False},
        {"skipna": True, "min_count": 30},
        {"ignore_padding": True},
        {"ignore_padding": True, "min_count": 33},
        {"label": "origin"},
    ],
)
@pytest.mark.parametrize("how", ["mean", "max", "sum"])
def test_options_mean_the_same(how: str, options: dict[str, Any]) -> None:
    p = patches_of(image_of("f4"))
    expected = p.reduce(how, **options)
    for max_bytes in (None, 20_000):
        made = p.reduce_to_zarr(MemoryStore(), how, **options, max_bytes=max_bytes, **QUIET)
        check(made, expected)


@pytest.mark.parametrize("dims", [("band", "y", "x"), ("x", "band", "y"), ("y", "x", "band")])
@pytest.mark.parametrize("padding", ["valid", "same", (40, 3)])
@pytest.mark.parametrize("chunks", [{"y": 2, "x": 3, "band": 1}, None])
def test_dims_of_any_order_in_chunks_of_any_length(dims: Any, padding: Any, chunks: Any) -> None:
    p = patches_of(image_of("i2", dims), padding)
    for how in ("mean", np.ptp):
        made = p.reduce_to_zarr(MemoryStore(), how, max_bytes=30_000, chunks=chunks, **QUIET)
        check(made, p.reduce(how))


@pytest.mark.parametrize("way", ["memory", "dask", "opened", "computed"])
def test_several_variables_and_ways_to_hold_an_image(way: str, tmp_path: Path) -> None:
    image = xr.Dataset(
        {
            "a": image_of("f4"),
            "b": image_of("u1", ("x", "y")),
            "line": image_of("i4")[:, 3].drop_vars("x"),
            "noise": ("n", RNG.normal(size=9)),
        },
        attrs={"title": "t"},
    )
    if way == "dask":
        image = image.chunk(y=10, x=17)
    elif way == "computed":
        image = image.chunk(y=10, x=17).map(lambda of: of + of.dtype.type(1), keep_attrs=True)
    elif way == "opened":
        image.drop_encoding().to_zarr(tmp_path / "image", consolidated=False)
        image = xr.open_zarr(
            tmp_path / "image", chunks=None, consolidated=False, decode_coords="all"
        )
    p = patches_of(image)
    made = p.reduce_to_zarr(tmp_path / "out", "mean", max_bytes=20_000, **QUIET)
    expected = p.reduce("mean")
    check(made, expected)
    assert set(made.chunks) >= {"y", "x"}


def test_a_function_is_called_with_patches_and_known_by_its_name(tmp_path: Path) -> None:
    p = patches_of(image_of("f8"))
    calls: list[int] = []

    def spread(patches: Any, axis: Any) -> Any:
        calls.append(patches.nbytes)
        return patches.max(axis) - patches.min(axis)

    made = p.reduce_to_zarr(tmp_path / "a", spread, max_bytes=50_000, **QUIET)
    assert max(calls) <= 50_000
    check(made, p.reduce(spread))
    with pytest.raises(PatchError, match=r"another job.*reduce\.image\.how"):
        p.reduce_to_zarr(tmp_path / "a", np.ptp, resume=True, **QUIET)

    def failing(patches: Any, axis: Any) -> Any:
        if np.isfinite(patches).any() and patches.shape[0] > 1:
            raise ValueError("out of luck")
        return patches.max(axis)

    with pytest.raises(JobError, match="how failed on patches of shape"):
        p.reduce_to_zarr(tmp_path / "b", failing, retries=0, **QUIET)


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"how": "min"}, r"reduce\.image\.how"),
        ({"skipna": False}, r"reduce\.image\.skipna"),
        ({"min_count": 3}, r"reduce\.image\.min_count"),
        ({"ignore_padding": True}, r"reduce\.image\.ignore_padding"),
        ({"padding": "valid"}, r"image\.shape"),
        ({"label": "origin"}, r"reduce\.image\.patches"),
        ({"image": image_of("f4") + 1}, "the image has changed"),
    ],
)
def test_another_reduction_does_not_resume(changed: dict[str, Any], difference: str) -> None:
    store, image = MemoryStore(), image_of("f4")

    def go(how: str = "max", image: Any = image, padding: Any = "same", **given: Any) -> None:
        patches_of(image, padding).reduce_to_zarr(store, how, **given, **QUIET)

    go()
    go(resume=True, max_bytes="1 MiB")
    with pytest.raises(PatchError, match=difference):
        go(resume=True, **changed)


BLOCKS = """
    import time, xarray as xr, xpatches
    from xpatches.jobs import blocks
    plain = blocks.Job.write
    def write(self, number):
        time.sleep({pause})
        written = plain(self, number)
        with open({log!r}, "a") as log:
            log.write(f"{{number}}\\n")
        return written
    blocks.Job.write = write
    if __name__ == "__main__":
        image = xr.open_zarr({image!r}, chunks=None, consolidated=False).image
        image.patches(y=5, x=5, stride=2, padding="same").reduce_to_zarr(
            {out!r}, "mean", chunks={{"y": 4, "x": 4}}, shards=False, resume=True, progress=False
        )
"""


def test_a_reduction_that_is_killed_is_finished(tmp_path: Path) -> None:
    image = opened(image_of("f4").drop_vars("crs").chunk(y=20, x=20), tmp_path / "image")

    def go(name: str, pause: float) -> "subprocess.Popen[bytes]":
        places = {key: str(tmp_path / f"{name}-{key}") for key in ("out", "log")}
        code = BLOCKS.format(image=str(tmp_path / "image"), pause=pause, **places)
        return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])

    assert go("peace", 0).wait() == 0
    log = tmp_path / "killed-log"
    for least in (5, 15):
        job = go("killed", 0.02)
        while not log.exists() or len(log.read_text().split()) < least:
            assert job.poll() is None
            time.sleep(0.002)
        job.kill()
        job.wait()
    with pytest.raises(PatchError, match="is incomplete"):
        xpatches.open_patches(tmp_path / "killed-out")
    assert go("killed", 0).wait() == 0
    blocks = len((tmp_path / "peace-log").read_text().split())
    assert blocks == 6 * 8
    assert len(log.read_text().split()) <= blocks + 2 * available_cores()
    assert files(tmp_path / "killed-out") == files(tmp_path / "peace-out")
    expected = image.patches(y=5, x=5, stride=2, padding="same").reduce("mean")
    check(xpatches.open_patches(tmp_path / "killed-out"), expected)


def test_what_is_damaged_is_noticed_and_made_again(tmp_path: Path) -> None:
    p, out = patches_of(image_of("f4")), tmp_path / "out"
    how: dict[str, Any] = {"chunks": {"y": 4, "x": 4}, "shards": False, **QUIET}
    p.reduce_to_zarr(out, "std", **how)
    assert xpatches.verify(out, progress=False)["damaged"] == {}
    stored = files(out)
    chunk = out / "image" / "c" / "1" / "2"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    assert [*xpatches.verify(out, repair=True, progress=False)["damaged"]] == ["image/c/1/2"]
    check(p.reduce_to_zarr(out, "std", resume=True, **how), p.reduce("std"))
    assert (out / "image" / "c" / "1" / "2").read_bytes() == stored["image/c/1/2"]


@pytest.mark.parametrize("how", ["mean", "median"])
def test_a_block_takes_what_is_planned_and_reads_no_more_than_its_budget(
    tmp_path: Path, how: str
) -> None:
    image = opened(xr.DataArray(np.ones((3000, 3000), "u1"), dims=("y", "x")), tmp_path / "a")
    p, max_bytes = image.patches(y=64, x=64, stride=32), 4 << 20
    plan = p.plan("reduce_to_zarr", how=how, max_bytes=max_bytes)
    assert plan["bytes_per_task"] <= max_bytes
    p.reduce_to_zarr(tmp_path / "first", how, max_bytes=max_bytes, **QUIET)
    tracemalloc.start()
    made = p.reduce_to_zarr(tmp_path / "second", how, max_bytes=max_bytes, **QUIET)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.nbytes == plan["bytes"]
    assert dict(made.sizes) == plan["dims"]
    assert peak <= available_cores() * (2 * max_bytes + (1 << 22)) + (1 << 22)


def test_blocks_of_large_patches_are_as_small_as_the_samples_under_them_ask_for() -> None:
    image = xr.DataArray(np.broadcast_to(np.uint8(1), (200_000, 200_000)), dims=("y", "x"))
    plan = image.patches(y=1000, x=1000).plan("reduce_to_zarr", how="mean")
    assert plan["dims"] == {"y": 200, "x": 200}
    assert plan["chunks"] == (32, 16)
    assert plan["tasks"] == 7 * 13
    fine = image.patches(y=5, x=5, stride=1).plan("reduce_to_zarr", how="max")
    assert np.prod(fine["chunks"]) == 1 << 20
    assert np.prod(fine["shards"]) == 1 << 24
    assert fine["read_amplification"] < 1.1
    with pytest.raises(PatchError, match=r"must be >= .*, one patch and the samples under"):
        image.patches(y=20_000, x=20_000).plan("reduce_to_zarr", how="mean")


@pytest.mark.parametrize("verb", ["reduce", "reduce_to_zarr"])
def test_plans_say_what_is_made(verb: str) -> None:
    p = patches_of(image_of("u1").chunk(y=10, x=20))
    plan = p.plan(verb, how="mean", max_bytes=20_000)
    expected = p.reduce("mean", max_bytes=20_000)
    assert plan["patches"] == len(p)
    assert plan["bytes"] == expected.nbytes
    assert plan["dims"] == dict(expected.sizes)
    if verb == "reduce":
        assert plan["tasks"] + plan["image_tasks"] == len(dict(expected.data.__dask_graph__()))
        chunks = dict(zip(expected.dims, map(list, expected.chunks), strict=True))
        assert plan["chunks"] == chunks


def test_chunks_and_shards_of_a_reduction_are_what_was_planned(tmp_path: Path) -> None:
    p = patches_of(image_of("u1"))
    for given in ({"chunks": {"y": 4}}, {"chunks": {"y": 2, "x": 3}, "shards": {"y": 4, "x": 6}}):
        how: dict[str, Any] = given
        plan = p.plan("reduce_to_zarr", how="count", **how)
        p.reduce_to_zarr(tmp_path / "a", "count", overwrite=True, **how, **QUIET)
        encoding = xr.open_zarr(tmp_path / "a", consolidated=False).image.encoding
        assert encoding["chunks"] == plan["chunks"]
        assert encoding.get("shards") == plan["shards"]
    for wrong in ({"chunks": {"q": 3}}, {"shards": {"y": 3}, "chunks": {"y": 2}}):
        refused: dict[str, Any] = wrong
        with pytest.raises(PatchError):
            p.plan("reduce_to_zarr", how="count", **refused)


def test_the_image_is_read_part_by_part_where_a_block_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boxes: list[int] = []
    plain = reduced_module.ReducedArray._boxes

    def counted(part: Any, number: int) -> Any:
        made = plain(part, number)
        boxes.append(len(made))
        return made

    monkeypatch.setattr(reduced_module.ReducedArray, "_boxes", counted)
    p = patches_of(image_of("f8"))
    whole = {"chunks": {"y": -1, "x": -1}, "shards": False}
    made = p.reduce_to_zarr(MemoryStore(), "mean", max_bytes=8000, **whole, **QUIET)
    assert max(boxes) > 4
    check(made, p.reduce("mean"))
