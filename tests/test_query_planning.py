"""dask arrays as expressions, with its option ``array.query-planning``, which is read on import.

DASK_ARRAY__QUERY_PLANNING=True python -m pytest tests/test_query_planning.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from models import identity
from xpatches import PatchError, extract_patches, stitch
from xpatches.lazy.graphs import PLANNED

pytestmark = pytest.mark.skipif(not PLANNED, reason="array.query-planning is off")

RNG = np.random.default_rng(0)
IMAGE = xr.DataArray(
    RNG.integers(0, 999, (3, 60, 70)).astype("uint16"),
    {"y": np.linspace(9, 3, 60), "x": np.arange(70)},
    ("band", "y", "x"),
    "image",
    {"units": "K"},
)
CUTS: dict[str, dict[str, Any]] = {
    "whole chunks": {"y": 10, "x": 5},
    "halo on one side": {"y": 5, "x": 5, "stride": 1},
    "halo on both sides": {"y": 5, "x": 5, "stride": 2, "padding": "same"},
    "edges that are cut anew": {"y": 8, "x": 8, "stride": 3},
    "halo beyond the next chunk": {"y": 33, "x": 29, "stride": 5},
    "padding that holds patches": {"y": 4, "x": 4, "stride": 4, "padding": (9, 9)},
}
VERBS: dict[str, Callable[[Any], Any]] = {
    "extract": lambda p: p.extract(),
    "flatten": lambda p: p.extract(flatten="patch"),
    "reduce": lambda p: p.reduce("mean"),
    "map": lambda p: p.map(identity, taper="hann", fill_value=0),
    "map to other dims": lambda p: p.map(
        lambda batch: batch.max(axis=1).swapaxes(1, 2),
        output={"dims": ("x", "y")},
        reduce="max",
        fill_value=0,
    ),
}


def computed(chunks: Any = None) -> xr.DataArray:
    """Give an image that dask computes."""
    source = da.from_array(IMAGE.values - 1, chunks=chunks or (2, 20, 20)) + 1
    return IMAGE.copy(data=source.astype("uint16"))


def assert_the_same(lazy: xr.DataArray, expected: xr.DataArray) -> None:
    data: Any = lazy.data
    assert hasattr(data, "expr")
    np.testing.assert_array_equal(data.compute(), expected.values)
    assert lazy.dims == expected.dims
    assert lazy.dtype == expected.dtype
    assert lazy.coords.to_dataset().drop_attrs().equals(expected.coords.to_dataset().drop_attrs())


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("verb", VERBS)
def test_verbs_of_a_computed_image_give_what_they_give_in_memory(verb: str, cut: str) -> None:
    run, arguments = VERBS[verb], CUTS[cut]
    assert_the_same(run(computed().patches(**arguments)), run(IMAGE.patches(**arguments)))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("chunks", [None, {}])
def test_verbs_of_an_opened_image_give_what_they_give_in_memory(
    verb: str, chunks: Any, tmp_path: Path
) -> None:
    IMAGE.to_dataset().to_zarr(tmp_path / "image.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "image.zarr", chunks=chunks, consolidated=False).image
    run, arguments = VERBS[verb], CUTS["halo on both sides"]
    assert_the_same(run(opened.patches(**arguments)), run(IMAGE.patches(**arguments)))


def test_more_patches_than_the_budget_are_made_chunk_by_chunk() -> None:
    cut: dict[str, Any] = {"y": 16, "x": 16, "stride": 1}
    patches = computed((3, 30, 35)).patches(**cut).extract(max_bytes="200 kB")
    assert max(patches.chunks[1]) < 16
    assert_the_same(patches, IMAGE.patches(**cut).extract())


def test_single_patches_and_iteration() -> None:
    p = computed().patches(y=8, x=8, stride=4, padding="same")
    q = IMAGE.patches(y=8, x=8, stride=4, padding="same")
    np.testing.assert_array_equal(dask.compute(p[5].data)[0], q[5])
    for patch, expected in zip(p, q, strict=True):
        np.testing.assert_array_equal(dask.compute(patch.data)[0], expected)


def test_tensorflows_function() -> None:
    images = IMAGE.values[..., None]
    arguments: tuple[Any, ...] = ([1, 4, 4, 1], [1, 2, 2, 1], [1, 1, 1, 1], "SAME")
    patches: Any = extract_patches(da.from_array(images, chunks=(1, 20, 20, 1)), *arguments)
    np.testing.assert_array_equal(patches.compute(), extract_patches(images, *arguments))


def test_a_grid_of_patches_is_stitched() -> None:
    cut: dict[str, Any] = {"y": 8, "x": 8, "stride": 4, "padding": "same"}
    image = stitch(computed().patches(**cut).extract(), reduce="first")
    np.testing.assert_array_equal(image.data.compute(), IMAGE)


def test_what_dask_cannot_do_there_yet_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=r'job is .* "array\.query-planning" to False before dask'):
        computed().patches(y=8, x=8).to_zarr(tmp_path / "out.zarr", progress=False)
    assert not (tmp_path / "out.zarr").exists()
    samples = IMAGE.patches(x=10).extract().rename(x="sample")
    origins = ("sample", samples.x_origin.values[::-1])
    samples = samples.chunk(sample=5).assign_coords(x_origin=origins)
    with pytest.raises(PatchError, match=r'stitching .* "array\.query-planning" to False before'):
        stitch(samples, reduce="first")
