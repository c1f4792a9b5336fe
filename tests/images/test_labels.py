"""Labels of patches: those of their centers, also where that lies between two samples."""

from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr

from strategies import image_of

LABELS = {
    "int32": np.arange(9 * 12).reshape(9, 12).astype("i4") ** 2,
    "float32": np.linspace(-5, 5, 9 * 12).reshape(9, 12).astype("f4"),
    "seconds": np.arange(9 * 12).reshape(9, 12).astype("M8[s]"),
    "text": np.array([f"s{n}" for n in range(9 * 12)]).reshape(9, 12),
}


@pytest.mark.parametrize("kind", LABELS)
def test_lazy_labels_between_samples_are_those_in_memory_and_stay_lazy(
    kind: str, no_compute: None
) -> None:
    labels = LABELS[kind]
    image = xr.DataArray(image_of((9, 12), "f8", 0), dims=("y", "x"))
    lazy = xr.Variable(("y", "x"), dask.array.from_array(labels, chunks=(4, 5)))

    def labelled(coord: xr.Variable) -> Any:
        p = image.chunk(y=3, x=6).assign_coords(at=coord).patches(y=2, x=4, stride=1)
        return p.extract()["at"].variable

    expected, made = labelled(xr.Variable(("y", "x"), labels)), labelled(lazy)
    assert made.chunks is not None
    assert made.shape == expected.shape == (8, 9)
    # In seconds, as the image's are: what the rest are in is known in memory only.
    dtype = labels.dtype if kind == "seconds" else expected.dtype
    assert made.dtype == dtype
    samples = made.data.compute(scheduler="synchronous")
    if kind == "seconds":
        whole = (labels[:-1, 1:-2] + (labels[1:, 2:-1] - labels[:-1, 1:-2]) / 2).astype("M8[s]")
        assert (abs((samples - whole).astype("i8")) <= 1).all()
    else:
        np.testing.assert_array_equal(samples, expected.to_numpy())
