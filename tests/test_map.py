"""A model on every patch: as if all patches were extracted, run and stitched, without that."""

from typing import Any

import numpy as np
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from reference import Array, same_bits
from strategies import chunkings, problems
from xpatches import stitch
from xpatches.geometry import AxisGrid

ROUND = ["i1", "i4", "i8", "u1", "u8", "f2", "f4", "f8", "c8"]


def patches_of(labelled: xr.DataArray, grids: dict[int, AxisGrid], **given: Any) -> Any:
    return labelled.patches(
        {g.dim: g.size for g in grids.values()},
        stride={g.dim: g.stride for g in grids.values()},
        rate={g.dim: g.rate for g in grids.values()},
        padding={g.dim: g.padding for g in grids.values()},
        **given,
    )


def identity(batch: Array) -> Array:
    return batch


def positive(batch: Array) -> Array:
    """Something that depends on the whole patch, the same for every batch."""
    axes = tuple(range(1, batch.ndim))
    return np.asarray(batch - batch.min(axis=axes, keepdims=True))


@given(problems(), st.data())
def test_a_map_is_a_stitch_of_what_the_model_made_of_all_patches(
    problem: tuple[Array, dict[int, AxisGrid]], data: st.DataObject
) -> None:
    image, grids = problem
    numbers = np.random.default_rng(0).normal(0, 99, (*image.shape, 1))[..., 0]
    image = numbers.astype(data.draw(st.sampled_from(["i4", "f4", "f8"])))
    labelled = xr.DataArray(image, dims=[f"d{axis}" for axis in range(image.ndim)])
    how: dict[str, Any] = data.draw(
        st.sampled_from([
            {"taper": "flat"}, {"taper": "hann"}, {"taper": "crop"}, {"reduce": "sum"},
            {"reduce": "max"}, {"reduce": "first"},
        ])
    )  # fmt: skip
    how = {"fill_value": 0, **how}
    p = patches_of(labelled, grids)
    extracted = p.extract()
    spatial = [f"{g.dim}_patch" for g in grids.values()]
    others = [dim for dim in labelled.dims if not any(g.dim == dim for g in grids.values())]
    made = extracted - extracted.min([*spatial, *others]) if extracted.size else extracted
    expected = stitch(made.transpose(*extracted.dims), **how)
    if "taper" not in how:
        how["taper"] = "hann"
    batch = data.draw(st.integers(1, 9))
    if image.size:
        whole = p.map(positive, batch_size=batch, **how)
        np.testing.assert_array_equal(whole.to_numpy(), expected.to_numpy())
    chunks = {dim: data.draw(chunkings(n)) for dim, n in labelled.sizes.items() if n}
    lazy = patches_of(labelled.chunk(chunks), grids)
    if image.size:
        chunked = lazy.map(positive, batch_size=batch, **how)
        assert same_bits(chunked.compute().to_numpy(), whole.to_numpy())
