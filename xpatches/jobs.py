"""Write patch datasets as jobs: independent blocks, each written whole, recorded, and resumable.

First everything but the patches is made in memory and written: metadata, coords, attrs, and what
describes the job. Then tasks write blocks, each reading its own regions of the image, extracting
and writing whole stored objects; a mark beside the dataset says that it did, with a checksum of the
samples it read. Blocks of a dataset can therefore be written anywhere, in any order, again, and
not again.

A job that is resumed makes the same description anew and compares it with what is stored. Of the
blocks that are done it reads the samples under some again: if these have changed, so has the image.
"""

import heapq
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice
from math import prod
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
import zarr
from zarr.storage import LocalStore, MemoryStore

from xpatches.arrays import Array
from xpatches.errors import BlockFailure, JobError, PatchError
from xpatches.kernel import extract_block
from xpatches.layout import Layout
from xpatches.store import JOB, Folder, writing
from xpatches.workers import TICK, Window, Workers, workers_for

Reader: TypeAlias = Callable[[tuple[slice, ...]], Array]
"""Gives the samples of a region as NumPy, in any thread or process."""

_CHECKED = 1 << 30
"""Bytes of samples that are read again when a job is resumed, at most."""
_LOOKED_AT = 100
"""Blocks whose samples are, at most."""
_PAUSE = 0.5
"""Seconds before a block is tried again, twice as many each time."""


@dataclass(frozen=True)
class Part:
    """The patches of one variable."""

    name: str
    """Of the stored array."""
    read: Reader
    layout: Layout
    fill_value: Array
    encoding: Mapping[str, Any]
    """How xarray encodes the patches."""

    def samples(self, block: tuple[slice, ...]) -> "_Samples":
        """Read the samples under a block, or prepare to read them piece by piece."""
        return _Samples(self.read, self.layout.region(block))

    def cut(self, step: tuple[slice, ...], samples: "_Samples") -> Array:
        """Extract the patches of a step of a block."""
        layout = self.layout
        lengths = tuple(along.stop - along.start for along in step)
        patches: Array | None = None
        for piece in layout.pieces(step):
            made = extract_block(samples.of(piece.region), piece.spans, self.fill_value)
            if layout.flat:
                spatial = list(layout.spatial)
                behind = spatial[-1] + 1
                sizes = range(behind, behind + len(spatial))
                others = [axis for axis in range(made.ndim) if axis not in (*spatial, *sizes)]
                made = made.transpose(*spatial, *sizes, *others)
                made = made.reshape(-1, *made.shape[len(spatial) :])
            if made.shape == lengths:
                patches = made
            else:
                patches = np.empty(lengths, made.dtype) if patches is None else patches
                patches[piece.place] = made
        assert patches is not None
        return patches

    def checksum(self, block: tuple[slice, ...]) -> int:
        """Give the checksum of the samples under a block."""
        samples = _Samples(self.read)
        for region in self.layout.reads(block):
            samples.of(region)
        return samples.checksum


class _Samples:
    """Samples of an image: of a region that is read once, or of any; and their checksum."""

    def __init__(self, read: Reader, whole: tuple[slice, ...] | None = None) -> None:
        self._read = read
        self.checksum = 0
        self._starts = [along.start for along in whole or ()]
        self._held = self._fetch(whole) if whole else None

    def of(self, region: tuple[slice, ...]) -> Array:
        """Give the samples of a region."""
        if self._held is None:
            return self._fetch(region)
        pairs = zip(region, self._starts, strict=True)
        return self._held[
            tuple(slice(along.start - start, along.stop - start) for along, start in pairs)
        ]

    def _fetch(self, region: tuple[slice, ...]) -> Array:
        samples = self._read(region)
        contiguous = np.ascontiguousarray(samples).reshape(-1).view(np.uint8)
        self.checksum = zlib.crc32(contiguous.data, self.checksum)
        return samples


@dataclass(frozen=True)
class Job:
    """The blocks of a dataset, which can be written by any process that has this."""

    folder: Folder
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(len(part.layout) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all patches."""
        return sum(part.layout.itemsize * prod(part.layout.shape) for part in self.parts)

    def locate(self, number: int) -> tuple[Part, tuple[slice, ...]]:
        """Find a block by its number."""
        for part, stop in zip(
            self.parts, accumulate(len(part.layout) for part in self.parts), strict=True
        ):
            if number < stop:
                return part, part.layout.block(number - stop + len(part.layout))
        raise IndexError(number)

    def write(self, number: int) -> int:
        """Extract, write and record a block; the bytes of its patches."""
        part, block = self.locate(number)
        samples, nbytes = part.samples(block), 0
        for step in part.layout.steps(block):
            patches = part.cut(step, samples)
            nbytes += patches.nbytes
            variable = xr.Variable(part.layout.dims, patches, encoding=dict(part.encoding))
            encoded = xr.conventions.encode_cf_variable(variable, name=part.name)
            self._arrays[part.name][step] = encoded.to_numpy()
        self.folder.put(_mark(number), b"%d" % samples.checksum)
        return nbytes

    def checksum(self, number: int) -> int:
        """Give the checksum of the samples under a block."""
        part, block = self.locate(number)
        return part.checksum(block)

    def describe(self, number: int) -> str:
        """Say which patches a block holds, and which samples they are cut from."""
        part, block = self.locate(number)
        layout = part.layout
        patches = ", ".join(
            f"{dim}={along.start}:{along.stop}"
            for dim, axis, along in zip(layout.dims, layout.axes, block, strict=True)
            if axis is not None or (layout.flat and dim == layout.dims[0])
        )
        regions = layout.reads(block)
        samples = ", ".join(
            f"{layout.grids[axis].dim}={min(r[axis].start for r in regions)}:"
            f"{max(r[axis].stop for r in regions)}"
            for axis in layout.spatial
        )
        return f"{part.name!r}, patches {patches} from samples {samples}"

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        # Patches that are all fill value are written, too: -0.0 and NaN's bits are kept, and zarr
        # need not compare every chunk with the fill value, in its one thread for all.
        arrays = {}
        for part in self.parts:
            path = self.folder.key(part.name)
            stored: Any = zarr.open_array(self.folder.store, path=path, mode="r+")
            with_config: Any = zarr.AsyncArray
            config = {"write_empty_chunks": True}
            arrays[part.name] = zarr.Array(with_config(stored.metadata, stored.store_path, config))
        return arrays


def _mark(number: int) -> str:
    return f"{JOB}/blocks/{number}"


class Report:
    """What is told of a job while it runs; this one tells nothing."""

    def begin(self, blocks: int, done: int, nbytes: int) -> None:
        """So many blocks there are, of so many bytes in all, and so many are done already."""

    def block(self, nbytes: int) -> None:
        """Another block is written, of so many bytes of patches."""

    def end(self) -> None:
        """No more blocks will be."""


def write_job(
    job: Job,
    template: xr.Dataset,
    encoding: Mapping[str, Mapping[str, Any]],
    *,
    resume: bool,
    overwrite: bool,
    retries: int,
    report: Report,
) -> None:
    """Write a dataset, or the rest of it.

    Parameters
    ----------
    job
        The blocks.
    template
        The dataset; the variables that the job writes hold one dask chunk that is never computed.
    encoding
        As in `xarray.Dataset.to_zarr`.
    resume, overwrite, retries
        As in `Patches.to_zarr`.
    report
        Is told of the progress.

    Raises
    ------
    PatchError
        If the store is in use, holds something already, or something else than is to be resumed.
    JobError
        If blocks failed.
    """
    folder = job.folder
    first = _prepared(template, encoding)
    check_state(folder, resume, overwrite)  # touches nothing if it refuses
    with writing(folder) as lost:
        state = check_state(folder, resume, overwrite)  # by now nobody else changes it
        if state in ("writing", "complete") and resume:
            _check_same(first, folder)
        else:
            _set_up(first, folder)
        with workers_for(job) as workers:
            if state == "complete" and resume:
                kept = _kept_checksums(folder)
                _check_source(job, {int(n): b"%d" % of for n, of in kept.items()}, workers)
                _finish(job, kept)
                report.begin(len(job), len(job), job.nbytes)
                report.end()
                return
            done = [number for number in done_blocks(folder) if number < len(job)]
            looked_at = _checked(job, done)
            _check_source(job, {n: folder.get(_mark(n)) for n in looked_at}, workers)
            report.begin(len(job), len(done), job.nbytes)
            try:
                failures = _run(job, set(done), workers, retries, report, lost)
            except KeyboardInterrupt:
                count = len(done_blocks(folder))
                raise KeyboardInterrupt(
                    f"stopped; {count} of {len(job)} blocks of store {folder} are done and stay, "
                    "resume=True goes on"
                ) from None
            finally:
                report.end()
        if failures:
            raise JobError(str(folder), len(job), failures)
        missing = len(job) - len(done_blocks(folder))
        if missing > 0:
            raise PatchError(
                f"store {folder} lacks {missing} of {len(job)} blocks, although workers wrote "
                "them; give a store that all of them share, such as a path or a URL"
            )
        marks = {n: folder.get(_mark(n)) for n in _checked(job, range(len(job)))}
        _finish(job, {str(n): int(of) for n, of in marks.items() if of})


def _prepared(template: xr.Dataset, encoding: Mapping[str, Any]) -> dict[str, bytes]:
    """Give all objects of the dataset but the patches."""
    memory = MemoryStore()
    try:
        template.to_zarr(
            memory, mode="w", compute=False, encoding=encoding, consolidated=False, zarr_format=3
        )
    except Exception as error:  # whatever xarray and zarr raise for what they cannot store
        notes = " ".join(str(note).split("\n")[0] for note in getattr(error, "__notes__", []))
        raise PatchError(
            f"the dataset cannot be stored: {error} {notes}; change the attrs, coords or encoding"
        ) from error
    made = Folder(memory)
    return {name: made.get(name) or b"" for name in sorted(made.names())}


def state_of(folder: Folder) -> str:
    """Tell what lies in a folder."""
    if folder.get(f"{JOB}/complete") is not None:
        return "complete"
    if folder.get(f"{JOB}/ready") is not None:
        return "writing"
    if folder.get(f"{JOB}/zarr.json") is not None:
        return "begun"
    root = folder.document("zarr.json")
    if root is not None:
        return "complete" if JOB in (root.get("attributes") or {}) else "foreign zarr"
    others = (name for name in folder.names() if not name.startswith(f"{JOB}/"))
    return "nothing" if next(others, None) is None else "foreign"


def done_blocks(folder: Folder) -> list[int]:
    """List the blocks that are recorded as written."""
    names = folder.names(f"{JOB}/blocks/")
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def check_state(folder: Folder, resume: bool, overwrite: bool) -> str:
    """Tell what lies in a folder, if a job may be written there.

    Raises
    ------
    PatchError
        If it may not.
    """
    if resume and overwrite:
        raise PatchError("resume and overwrite exclude each other; give one of them")
    state = state_of(folder)
    if state == "nothing":
        return state
    if state == "foreign":
        raise PatchError(
            f"store {folder} holds files that are no zarr of format 3; give another path, or "
            "remove them"
        )
    if resume and state == "foreign zarr":
        raise PatchError(
            f"store {folder} holds no patch dataset that could be resumed; give another path"
        )
    if not (resume or overwrite):
        found = "a zarr store" if state == "foreign zarr" else "a patch dataset"
        part = "" if state in ("complete", "foreign zarr") else ", incomplete"
        raise PatchError(
            f"store {folder} exists already, {found}{part}; resume=True finishes an incomplete "
            "dataset, overwrite=True replaces what is there"
        )
    return state


def _set_up(objects: Mapping[str, bytes], folder: Folder) -> None:
    """Remove what there is, and write everything but the patches.

    Raises
    ------
    PatchError
        If there are files that are not zarr's.
    """
    names = folder.names()
    arrays = {name.removesuffix("zarr.json") for name in names if name.endswith("/zarr.json")}
    for name in names:
        parents = (name[: i + 1] for i, letter in enumerate(name) if letter == "/")
        ours = name.startswith(f"{JOB}/") or name.endswith((".partial", "zarr.json"))
        if not ours and not arrays.intersection(parents):
            raise PatchError(
                f"store {folder} holds a file that is no zarr, {name}; remove it, or give another "
                "path"
            )
    group = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()
    folder.put(f"{JOB}/zarr.json", group)
    for mark in ("complete", "ready"):
        folder.remove(f"{JOB}/{mark}")
    kept = {f"{JOB}/zarr.json", f"{JOB}/writer"}
    folder.remove_all(name for name in names if name not in kept)
    folder.prune()
    for name, content in objects.items():
        folder.put(name, content)
    folder.put(f"{JOB}/ready", b"")


def _check_same(objects: Mapping[str, bytes], folder: Folder) -> None:
    """Refuse to resume what is not the same job."""
    differences: list[str] = []
    for name, ours in objects.items():
        stored = folder.get(name)
        if stored is None:
            differences.append(f"{name} is missing")
        elif stored != ours and name.endswith("zarr.json"):
            what = name.removesuffix("zarr.json").strip("/")
            for difference in _different(what, folder.document(name), json.loads(ours)):
                if not difference.startswith(f"attributes.{JOB}.checksums,"):  # written at the end
                    differences.append(difference)
        elif stored != ours:
            differences.append(f"values of {name.split('/c')[0]!r}")
    if differences:
        shown = "; ".join(dict.fromkeys(differences[:5]))
        raise PatchError(
            f"store {folder} is of another job, it differs in: {shown}; "
            "resume with the same arguments, image and versions, or give another store"
        )


def _different(what: str, stored: Any, ours: Any) -> Iterator[str]:
    """Name what differs between two documents, those inside of strings included."""
    if isinstance(stored, str) and isinstance(ours, str) and stored[:1] == ours[:1] == "{":
        stored, ours = json.loads(stored), json.loads(ours)
    if isinstance(stored, dict) and isinstance(ours, dict):
        for key in dict.fromkeys([*stored, *ours]):
            yield from _different(f"{what}.{key}".strip("."), stored.get(key), ours.get(key))
    elif isinstance(stored, list) and isinstance(ours, list) and len(stored) == len(ours):
        for number, pair in enumerate(zip(stored, ours, strict=True)):
            yield from _different(f"{what}[{number}]", *pair)
    elif stored != ours:
        yield f"{what}, stored {stored!r}, now {ours!r}"


def _checked(job: Job, done: Sequence[int]) -> list[int]:
    """Choose some of the blocks that are done, whose samples are read again: the same each time."""
    chosen: list[int] = []
    size = 0
    # Any part of the order spreads over all of them.
    for number in heapq.nsmallest(_LOOKED_AT, done, key=lambda number: zlib.crc32(b"%d" % number)):
        part, block = job.locate(number)
        for region in part.layout.reads(block):
            size += part.layout.itemsize * prod(along.stop - along.start for along in region)
        if chosen and size > _CHECKED:
            break
        chosen.append(number)
    return chosen


def _check_source(job: Job, marks: Mapping[int, bytes | None], workers: Workers) -> None:
    """Refuse an image that has changed: read again what some finished blocks were cut from."""
    for number, found in Window(workers, "checksum").over(marks):
        if isinstance(found, BaseException):
            raise found
        if marks[number] and b"%d" % found != marks[number]:  # one that is torn says nothing
            raise PatchError(
                f"the image has changed: block {number} of store {job.folder}, "
                f"{job.describe(number)}, was cut from other samples; "
                "resume with the same image, or give another store"
            )


def _run(
    job: Job,
    done: Container[int],
    workers: Workers,
    retries: int,
    report: Report,
    lost: threading.Event,
) -> list[BlockFailure]:
    """Write the blocks that are not done; those that fail are tried again after the others."""
    window, tries = Window(workers, "write"), Counter[int]()
    numbers = (number for number in range(len(job)) if number not in done)
    again: list[tuple[float, int]] = []
    failures: list[BlockFailure] = []
    try:
        while True:
            room = window.room
            some = list(islice(numbers, room))
            while len(some) < room and again and again[0][0] <= time.monotonic():
                some.append(heapq.heappop(again)[1])
            if some:
                window.add(some)
            if not len(window) and not again:
                return failures
            if lost.is_set():
                raise PatchError(
                    f"store {job.folder} is being written by someone else by now; "
                    "finish one of the jobs and resume"
                )
            taken = window.take(TICK)
            if taken is None:
                continue
            number, made = taken
            if not isinstance(made, BaseException):
                report.block(made)
            elif tries[number] < retries:
                tries[number] += 1
                pause = _PAUSE * 2 ** (tries[number] - 1)
                heapq.heappush(again, (time.monotonic() + pause, number))
            else:
                failures.append(BlockFailure(number, job.describe(number), made))
    except BaseException:
        for _, made in window.drain():
            if not isinstance(made, BaseException):
                report.block(made)
        raise


def _kept_checksums(folder: Folder) -> dict[str, int]:
    """Give the checksums that a finished dataset keeps, by number of the block."""
    root = folder.document("zarr.json") or {}
    return dict(json.loads(root["attributes"][JOB]).get("checksums", {}))


def _finish(job: Job, checksums: Mapping[str, int]) -> None:
    """Mark the dataset as complete, keep some checksums, and remove what the job needed."""
    folder = job.folder
    root = folder.document("zarr.json") or {}
    described = json.loads(root["attributes"][JOB])
    root["attributes"][JOB] = json.dumps({**described, "checksums": checksums})
    folder.put("zarr.json", json.dumps(root, indent=2).encode())
    if isinstance(folder.store, LocalStore):  # what killed processes had not yet renamed
        folder.remove_all(name for name in folder.names() if name.endswith(".partial"))
    folder.put(f"{JOB}/complete", b"")
    names = [f"{JOB}/{name}" for name in folder.names(f"{JOB}/")]
    kept = {f"{JOB}/complete", f"{JOB}/writer"}
    folder.remove_all(name for name in names if name not in kept)
    folder.remove(f"{JOB}/complete")
