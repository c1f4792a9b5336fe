"""Models that are mapped over patches, and an image for them."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from reference import Array


def identity(batch: Array) -> Array:
    return batch


def above_least(batch: Array) -> Array:
    """Something that depends on the whole patch, and on nothing else."""
    axes = tuple(range(1, batch.ndim))
    return np.asarray(batch - batch.min(axis=axes, keepdims=True))


def opened(image: xr.DataArray, path: Path) -> xr.DataArray:
    """Store an image, and open it without dask."""
    image.rename("image").to_dataset().to_zarr(path, consolidated=False, mode="w")
    stored: xr.DataArray = xr.open_zarr(path, chunks=None, consolidated=False).image
    return stored


IMAGE = xr.DataArray(
    np.random.default_rng(0).normal(size=(96, 128)),
    {"y": np.linspace(50, 40.5, 96), "x": np.linspace(0, 12.7, 128)},
    ("y", "x"),
    "image",
)


CUT: dict[str, Any] = {"y": 16, "x": 16, "stride": 8, "padding": "same"}


class FailsOn:
    """The identity, which notes its batches, and fails on those that hold one of some patches."""

    def __init__(self, *bad: int) -> None:
        self.bad, self.batches = {float(number) for number in bad}, list[list[int]]()

    def __call__(self, batch: Array) -> Array:
        numbers = batch.reshape(len(batch), -1).max(axis=1)
        self.batches.append(numbers.astype(int).tolist())
        if self.bad & {*numbers}:
            raise ValueError(f"bad {min(self.bad & {*numbers}):.0f}")
        return batch
