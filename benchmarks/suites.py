"""Suites for asv: kernels, plans, reductions. Numbers that are no timings are tracked."""

from typing import Any, ClassVar

import dask
import dask.array as da
import numpy as np
import xarray as xr

import xpatches  # noqa: F401  registers .patches
from benchmarks.cases import LISTED, SMALL, Case
from xpatches.extraction import plan
from xpatches.geometry.grid import AxisGrid
from xpatches.lazy import graphs as lazy


class Kernel:
    """Extraction of images in memory."""

    cases = LISTED
    params: ClassVar[list[Any]] = [[str(case) for case in LISTED], ["uint8", "float32"]]
    param_names: ClassVar[list[str]] = ["shape / size / stride / rate", "dtype"]

    def setup(self, name: str, dtype: str) -> None:
        """Make the images."""
        self.case: Case = next(case for case in [*LISTED, *SMALL] if str(case) == name)
        self.images = self.case.images(dtype)

    def time_extract(self, *_: Any) -> None:
        """Seconds of an extraction."""
        self.case.extract(self.images)

    def peakmem_extract(self, *_: Any) -> None:
        """Peak of the process."""
        self.case.extract(self.images)


class Graph:
    """Building graphs; nothing is computed."""

    params: ClassVar[list[Any]] = [[32, 128], ["valid", "same"]]
    param_names: ClassVar[list[str]] = ["chunks per dim", "padding"]

    def setup(self, chunks: int, padding: str) -> None:
        """Make a lazy image."""
        image = xr.DataArray(da.zeros((64 * chunks,) * 2, chunks=64), dims=("y", "x"))
        self.patches = image.patches(y=5, x=5, stride=1, padding=padding)
        self.grids = {
            axis: AxisGrid(axis, 64 * chunks, 5, 1, padding=padding)  # type: ignore[arg-type]
            for axis in (0, 1)
        }
        self.chunks = ((64,) * chunks,) * 2

    def time_extract(self, *_: Any) -> None:
        """Seconds to build the extraction of a dask array."""
        self.patches.extract()

    def time_regions(self, *_: Any) -> None:
        """Seconds to build an extraction by regions, a stored chunk per block."""
        planned = plan.plan_blocks("region", self.grids, self.chunks, 8, 30 * 64 * 64 * 8)
        lazy.read(len, "source", planned.blocks, len, "f8")  # type: ignore[arg-type]

    def track_tasks_per_chunk(self, chunks: int, padding: str) -> float:
        """Tasks per chunk of the source, its own included."""
        (optimized,) = dask.optimize(self.patches.extract().data)
        return float(len(optimized.__dask_graph__()) / chunks**2)


class Reduce:
    """Reductions of an image in memory."""

    params: ClassVar[list[Any]] = [
        ["max", "mean", "std", "argmax"],
        [(5, 1, 1), (65, 1, 1), (5, 1, 3)],
    ]
    param_names: ClassVar[list[str]] = ["how", "size, stride, rate"]
    length = 2048

    def setup(self, how: str, numbers: tuple[int, int, int]) -> None:
        """Make the image."""
        samples = np.random.default_rng(0).random((self.length,) * 2, "f4")
        size, stride, rate = numbers
        image = xr.DataArray(samples, dims=("y", "x"))
        self.patches = image.patches(y=size, x=size, stride=stride, rate=rate)

    def time_reduce(self, how: str, *_: Any) -> None:
        """Seconds of a reduction."""
        self.patches.reduce(how)

    def peakmem_reduce(self, how: str, *_: Any) -> None:
        """Peak of the process."""
        self.patches.reduce(how)


class Stitch:
    """Patches in memory, back into an image."""

    params: ClassVar[list[Any]] = [
        [("mean", "flat"), ("mean", "hann"), ("mean", "crop"), ("sum", "flat"), ("vote", "flat")],
        ["uint8", "float32"],
    ]
    param_names: ClassVar[list[str]] = ["reduce, taper", "dtype"]
    length = 2048

    def setup(self, how: tuple[str, str], dtype: str) -> None:
        """Make the patches."""
        samples = np.random.default_rng(0).integers(0, 5, (self.length,) * 2).astype(dtype)
        image = xr.DataArray(samples, dims=("y", "x"))
        if how[0] == "vote":
            image = image.astype("uint8")
        self.patches = image.patches(y=64, x=64, stride=32, padding="same").extract()

    def time_stitch(self, how: tuple[str, str], dtype: str) -> None:
        """Seconds of a stitching."""
        self.patches.patches.stitch(reduce=how[0], taper=how[1])

    def peakmem_stitch(self, how: tuple[str, str], dtype: str) -> None:
        """Peak of the process."""
        self.patches.patches.stitch(reduce=how[0], taper=how[1])
