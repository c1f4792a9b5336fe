import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import xpatches
from overlaps import HOWS, expected_of, labelled, patches_of
from reference import same_bits, terms_over
from xpatches.errors import PatchError
from xpatches.geometry.grid import AxisGrid
from xpatches.stitching.labelled import stitch
from xpatches.stitching.tapers import TAPERS, weights_of


def test_geometry_that_is_lost_is_said_to_be() -> None:
    patches = patches_of(labelled()).extract()
    for broken, message in (
        (patches.drop_attrs(), r"has no attr 'xpatches': it does not come from extract"),
        (patches.isel(y=0), r"patches must have the dims \('y', 'x', 'y_patch', 'x_patch'\), got"),
        (patches.isel(y=[0, 1, 4]), r"'y_origin' must be at equal distances, got \[-1"),
        (patches.isel(y=[2, 1, 1]), r"'y_origin' must hold every place once, got \[2 2 5\]; drop"),
        (patches.isel(y_patch=[1, 1]), r"'y_patch' must hold every place once, got \[1 1\]; drop"),
        (patches.isel(y=[0, 1]).drop_vars("y_origin"), r"patches must be 8 along 'y', got 2, and"),
        (
            patches[..., :3, :, :].drop_vars("y_patch"),
            r"must have 6 samples along 'y_patch', got 3",
        ),
    ):
        with pytest.raises(PatchError, match=message):
            stitch(broken)
    with pytest.raises(PatchError, match="must be a DataArray or a Dataset, got ndarray"):
        stitch(patches.values)


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("layout", ["grid", "samples"])
@pytest.mark.parametrize("opened", ["memory", "chunked", "with dask", "without"])
def test_patches_in_another_order_are_put_where_their_origins_say(
    order: str, layout: str, opened: str, tmp_path: Path
) -> None:
    image = labelled().drop_vars("band")
    p = image.patches(y=5, x=5, stride=3, padding="same")
    patches: Any = p.extract()
    if layout == "samples" or opened.startswith("with"):
        p.to_zarr(tmp_path / "out", layout=layout, progress=False)
        patches = xpatches.open_patches(tmp_path / "out", chunks=None)
        patches = patches if opened == "without" else patches.chunk()
        patches = patches.compute() if opened == "memory" else patches
    if opened == "chunked":
        patches = patches.chunk(dict.fromkeys(patches.dims[:2], 2))
    rng = np.random.default_rng(0)
    for dim in ("y", "x") if layout == "grid" else ("sample",):
        n = patches.sizes[dim]
        moved = slice(None, None, -1) if order == "reversed" else rng.permutation(n)
        patches = patches.isel({dim: moved})
    if order == "reversed":
        patches = patches.isel(y_patch=slice(None, None, -1))
    back = stitch(patches, reduce="first")
    assert (back.chunks is None) == (opened == "memory")
    assert back.dims == image.dims
    assert same_bits(back.to_numpy(), image.to_numpy())
    np.testing.assert_allclose(back.y, image.y, rtol=1e-14)
    np.testing.assert_array_equal(back.x, image.x)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("how", [*HOWS, "hann"])
def test_patches_may_be_missing(how: str, chunked: bool) -> None:
    image = labelled(dtype="i4" if how == "vote" else "f4").isel(band=0, drop=True)
    patches = patches_of(image).extract()
    stacked = patches.stack(sample=("y", "x")).reset_index("sample")
    stacked = stacked.transpose("sample", ...)
    rng = np.random.default_rng(0)
    kept = rng.permutation(np.flatnonzero(rng.random(stacked.sizes["sample"]) < 0.6))
    options: dict[str, Any] = {"reduce": how}
    if how in TAPERS:
        options = {"taper": how}
    some = stacked.isel(sample=kept)
    back = stitch(some.chunk(sample=7) if chunked else some, **options, fill_value=-1)
    back = back.compute()
    # The others are taken for what they are not: each is reduced to nothing by itself.
    axes = {0: (6, 3, 1, "same"), 1: (6, 3, 1, "same")}
    numbers = set(kept.tolist())
    grids = [AxisGrid("y", 24, 6, 3, 1, "same"), AxisGrid("x", 28, 6, 3, 1, "same")]
    weights = weights_of(options.get("taper", "flat"), {"y": 6, "x": 6})
    found = None if weights is None else [*weights.values()]
    for place, of in terms_over(patches.values, axes, (24, 28)).items():
        terms = [term for term in of if term[0][0] * patches.sizes["x"] + term[0][1] in numbers]
        value = back.values[place]
        if not terms:
            assert value == -1
            continue
        wanted = expected_of(terms, "mean" if how in ("flat", "hann") else how, found, grids)
        if how == "sum":
            wanted = sum(float(value) for *_, value in terms)
        assert float(value) == pytest.approx(float(wanted), rel=1e-6)


def test_every_nth_patch_and_parts_of_patches_are_stitched() -> None:
    image = labelled().isel(band=0, drop=True)
    patches = patches_of(image).extract()
    for some in (
        patches.isel(y=slice(1, None, 2), x=slice(2, 7)),
        patches.isel(y_patch=slice(1, 5), x_patch=slice(2, None)),
        patches.isel(y_patch=slice(0, None, 2), y=slice(0, 3)),
    ):
        back = stitch(some, reduce="first")
        chunked = stitch(some.chunk(y=1, x=2), reduce="first", max_bytes=2**15)
        assert same_bits(chunked.to_numpy(), back.to_numpy())
        held = np.zeros((24, 28), bool)
        for y in (some.y_origin + some.y_patch).values.ravel():
            for x in (some.x_origin + some.x_patch).values.ravel():
                if 0 <= y < 24 and 0 <= x < 28:
                    held[y, x] = True
        np.testing.assert_array_equal(back.values[held], image.values[held])
        assert np.isnan(back.values[~held]).all()


def test_a_dim_may_be_called_sample() -> None:
    image = xr.DataArray(np.random.default_rng(0).random((3, 9, 9)), dims=("sample", "y", "x"))
    patches = image.patches(y=3, x=3, stride=1).extract()
    np.testing.assert_allclose(stitch(patches), image)
    runs = xr.concat([patches[0], patches[1] + 1], "sample")
    np.testing.assert_allclose(stitch(runs)[1], image[1] + 1)


@pytest.mark.parametrize("inner", [{"y_patch": 2, "x_patch": 2}, {"x_patch": 2}, {"time": 2}])
@pytest.mark.parametrize("layout", [None, "grid", "samples"])
@pytest.mark.parametrize("like", [False, True])
def test_patches_of_patches_are_put_back_one_after_the_other(
    inner: dict[str, int], layout: str | None, like: bool, tmp_path: Path
) -> None:
    image = xr.DataArray(
        np.random.default_rng(0).normal(size=(4, 12, 16)),
        {"time": range(4), "y": np.linspace(9, 8, 12), "x": np.linspace(0, 1, 16)},
        ("time", "y", "x"),
        "image",
        {"units": "K"},
    )
    outer = image.patches(y=4, x=8).extract()
    p = outer.patches(inner)
    if layout is None:
        cut = p.extract()
    else:
        cut = p.to_zarr(tmp_path / "a", layout=layout, progress=False).compute()
    back = stitch(cut, like=outer if like else None)
    assert back.attrs == outer.attrs
    xr.testing.assert_equal(
        back.transpose(*outer.dims).drop_vars(back.coords), outer.drop_vars(outer.coords)
    )
    xr.testing.assert_identical(stitch(back.transpose(*outer.dims), like=image), image)
    innermost = back.transpose(*outer.dims).patches(y_patch=2).extract()
    again = innermost.patches(x_patch=4).extract()
    assert stitch(stitch(again)).attrs == outer.attrs
    xr.testing.assert_identical(stitch(stitch(stitch(again)), like=image), image)


def test_a_spec_without_an_outer_one_is_read() -> None:
    patches = xr.DataArray(np.arange(9.0), dims="x").patches(x=2).extract()
    assert "outer" not in json.loads(patches.attrs["xpatches"])
    assert "xpatches" not in stitch(patches, fill_value=0).attrs
