"""Put patches of a zarr dataset together into an image, and who else can do it.

All ways take the mean of the patches over a sample, so that all make the image that was cut. Every
way runs in a process of its own, which prints its seconds and its peak memory; the ways of a case
take turns. Those that cannot write a store keep their image in memory.
"""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import dask
import numpy as np
import xarray as xr
import zarr

import xpatches
from benchmarks.endtoend import THREADS, in_processes, opened, peak, write_image

LARGE = ("bound", "xpatches", "xpatches, hann")
"""Ways that an image of any size is stitched in."""


Placed: TypeAlias = Iterator[tuple[tuple[int, int], Any]]
"""Patches, each with its place."""


def cut(path: Path, length: int, size: int, stride: int) -> None:
    """Write an image, and its patches beside it."""
    write_image(path / "image.zarr", length, min(512, length), "float32")
    p = opened(path / "image.zarr", None).patches(y=size, x=size, stride=stride)
    p.to_zarr(path / "patches.zarr", progress=False)


def bound(path: Path, size: int, stride: int) -> None:
    """Read every patch once, multiply and add every sample, write every block: what must be done.

    With as many threads; the blocks are those of the patches that are stored as one object.
    """
    stored: Any = zarr.open_group(path / "patches.zarr", mode="r")["image"]
    length = length_of(path)
    rows, columns = (stored.shards or stored.chunks)[:2]
    out = zarr.create_array(
        path / "made.zarr", shape=(length, length), chunks=(rows * stride, columns * stride),
        dtype=stored.dtype, compressors=None, overwrite=True,
    )  # fmt: skip
    weights = np.ones((size, size), "float32")

    def work(corner: tuple[int, int]) -> None:
        row, column = corner
        patches = stored[row : row + rows, column : column + columns]
        block = np.zeros((patches.shape[0] * stride, patches.shape[1] * stride), "float32")
        scratch = np.zeros((size, size), "float32")
        for patch in patches.reshape(-1, size, size):
            scratch += patch * weights
        place = (slice(row * stride, None), slice(column * stride, None))
        out[tuple(slice(s.start, s.start + n) for s, n in zip(place, block.shape, strict=True))] = (
            block
        )

    corners = [
        (row, column)
        for row in range(0, stored.shape[0], rows)
        for column in range(0, stored.shape[1], columns)
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, corners))


def ours(path: Path, size: int, stride: int, taper: str = "flat") -> Any:
    """Stitch lazily, and write the image, uncompressed, as the bound does."""
    made = xpatches.open_patches(path / "patches.zarr").patches.stitch(taper=taper)
    made.drop_attrs().to_zarr(
        path / "made.zarr", consolidated=False, mode="w", encoding={"image": {"compressors": ()}}
    )
    return zarr.open_group(path / "made.zarr", mode="r")["image"]


def ours_in_memory(path: Path, size: int, stride: int) -> Any:
    """Stitch into memory."""
    return xpatches.open_patches(path / "patches.zarr").patches.stitch().values


def one_by_one(path: Path, stride: int) -> Placed:
    """Read patches row by row, and give each with its place."""
    stored: Any = zarr.open_group(path / "patches.zarr", mode="r")["image"]
    rows = (stored.shards or stored.chunks)[0]
    for first in range(0, stored.shape[0], rows):
        for row, patches in enumerate(stored[first : first + rows], start=first):
            for column, patch in enumerate(patches):
                yield (row * stride, column * stride), patch


def length_of(path: Path) -> int:
    """Length of the image."""
    stored: Any = zarr.open_group(path / "image.zarr", mode="r")["image"]
    return int(stored.shape[0])


def xrpatcher(path: Path, size: int, stride: int) -> Any:
    """``XRDAPatcher.reconstruct``."""
    from xrpatcher import XRDAPatcher

    image = opened(path / "image.zarr", None)
    image = image.assign_coords({dim: np.arange(n) for dim, n in image.sizes.items()})
    patcher = XRDAPatcher(image, {"y": size, "x": size}, {"y": stride, "x": stride})
    return patcher.reconstruct([patch for _, patch in one_by_one(path, stride)]).values


def tiler(path: Path, size: int, stride: int) -> Any:
    """Tiler's ``Merger``."""
    return with_tiler(one_by_one(path, stride), length_of(path), size, stride)


def with_tiler(patches: Placed, length: int, size: int, stride: int) -> Any:
    """Merge patches with tiler."""
    from tiler import Merger, Tiler

    tiles = Tiler((length, length), (size, size), overlap=(size - stride, size - stride))
    merger = Merger(tiles, window="boxcar", save_visits=False)
    for number, (_, patch) in enumerate(patches):
        merger.add(number, patch)
    return merger.merge()


def monai(path: Path, size: int, stride: int) -> Any:
    """MONAI's ``AvgMerger``."""
    return with_monai(one_by_one(path, stride), length_of(path))


def with_monai(patches: Placed, length: int) -> Any:
    """Merge patches with MONAI."""
    import torch
    from monai.inferers.merger import AvgMerger

    merger = AvgMerger((1, 1, length, length))
    for place, patch in patches:
        merger.aggregate(torch.from_numpy(np.ascontiguousarray(patch))[None, None], place)
    return merger.finalize()[0, 0].numpy()


def monai_zarr(path: Path, size: int, stride: int) -> Any:
    """MONAI's ``ZarrAvgMerger``, in chunks of the stride."""
    import torch
    from monai.inferers.merger import ZarrAvgMerger

    length = length_of(path)
    merger = ZarrAvgMerger(
        (1, 1, length, length), store=str(path / "made.zarr"), chunks=(1, 1, 4 * stride, 4 * stride)
    )
    for place, patch in one_by_one(path, stride):
        merger.aggregate(torch.from_numpy(np.ascontiguousarray(patch))[None, None], place)
    return merger.finalize()


def fold(path: Path, size: int, stride: int) -> Any:
    """Torch's ``fold`` of all patches, divided by that of ones."""
    stored: Any = zarr.open_group(path / "patches.zarr", mode="r")["image"]
    return with_torch(stored[:], length_of(path), size, stride)


def with_torch(patches: Any, length: int, size: int, stride: int) -> Any:
    """Merge patches with torch."""
    import torch

    columns = torch.from_numpy(patches.reshape(-1, size * size).T.copy())[None]
    how = {"output_size": (length, length), "kernel_size": size, "stride": stride}
    total = torch.nn.functional.fold(columns, **how)
    return (total / torch.nn.functional.fold(torch.ones_like(columns), **how))[0, 0].numpy()


def in_memory(length: int, size: int, stride: int) -> dict[str, Callable[[], Any]]:
    """Give the ways to merge patches that stand in memory, where they can be imported."""
    samples = np.random.default_rng(0).random((length, length), "f4")
    image = xr.DataArray(samples, dims=("y", "x"))
    patches = image.patches(y=size, x=size, stride=stride).extract()
    values = patches.values

    def placed() -> Placed:
        for row, column in np.ndindex(*values.shape[:2]):
            yield (row * stride, column * stride), values[row, column]

    ways: dict[str, tuple[Callable[[], Any], str | None]] = {
        "xpatches": (lambda: patches.patches.stitch(), None),
        "xpatches, hann": (lambda: patches.patches.stitch(taper="hann"), None),
        "MONAI AvgMerger": (lambda: with_monai(placed(), length), "monai"),
        "tiler Merger": (lambda: with_tiler(placed(), length, size, stride), "tiler"),
        "torch fold": (lambda: with_torch(values, length, size, stride), "torch"),
    }
    return {name: way for name, (way, needs) in ways.items() if not needs or find_spec(needs)}


WAYS: dict[str, tuple[Callable[..., Any], str | None]] = {
    "bound": (bound, None),
    "xpatches": (ours, None),
    "xpatches, hann": (partial(ours, taper="hann"), None),
    "xpatches, into memory": (ours_in_memory, None),
    "torch fold": (fold, "torch"),
    "MONAI AvgMerger": (monai, "monai"),
    "MONAI ZarrAvgMerger": (monai_zarr, "monai"),
    "tiler Merger": (tiler, "tiler"),
    "xrpatcher reconstruct": (xrpatcher, "xrpatcher"),
}
"""Every way, and what it needs."""


def run(way: str, path: Path, size: int, stride: int) -> dict[str, float]:
    """Stitch once; seconds, and MiB that this process grew by at its peak after its imports."""
    function, needs = WAYS[way]
    if needs is not None:
        __import__({"monai": "monai.inferers.merger"}.get(needs, needs))
    stored: Any = zarr.open_group(path / "patches.zarr", mode="r")["image"]
    stored[0, 0]
    shutil.rmtree(path / "made.zarr", ignore_errors=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(scheduler="threads", num_workers=THREADS))
        before, start = peak(), time.perf_counter()
        made = function(path, size, stride)
        found = {"seconds": time.perf_counter() - start, "MiB": peak() - before}
    if made is not None:
        image: xr.DataArray = opened(path / "image.zarr", None)
        corner = np.asarray(made[..., -1024:, :512]).reshape(-1, 512)
        covered = (stored.shape[0] - 1) * stride + size - image.sizes["y"] or None
        expected = image[-1024:, :512].values
        np.testing.assert_allclose(corner[:covered], expected[:covered], rtol=1e-5)
    return found


def compare(path: Path, size: int, stride: int, ways: list[str], repeat: int) -> Any:
    """Run those ways by turns that can be; medians."""
    there = [way for way in ways if WAYS[way][1] is None or find_spec(str(WAYS[way][1]))]
    given = (str(path), size, stride)
    return in_processes("benchmarks.stitching", {way: (way, *given) for way in there}, repeat)


if __name__ == "__main__":
    way, path, *rest = json.loads(sys.argv[1])
    print(json.dumps(run(way, Path(path), *rest)))
