import re
from typing import Any

import numpy as np
import pytest
import xarray as xr

from overlaps import labelled, patches_of
from reference import same_bits
from xpatches.errors import PatchError
from xpatches.stitching.labelled import stitch


def test_labels_are_not_averaged_unasked() -> None:
    image = xr.DataArray(np.arange(12) % 2 * 390 + 10, dims="x", name="classes")
    for dtype in ("i8", "?", "U3", "M8[s]"):
        patches = image.astype(dtype).patches(x=4, stride=2).extract()
        message = f"reduce must be given for {np.dtype(dtype)} of 'classes', for patches overlap"
        with pytest.raises(PatchError, match=re.escape(message)):
            stitch(patches)
        assert stitch(patches, reduce="first").equals(image.astype(dtype))
        apart = image.astype(dtype).patches(x=4).extract()
        for some in (apart, apart.chunk(x=1), patches.isel(x=slice(None, None, 2), x_patch=[1, 2])):
            assert same_bits(
                stitch(some, fill_value=np.array(0, dtype)[()]).values[1:3],
                image.astype(dtype).values[1:3],
            )
    patches = image.patches(x=4, stride=2).extract()
    for asked in ({"reduce": "mean"}, {"taper": "flat"}, {"taper": "hann"}, {"taper": "crop"}):
        how: dict[str, Any] = asked
        assert (stitch(patches, **how) == image).all()
    with pytest.raises(PatchError, match="reduce must be given for int64"):
        stitch(patches, dtype="float64")
    assert stitch(image.patches(x=4).extract(), dtype="float32").dtype == np.float32


def test_missing_samples_are_skipped_but_in_sums_unless_asked() -> None:
    image = xr.DataArray(np.arange(8.0), dims="x")
    patches = image.patches(x=4, stride=2).extract().copy()
    patches[0, 2:], patches[1, 3] = np.nan, np.nan
    assert np.isnan(stitch(patches, reduce="sum")).values.tolist() == [False] * 2 + [True] * 2 + [
        False, True, False, False,
    ]  # fmt: skip
    assert stitch(patches, reduce="sum", skipna=True).values.tolist() == [0, 1, 2, 3, 8, 5, 6, 7]
    for options in ({}, {"reduce": "mean"}, {"reduce": "max"}, {"reduce": "first"}):
        how: dict[str, Any] = options
        np.testing.assert_array_equal(stitch(patches, **how), image)
    eaten = [0, 1, np.nan, np.nan, 4, np.nan, 6, 7]
    np.testing.assert_array_equal(stitch(patches, skipna=False), eaten)
    # Integers have no missing samples: there is nothing to skip.
    whole = image.astype(int).patches(x=4, stride=2).extract()
    for skipna in (True, False):
        assert (stitch(whole, reduce="mean", skipna=skipna) == image).all()


def test_samples_in_no_patch_need_a_value() -> None:
    image = labelled(dtype="u1").isel(band=0, drop=True)
    for options, why in (
        ({"stride": 9}, r"stride 9 on 'y' exceeds the size 6, stride 9 on 'x' exceeds the size 6"),
        (
            {"stride": 5},
            r"patches on 'y' end before the image does, patches on 'x' end "
            "before the image does",
        ),
        ({"stride": 6, "rate": 2}, r"rate 2 on 'y' leaves gaps, rate 2 on 'x' leaves gaps"),
    ):
        patches = image.patches(y=6, x=6, **options).extract()
        bare = int(np.isnan(stitch(patches.astype(float))).sum())
        message = f"{bare} of 672 samples are in no patch: {why}, and uint8 has no missing value"
        with pytest.raises(PatchError, match=message):
            stitch(patches, reduce="mean")
        back = stitch(patches, fill_value=255, reduce="mean")
        assert back.dtype == np.dtype("u1")
        assert (back.values == 255).sum() >= bare
        assert stitch(patches, reduce="sum").dtype == np.dtype("u8")
    gaps = image.patches(y=6, x=6, stride=6, rate=2).extract()
    with pytest.raises(PatchError, match="rate 2 on 'y' leaves gaps, rate 2 on 'x' leaves gaps"):
        stitch(gaps, taper="crop")
    with pytest.raises(PatchError, match="fill_value must be a value that uint8 can hold, got -1"):
        stitch(patches, fill_value=-1, reduce="mean")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reduce": "median"}, r"reduce must be None, 'mean', 'sum', .*, got 'median'"),
        ({"reduce": "sum", "taper": "hann"}, r"taper is for reduce='mean', got reduce='sum'"),
        ({"taper": "hanning"}, r"taper must be 'flat', .*, got 'hanning'"),
        ({"taper": [1, 2]}, r"taper on 'y' must have the shape \(6,\), got \(2,\)"),
        ({"taper": {"z": [1]}}, r"taper names 'z', which is not among the dims \('y', 'x'\)"),
        ({"taper": lambda size: -np.ones(size)}, r"taper on 'y' must be finite, >= 0 and not all"),
        ({"skipna": "no"}, r"skipna must be True, False or None, got 'no'"),
        (
            {"dtype": "i4"},
            r"dtype must be a floating dtype, for reduce='mean' .* got int32",
        ),
        ({"like": xr.DataArray(np.zeros((3, 3)), dims=("y", "x"))}, r"like must have 24 samples"),
    ],
)
def test_arguments_are_refused_by_name(given: Any, message: str) -> None:
    patches = patches_of(labelled()).extract()
    with pytest.raises(PatchError, match=message):
        stitch(patches, **given)
