"""End to end: patches of a zarr image reduced to one sample each, and who else can do it.

The results are summed up, so that memory is that of the way and not of its result. Every way runs
in a process of its own, which prints its seconds and its peak memory. The ways of a case take
turns, so that a busy machine is busy for all of them.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
import zarr

import xpatches  # noqa: F401  registers .patches

THREADS = 2
PATCH_DIMS = ["y_patch", "x_patch"]


def write_image(path: Path, length: int, chunk: int, dtype: str) -> None:
    """Write a square image, smooth with noise, in zarr's default codec."""
    group = zarr.open_group(path, mode="w")
    array = group.create_array(
        "image",
        shape=(length, length),
        chunks=(chunk, chunk),
        dtype=dtype,
        dimension_names=("y", "x"),
    )
    rng, x = np.random.default_rng(0), np.arange(length)
    for row in range(0, length, chunk):
        y = np.arange(row, min(length, row + chunk))[:, None]
        smooth = 8000 + 6000 * np.sin(y / 300) * np.cos(x / 500)
        array[row : row + chunk] = (smooth + rng.normal(0, 40, smooth.shape)).astype(dtype)


def opened(path: Path, chunks: dict[str, int] | None) -> Any:
    """Open the image, with dask (``{}``) or without."""
    return xr.open_zarr(path, chunks=chunks, consolidated=False).image


def bound(path: Path, size: int, stride: int) -> Any:
    """Decode every chunk once, copy every patch once, and take its mean: what cannot be saved."""
    array: Any = zarr.open_group(path, mode="r")["image"]
    length, chunk = array.shape[0], array.chunks[0]
    count = (length - size) // stride + 1
    patches = np.empty((size, size), array.dtype)
    source = np.empty((size, size), array.dtype)

    def work(rows: range) -> None:
        for row in rows:
            for column in range(0, length, chunk):
                array[row : row + chunk, column : column + chunk]
        for _ in range(count * count // THREADS):
            np.copyto(patches, source)
            patches.mean()

    rows = range(0, length, chunk)
    halves = [rows[part::THREADS] for part in range(THREADS)]
    threads = [threading.Thread(target=work, args=(half,)) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def extracted(path: Path, size: int, stride: int, how: str, **kwargs: Any) -> Any:
    """Extract patches, and reduce them."""
    image = opened(path, {} if kwargs.get("engine") == "map_overlap" else None)
    patches = image.patches(y=size, x=size, stride=stride).extract(**kwargs)
    return getattr(patches, how)(PATCH_DIMS)


def reduced(path: Path, size: int, stride: int, how: str) -> Any:
    """Reduce patches without extracting them."""
    return opened(path, None).patches(y=size, x=size, stride=stride).reduce(how)


def rolling(path: Path, size: int, stride: int, how: str) -> Any:
    """Use xarray's ``rolling.construct``."""
    rolled = opened(path, {}).rolling(y=size, x=size)
    built = rolled.construct(y="y_patch", x="x_patch", stride=stride)
    return getattr(built, how)(PATCH_DIMS)


def sliding(path: Path, size: int, stride: int, how: str) -> Any:
    """Use dask's ``sliding_window_view``."""
    view = da.lib.stride_tricks.sliding_window_view(opened(path, {}).data, (size, size))
    return getattr(view[::stride, ::stride], how)((2, 3))


def overlapped(path: Path, size: int, stride: int, how: str) -> Any:
    """Use dask's ``map_overlap`` with NumPy's windows, as one would write it first."""

    def pool(block: Any) -> Any:
        view = np.lib.stride_tricks.sliding_window_view(block, (size, size))
        return getattr(view[::stride, ::stride], how)((2, 3))

    image = opened(path, {}).data
    depth = (0, size - 1)
    haloed = da.overlap.overlap(image, {0: depth, 1: depth}, boundary="none")
    chunks = [list(lengths) for lengths in image.chunks]
    for lengths in chunks:
        lengths[-1] -= size - 1
    return haloed.map_blocks(pool, chunks=tuple(map(tuple, chunks)), dtype=image.dtype)


WAYS: dict[str, Callable[..., Any]] = {
    "bound": bound,
    "extract": extracted,
    "extract map_overlap": lambda *args: extracted(*args, engine="map_overlap"),
    "extract region": lambda *args: extracted(*args, engine="region"),
    "reduce": reduced,
    "xarray rolling.construct": rolling,
    "dask sliding_window_view": sliding,
    "dask map_overlap": overlapped,
}


def peak() -> float:
    """MiB that this process held at its peak."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def run(way: str, *args: Any, cluster: bool = False) -> dict[str, float]:
    """Run one way, on threads or on a cluster of processes of one thread each.

    Gives seconds, and MiB that this process grew by at its peak.
    """
    with contextlib.ExitStack() as stack:
        if cluster:
            from distributed import Client

            client = Client(  # type: ignore[no-untyped-call]
                n_workers=THREADS, threads_per_worker=1, dashboard_address=":0"
            )
            stack.enter_context(client)
        else:
            stack.enter_context(dask.config.set(scheduler="threads", num_workers=THREADS))
        before, start = peak(), time.perf_counter()
        made = WAYS[way](*args)
        if made is not None:
            made.sum().compute()  # the result itself is as large for all, and is not held
        return {"seconds": time.perf_counter() - start, "MiB": peak() - before}


def compare(
    ways: list[str], *args: Any, repeat: int = 3, cluster: bool = False
) -> dict[str, dict[str, float]]:
    """Run ways by turns in processes of their own; medians."""
    given = (*map(str, args[:1]), *args[1:], cluster)
    return in_processes("benchmarks.endtoend", {way: (way, *given) for way in ways}, repeat)


def in_processes(
    module: str, ways: Mapping[str, Sequence[Any]], repeat: int
) -> dict[str, dict[str, float]]:
    """Run a module with the arguments of every way, by turns, each in a process; medians."""
    results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(repeat):
        for way, given in ways.items():
            command = [sys.executable, "-m", module, json.dumps(given)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[way].append(json.loads(done.stdout))
    return {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for way, runs in results.items()
    }


if __name__ == "__main__":
    way, path, *rest, cluster = json.loads(sys.argv[1])
    rest = rest[:2] if way == "bound" else rest
    print(json.dumps(run(way, Path(path), *rest, cluster=cluster)))
