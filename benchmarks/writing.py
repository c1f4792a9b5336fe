"""Write patch datasets, beside writing the same patches from memory, on threads and on workers.

Every way runs in a process of its own, which prints its seconds; the ways of a case take turns.
Workers have one core each, as on a cluster: zarr would use all.
"""

import contextlib
import importlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import xpatches
from benchmarks.endtoend import in_processes, opened
from xpatches.jobs.workers import Window, workers_for

WAYS = ("patches in memory", "image in memory", "2 threads", "1 worker", "2 workers")


def run(
    way: str, image: Path, out: Path, layout: str, size: int, stride: int, writes: int
) -> dict[str, float]:
    """Write some times; seconds of the last, and bytes of patches."""
    source = opened(image, None)
    if way == "image in memory":
        source.load()
    p = source.patches(y=size, x=size, stride=stride)
    shutil.rmtree(out, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        if "worker" in way:
            from distributed import Client

            client = Client(  # type: ignore[no-untyped-call]
                n_workers=int(way[0]), threads_per_worker=1, dashboard_address=":0"
            )
            stack.enter_context(client)
            client.run(importlib.import_module, "xpatches.datasets.write")
            for core, worker in enumerate(client.scheduler_info()["workers"]):
                client.run(_keep_to, core, workers=[worker])
        seconds = 0.0
        for _ in range(writes):  # the first load modules, and take fresh memory from the system
            shutil.rmtree(out, ignore_errors=True)
            start = time.perf_counter()
            p.to_zarr(out, layout=layout, progress=False)
            seconds = time.perf_counter() - start
        if way == "patches in memory":
            seconds = _from_memory(out, layout)
        return {"seconds": seconds, "bytes": p.nbytes}


def _keep_to(core: int) -> None:
    """Let all threads of this process run on one core."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def _from_memory(out: Path, layout: str) -> float:
    """Write patches that stand in memory, with the same codec, chunks, shards, and threads."""
    patches: Any = xpatches.open_patches(out).compute()
    stored: Any = zarr.open_group(out, mode="r")["image"]
    again = zarr.open_group(out.with_suffix(".again"), mode="w").create_array(
        "image", shape=stored.shape, dtype=stored.dtype, chunks=stored.chunks, shards=stored.shards,
        compressors=stored.compressors, config={"write_empty_chunks": True},
    )  # fmt: skip
    step = (stored.shards or stored.chunks)[0]
    columns = (stored.shards or stored.chunks)[1] if layout == "grid" else stored.shape[1]
    blocks = [
        (slice(row, row + step), slice(column, column + columns))
        for row in range(0, stored.shape[0], step)
        for column in range(0, stored.shape[1], columns)
    ]
    samples = patches.values
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda block: again.__setitem__(block, samples[block]), blocks))
    seconds = time.perf_counter() - start
    shutil.rmtree(out.with_suffix(".again"))
    return seconds


CHUNKS: list[tuple[int, int | None]] = [
    (1, None), (1, 256), (2, 256), (8, None), (8, 64), (8, 256), (32, 256),
]  # fmt: skip
"""Patches of a chunk, and of a shard, that are compared."""
PIPELINES = {
    "zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarrs": "zarrs.ZarrsCodecPipeline",
}


def store_and_read(
    image: Path, out: Path, chunk: int, shard: int | None, pipeline: str
) -> dict[str, float]:
    """Write samples with these chunks and shards, and read them: one at random, and in order."""
    p = opened(image, None).patches(y=256, x=256, stride=128)
    rng = np.random.default_rng(0)
    with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}):
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        shards = {"sample": shard} if shard else False
        p.to_zarr(out, layout="samples", chunks={"sample": chunk}, shards=shards, progress=False)
        write = time.perf_counter() - start
        stored: Any = zarr.open_group(out, mode="r")["image"]
        ones = []
        for sample in rng.integers(0, len(p), 50):
            start = time.perf_counter()
            stored[int(sample)]
            ones.append(time.perf_counter() - start)
        start = time.perf_counter()
        for sample in range(0, len(p), 32):
            stored[sample : sample + 32]
        order = time.perf_counter() - start
    return {
        "write, MB/s": p.nbytes / write / 1e6,
        "one, ms": 1e3 * statistics.median(ones),
        "in order, MB/s": p.nbytes / order / 1e6,
        "stored, MB": sum(of.stat().st_size for of in out.rglob("*") if of.is_file()) / 1e6,
    }


class Idle:
    """A job whose blocks do nothing."""

    def work(self, number: int) -> int:
        """Give the block back."""
        return number


def schedule(blocks: int) -> Iterator[tuple[int, float, int, float]]:
    """Run blocks that do nothing on two workers.

    Gives, a few times underway: blocks that are done, seconds, tasks that the scheduler holds, and
    MiB of the process that it and the job run in.
    """
    from distributed import Client

    def held(dask_scheduler: Any) -> int:
        return len(dask_scheduler.tasks)

    with (
        Client(n_workers=2, threads_per_worker=2, dashboard_address=":0") as client,  # type: ignore[no-untyped-call]
        workers_for(Idle()) as workers,
    ):
        start, points = time.perf_counter(), {blocks // 1000, blocks // 100, blocks // 10, blocks}
        for done, _ in enumerate(over(Window(workers, "work"), range(blocks)), start=1):
            if done in points:
                status = Path("/proc/self/status").read_text()
                (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
                seconds, tasks = time.perf_counter() - start, client.run_on_scheduler(held)
                yield done, seconds, tasks, int(line.split()[1]) / 1024


def compare(ways: Iterable[str], *args: Any, repeat: int = 3) -> dict[str, dict[str, float]]:
    """Run ways by turns; medians."""
    return in_processes("benchmarks.writing", {way: (way, *args) for way in ways}, repeat)


if __name__ == "__main__":
    way, image, out, *rest = json.loads(sys.argv[1])
    print(json.dumps(run(way, Path(image), Path(out), *rest)))


def over(window: Window, numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """Go through blocks, in the order in which they finish."""
    left = iter(numbers)
    while True:
        if some := list(islice(left, window.room)):
            window.add(some)
        if not len(window):
            return
        if taken := window.take():
            yield taken
