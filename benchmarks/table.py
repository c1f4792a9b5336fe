"""Print what is measured as tables: ``python -m benchmarks.table``.

The ways of a row take turns in one run, so that what else the machine does hits all of them.
Figures are medians, and ratios are taken within the run.
"""

import argparse
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import chain, product
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

import xpatches  # noqa: F401  registers .patches
from benchmarks import endtoend, peers, stitching, writing
from benchmarks.cases import DTYPES, LISTED, OTHERS, SMALL, Case
from benchmarks.peers import WAYS
from xpatches.extraction import plan
from xpatches.geometry.grid import AxisGrid
from xpatches.lazy import graphs as lazy

LIBRARIES = [
    "xpatches",
    "numpy",
    "dask",
    "xarray",
    "zarr",
    "zarrs",
    "tensorflow_cpu",
    "torch",
    "xbatcher",
    "xrpatcher",
    "monai",
    "tiler",
]


def main() -> None:
    """Print the tables that are asked for."""
    tables = {"kernel": kernel, "others": others, "images": images, "engines": engines,
              "each": each, "writing": written, "chunks": chunks, "schedule": schedule,
              "reduce": reduce, "stitch": stitch, "merge": merge, "graphs": graphs,
              "growth": growth}  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(tables)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small images, to see that it works")
    given = parser.parse_args()
    print(machine())
    for name in given.tables or tables:
        print(f"\n## {name}\n")
        tables[name](given.quick)


def machine() -> str:
    """Name the processor, its cores, and the versions of the libraries."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = [f"{os.cpu_count()} x {models[0] if models else platform.processor()}"]
    found.append(f"Python {platform.python_version()}")
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def kernel(quick: bool, cases: list[Case] | None = None) -> None:
    """Compare ways to extract patches in memory with writing as many bytes."""
    ratios = []
    names = [name for name in WAYS if name != "bound"]

    def rows() -> Iterator[list[str]]:
        for case, dtype in product(SMALL if quick else cases or LISTED, DTYPES):
            pixels = case.images(dtype)
            made = {name: make(case, pixels) for name, make in WAYS.items()}
            ready = {name: way for name, way in made.items() if way}
            nbytes = case.samples * pixels.itemsize
            times = by_turns(ready, 1 if quick else 9, nbytes)
            share = {name: times["bound"] / seconds for name, seconds in times.items()}
            ratios.append(share["xpatches"])
            speed = nbytes / times["bound"] / 1e9
            found = (f"{share[name]:.2f}" if name in share else "" for name in names)
            yield [str(case), dtype, f"{speed:.1f}", *found]

    print_table(["shape / size / stride / rate", "dtype", "bound, GB/s", *names], rows())
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    print(f"\nxpatches/bound: geometric mean {mean:.2f}, worst {min(ratios):.2f}")


def others(quick: bool) -> None:
    """Compare other shapes than the listed ones."""
    kernel(quick, OTHERS)


def images(quick: bool) -> None:
    """Reduce the patches of a zarr image to one sample each, in every way there is."""
    ways = list(endtoend.WAYS)
    with tempfile.TemporaryDirectory() as folder:
        path, length = Path(folder) / "image.zarr", 512 if quick else 16384
        endtoend.write_image(path, length, 64 if quick else 512, "uint16")
        repeat = 1 if quick else 3
        whole = ways[:1] if quick else ways[:4]
        means = endtoend.compare(whole, str(path), 256, 128, "mean", repeat=repeat)
        maxima = endtoend.compare(ways[1:], str(path), 5, 1, "max", repeat=repeat)
        tables = {f"{length} x {length} uint16, 256 / 128, mean": means,
                  f"{length} x {length} uint16, 5 / 1, max": maxima}  # fmt: skip
        if not quick:
            wide = Path(folder) / "wide.zarr"
            endtoend.write_image(wide, 8192, 512, "float32")
            large = endtoend.compare(["extract", "reduce"], str(wide), 65, 1, "max", repeat=1)
            tables["8192 x 8192 float32, 65 / 1, max"] = large
        rows = [
            [title, way, f"{run['seconds']:.2f}", f"{run['MiB']:.0f}"]
            for title, runs in tables.items()
            for way, run in runs.items()
        ]
    print_table(["image, size / stride", "way", "seconds", "peak, MiB"], rows)


def engines(quick: bool) -> None:
    """Compare the engines, on threads and on a cluster of two processes."""
    ways = ["extract map_overlap", "extract region"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, length = Path(folder) / "image.zarr", 512 if quick else 8192
        endtoend.write_image(path, length, 64 if quick else 512, "uint16")
        image = endtoend.opened(path, None)
        cases = [(256, 256, "mean"), (256, 128, "mean"), (16, 8, "mean"), (5, 1, "max")]
        for size, stride, how in cases[-1:] if quick else cases:
            planned = image.patches(y=size, x=size, stride=stride).plan(engine="region")
            for cluster in (False, True):
                runs = endtoend.compare(
                    ways, str(path), size, stride, how, repeat=1 if quick else 3, cluster=cluster
                )
                seconds = [f"{runs[way]['seconds']:.2f}" for way in ways]
                amplification = f"{planned['read_amplification']:.2f}"
                where = "cluster" if cluster else "threads"
                rows.append([f"{size} / {stride}, {how}", where, *seconds, amplification])
    print_table(["size / stride", "on", "map_overlap, s", "region, s", "amplification"], rows)


def each(quick: bool) -> None:
    """Go through labelled patches one by one, beside xbatcher and xrpatcher."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, length = Path(folder) / "image.zarr", 512 if quick else 4096
        endtoend.write_image(path, length, 64 if quick else 512, "uint16")
        opened = endtoend.opened(path, None)
        sources = {"in memory": opened.load(), "opened, chunks=None": None, "opened, chunks={}": {}}
        for (where, chunks), (size, stride) in product(
            sources.items(), [(64, 64)] if quick else [(256, 128), (64, 64)]
        ):
            image = chunks if where == "in memory" else endtoend.opened(path, chunks)
            ways = peers.one_by_one(image, size, stride)
            p = image.patches(y=size, x=size, stride=stride)
            times, count = by_turns(ways, 1 if quick else 3, 2 * p.nbytes), len(p)
            speeds = (f"{count / seconds:.0f}" for seconds in times.values())
            rows.append([where, f"{size} / {stride}", *speeds])
    print_table(["image", "size / stride", *(f"{way}, /s" for way in ways)], rows)


def written(quick: bool) -> None:
    """Write patch datasets, beside writing the same patches from memory."""
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "image.zarr", Path(folder) / "out.zarr"
        endtoend.write_image(path, 512 if quick else 16384, 64 if quick else 512, "uint16")
        cases = [*product(("grid", "samples"), ((256, 128), (64, 64)))]
        for layout, (size, stride) in cases[::3] if quick else cases:
            ways = writing.WAYS[:1] if rows and quick else writing.WAYS
            given = (str(path), str(out), layout, size, stride, 1 if quick else 3)
            runs = writing.compare(ways, *given, repeat=1 if quick else 3)
            speeds = (f"{of['bytes'] / of['seconds'] / 1e6:.0f}" for of in runs.values())
            rows.append([layout, f"{size} / {stride}", *speeds])
    print_table(["layout", "size / stride", *(f"{way}, MB/s" for way in writing.WAYS)], rows)


def chunks(quick: bool) -> None:
    """Write and read patches of 256 x 256 with several chunks and shards, and both pipelines."""
    rows, names = [], ["write, MB/s", "one, ms", "in order, MB/s"]
    pipelines = [name for name in writing.PIPELINES if find_spec(name)]
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "image.zarr", Path(folder) / "out.zarr"
        endtoend.write_image(path, 512 if quick else 3712, 64 if quick else 512, "uint16")
        for chunk, shard in writing.CHUNKS:
            found: dict[str, dict[str, float]] = {}
            for pipeline in pipelines:
                runs = [
                    writing.store_and_read(path, out, chunk, shard, pipeline)
                    for _ in range(1 if quick else 5)
                ]
                found[pipeline] = {key: statistics.median(r[key] for r in runs) for key in runs[0]}
            row = [str(chunk), str(shard or "none"), f"{found['zarr']['stored, MB']:.0f}"]
            rows.append(row + [f"{of[name]:.1f}" for of in found.values() for name in names])
    heads = [f"{pipeline}: {name}" for pipeline in pipelines for name in names]
    print_table(["patches of a chunk", "of a shard", "stored, MB", *heads], rows)


def schedule(quick: bool) -> None:
    """Run many blocks that do nothing on a cluster, for what they cost the scheduler."""
    rows = [
        [f"{blocks:,}", f"{blocks / seconds:.0f}", str(tasks), f"{mib:.0f}"]
        for blocks, seconds, tasks, mib in writing.schedule(1000 if quick else 1_000_000)
    ]
    print_table(["blocks", "per second", "tasks held", "memory, MiB"], rows)


def reduce(quick: bool) -> None:
    """Reduce patches of an image in memory, beside SciPy and bottleneck where they can do it."""
    length = 256 if quick else 4096
    samples = np.random.default_rng(0).random((length, length), "f4")
    image = xr.DataArray(samples, dims=("y", "x"))
    rows = []
    for size, stride, rate in [(5, 1, 1), (65, 1, 1), (256, 128, 1), (5, 1, 3)]:
        p = image.patches(y=size, x=size, stride=stride, rate=rate)
        for how in ("max", "mean", "std", "argmax"):
            ways: dict[str, Callable[[], Any]] = {"xpatches": partial(p.reduce, how)}
            if stride == rate == 1 and how in ("max", "mean"):
                ways |= _filters(samples, size, how)
            times = by_turns(ways, 1 if quick else 3, 4 * samples.nbytes)
            found = [
                f"{times[name] * 1e3:.0f}" if name in times else ""
                for name in ("xpatches", "scipy", "bottleneck")
            ]
            rows.append([f"{size} / {stride} / {rate}", how, *found])
    print_table(
        ["size / stride / rate", "how", "xpatches, ms", "scipy, ms", "bottleneck, ms"], rows
    )


def _filters(samples: Any, size: int, how: str) -> dict[str, Callable[[], Any]]:
    ways: dict[str, Callable[[], Any]] = {}
    try:
        from scipy import ndimage

        name = "maximum_filter" if how == "max" else "uniform_filter"
        ways["scipy"] = lambda: getattr(ndimage, name)(samples, size)
    except ImportError:
        pass
    try:
        import bottleneck

        move = getattr(bottleneck, f"move_{how}")
        ways["bottleneck"] = lambda: move(move(samples, size, axis=0), size, axis=1)
    except ImportError:
        pass
    return ways


def stitch(quick: bool) -> None:
    """Stitch patches of 256 x 256 at stride 128 from a zarr dataset, in every way there is."""
    lengths = (512,) if quick else (1024, 2048, 4096, 16384)
    size, stride = (64, 32) if quick else (256, 128)
    found: dict[str, dict[int, dict[str, float]]] = {}
    columns = [(what, digits, n) for what, digits in (("seconds", 2), ("MiB", 0)) for n in lengths]
    for length in lengths:
        with tempfile.TemporaryDirectory() as folder:
            stitching.cut(Path(folder), length, size, stride)
            ways = [way for way in stitching.WAYS if length < 16384 or way in stitching.LARGE]
            repeat = 1 if quick else 3
            for way, of in stitching.compare(Path(folder), size, stride, ways, repeat).items():
                found.setdefault(way, {})[length] = of
    rows = [
        [way, *(f"{of[n][what]:.{digits}f}" if n in of else "" for what, digits, n in columns)]
        for way, of in found.items()
    ]
    print_table(["way", *(f"{n}, {what}" for what, _, n in columns)], rows)


def merge(quick: bool) -> None:
    """Merge patches of 256 x 256 at stride 128 that stand in memory."""
    lengths = (512,) if quick else (1024, 2048, 4096)
    size, stride = (64, 32) if quick else (256, 128)
    found: dict[str, list[str]] = {}
    for length in lengths:
        ways = stitching.in_memory(length, size, stride)
        for way, seconds in by_turns(ways, 1 if quick else 9).items():
            found.setdefault(way, []).append(f"{1000 * seconds:.1f}")
    print_table(["way", *(f"{n} x {n}, ms" for n in lengths)], ([w, *t] for w, t in found.items()))


def graphs(quick: bool) -> None:
    """Build and optimise graphs, beside a bare ``map_blocks`` over as many blocks."""
    rows = []
    for side in (4, 8) if quick else (10, 32, 100, 316):
        chunks = ((64,) * side,) * 2
        grids = {axis: AxisGrid(axis, 64 * side, 5, 1, padding="same") for axis in (0, 1)}
        out = plan.plan_blocks("region", grids, chunks, 2, 30 * 64 * 64 * 2).out_chunks
        image = da.zeros((64 * side,) * 2, chunks=64)

        def regions(grids: Any = grids, chunks: Any = chunks) -> Any:
            planned = plan.plan_blocks("region", grids, chunks, 2, 30 * 64 * 64 * 2)
            return dask.optimize(lazy.read(len, "source", planned, len, "u2"))  # type: ignore[arg-type]

        def bare(out: Any = out) -> Any:
            meta = np.empty((0,) * 4, "u2")
            return dask.optimize(da.map_blocks(len, chunks=out, dtype="u2", meta=meta))

        def exchanged(image: Any = image) -> Any:
            named = xr.DataArray(image, dims=("y", "x"))
            return dask.optimize(named.patches(y=5, x=5, stride=1, padding="same").extract().data)

        def overlapped(image: Any = image) -> Any:
            depth = {0: (2, 2), 1: (2, 2)}
            haloed = da.overlap.overlap(image, depth, boundary="none")
            return dask.optimize(haloed.map_blocks(len, dtype="u2", meta=np.empty((0, 0))))

        ways: dict[str, Callable[[], Any]] = {"region": regions, "bare map_blocks": bare}
        if side <= 100:
            ways |= {"map_overlap": exchanged, "dask's map_overlap": overlapped}
        times = by_turns(ways, 1 if quick else 3)
        tasks = [
            f"{len(ways[name]()[0].__dask_graph__()) / side**2:.1f}" if name in ways else ""
            for name in ("region", "map_overlap", "dask's map_overlap")
        ]
        seconds = [
            f"{times[name]:.3f}" if name in times else ""
            for name in ("region", "bare map_blocks", "map_overlap", "dask's map_overlap")
        ]
        rows.append([str(side**2), *seconds, *tasks])
    print_table(
        [
            "blocks",
            "region, s",
            "bare map_blocks, s",
            "map_overlap, s",
            "dask's map_overlap, s",
            "tasks per chunk: region",
            "map_overlap",
            "dask's",
        ],
        rows,
    )


def growth(quick: bool) -> None:
    """Measure how the cost grows with the image, the size, the stride and the dims."""
    scale = 8 if quick else 1
    series = {
        "image": [Case((1, n // scale, n // scale, 1), 5, 1, 1) for n in (512, 1024, 2048, 4096)],
        "size": [Case((1, 1024 // scale, 1024 // scale, 1), k, 1, 1) for k in (3, 5, 9, 17)],
        "stride": [Case((1, 2048 // scale, 2048 // scale, 1), 16, s, 1) for s in (2, 4, 8, 16)],
        "rate": [Case((1, 1024 // scale, 1024 // scale, 1), 5, 1, r) for r in (1, 2, 3, 4)],
        "dims": [Case((1, *[10 ** (6 // d)] * d, 1), 3, 1, 1) for d in (1, 2, 3)],
    }  # fmt: skip
    rows = []
    for name, cases in series.items():
        for case in cases:
            pixels = case.images("uint16")
            seconds = by_turns({"": partial(case.extract, pixels)}, 1 if quick else 5)[""]
            made = case.samples * 2
            rows.append(
                [
                    name,
                    str(case),
                    f"{made / 1e6:.0f}",
                    f"{seconds * 1e3:.1f}",
                    f"{made / seconds / 1e9:.1f}",
                ]
            )
    print_table(["what grows", "shape / size / stride / rate", "patches, MB", "ms", "GB/s"], rows)


_LONG = 2.0
"""Seconds from which on a way gets one turn."""


def by_turns(ways: dict[str, Callable[[], Any]], repeat: int, nbytes: int = 0) -> dict[str, float]:
    """Seconds that every way takes, the median of some turns; one turn where that takes long.

    Every other turn goes through the ways backwards: what a way leaves behind, in caches and in
    the allocator, is not always met by the same next one.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeat):
        for name, way in list(ways.items())[:: -1 if turn % 2 else 1]:
            if turn and times[name][0] > _LONG:
                continue
            np.ones(nbytes, "uint8")  # a virtual machine may have given its free memory back
            time.sleep(0.05)  # the threads of the way before may still be waiting busily
            start = time.perf_counter()
            made = way()
            times[name].append(time.perf_counter() - start)
            del made
    return {name: statistics.median(found) for name, found in times.items()}


def print_table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table in Markdown."""
    names = list(names)
    for row in chain((names, ["---"] * len(names)), rows):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
