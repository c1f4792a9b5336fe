"""Writers that stand still, are killed, or race: real processes, and stores reached by two ways."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import LoggingStore, MemoryStore

import xpatches
from stores import EndError, ending_after, files
from strategies import LONG
from xpatches.errors import PatchError
from xpatches.jobs import lock
from xpatches.jobs.folder import JOB, Folder
from xpatches.jobs.open import open_folder
from xpatches.jobs.state import StoredDataset
from xpatches.jobs.writer import LostError, Run

QUIET: dict[str, Any] = {"progress": False}
CODE = """
    import sys, time
    from pathlib import Path
    import numpy as np, xarray as xr, xpatches
    from xpatches.jobs import blocks
    from xpatches.datasets import chunks
    from xpatches.jobs import lock
    chunks.BLOCKS = 10**9
    lock.LEASE = {lease}
    plain = blocks.Job.write
    def write(self, number):
        done = plain(self, number)
        Path({log!r}).open("a").write(f"{{number}}\\n")
        time.sleep({pause})
        return done
    blocks.Job.write = write
    image = xr.DataArray(np.full((80, 80), {value}, "u2"), dims=("y", "x"), name="image")
    p = image.patches(y=8, x=8)
    p.to_zarr({out!r}, chunks={{"y": 2, "x": 2}}, shards=False, progress=False, **{how!r})
"""
BLOCKS = 25


class Places:
    """Where processes write and tell of their blocks."""

    def __init__(self, folder: Path) -> None:
        self.out, self.folder = folder / "out.zarr", folder
        self.jobs: list[subprocess.Popen[str]] = []

    def start(
        self, value: int, *, pause: float = 0, lease: float = 0.5, how: Any = None, log: str = "log"
    ) -> "subprocess.Popen[str]":
        """Start a job that cuts an image of one value."""
        given = {"out": str(self.out), "log": str(self.folder / log), "lease": lease}
        code = textwrap.dedent(CODE.format(value=value, pause=pause, how=how or {}, **given))
        job = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        self.jobs.append(job)
        return job

    def write(self, value: int, **how: Any) -> None:
        """Write the same as such a job, here."""
        chunks = {"y": 2, "x": 2}
        image_of(value).patches(y=8, x=8).to_zarr(
            self.out, chunks=chunks, shards=False, **how, **QUIET
        )

    def wait(self, job: "subprocess.Popen[str]", blocks: int, log: str = "log") -> None:
        """Wait until a job has written some blocks."""
        while not self.written(log) >= blocks:
            assert job.poll() is None, job.communicate()
            time.sleep(0.005)

    def written(self, log: str = "log") -> int:
        path = self.folder / log
        return len(path.read_text().split()) if path.exists() else 0

    def values(self) -> set[int]:
        opened: Any = xpatches.open_patches(self.out)
        return set(map(int, np.unique(opened)))


@pytest.fixture
def places(tmp_path: Path, single_objects: None) -> Iterator[Places]:
    places = Places(tmp_path)
    yield places
    for job in places.jobs:
        if job.poll() is None:
            job.kill()
            job.communicate()
        assert job.stderr is not None
        job.stderr.close()


def image_of(value: int) -> xr.DataArray:
    return xr.DataArray(np.full((80, 80), value, "u2"), dims=("y", "x"), name="image")


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}])
def test_a_writer_that_stood_still_does_not_go_on_after_another(
    places: Places, monkeypatch: pytest.MonkeyPatch, how: dict[str, bool]
) -> None:
    monkeypatch.setattr(lock, "LEASE", 0.5)
    job = places.start(1, pause=0.05)
    places.wait(job, 4)
    job.send_signal(signal.SIGSTOP)
    value = 2 if "overwrite" in how else 1
    places.write(value, **how)
    before = files(places.out)
    job.send_signal(signal.SIGCONT)
    _, told = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "LostError" in told
    assert files(places.out) == before
    assert places.values() == {value}


def test_a_straggling_worker_of_a_killed_job_writes_nothing_more(places: Places) -> None:
    places.write(1)
    run, chunk = Run(open_folder(places.out), "a" * 32, 1), "image/c/0/0/0/0"

    before = files(places.out)
    with lock.writing(open_folder(places.out), print) as (current, _):
        with pytest.raises(LostError):
            run.publish({chunk: b"late"})
        with pytest.raises(LostError):
            run.remove_all([chunk])
        current.check()
    assert files(places.out) == before


def test_a_killed_job_starts_again_without_waiting(places: Places) -> None:
    job = places.start(1, pause=0.05, lease=10**6)
    places.wait(job, 4)
    job.kill()
    job.communicate()
    again = places.start(1, lease=10**6, how={"resume": True})  # a wait would last for days
    _, told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    assert places.values() == {1}


def test_a_holder_of_another_machine_is_waited_for(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same host name and process number in another container, and a lock that says nothing."""
    monkeypatch.setattr(lock, "LEASE", 60)
    job = places.start(1, pause=5, lease=1)  # whose heart beats often
    places.wait(job, 1)
    claim = places.out / JOB / "writer" / "1"
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "boot": "another"}))
    told: list[str] = []
    with pytest.raises(PatchError, match=rf"is being written by process {job.pid} on "):
        lock.wait_until_free(open_folder(places.out), told.append)
    assert len(told) == 1
    job.kill()
    job.communicate()
    monkeypatch.setattr(lock, "LEASE", 0.5)
    assert lock.wait_until_free(open_folder(places.out), told.append)
    assert len(told) == 2


def test_of_many_that_start_at_once_one_writes(places: Places) -> None:
    jobs = [places.start(value, pause=0.02, lease=20) for value in range(1, 7)]
    told = [job.communicate(timeout=120)[1] for job in jobs]
    won = [value for value, job in enumerate(jobs, 1) if job.returncode == 0]
    assert len(won) == 1, told
    assert places.values() == {*won}
    assert places.written() == BLOCKS
    assert not (places.out / JOB).exists()


def test_what_another_job_writes_while_a_store_is_looked_at_is_not_foreign(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Folder.names

    def names(self: Folder, prefix: str = "") -> list[str]:
        monkeypatch.undo()  # for all that follow
        places.write(1)
        return plain(self, prefix)

    monkeypatch.setattr(Folder, "names", names)
    assert StoredDataset(open_folder(places.out)).state() == "complete"


@pytest.mark.parametrize("seed", range(25 if LONG else 3))
def test_an_overwrite_that_is_killed_is_resumed_or_overwritten(places: Places, seed: int) -> None:
    chance = np.random.default_rng(seed)
    places.write(1)
    for value in range(2, 6):
        job = places.start(value, pause=0.01, how={"overwrite": True})
        while not (places.out / JOB).exists() and job.poll() is None:
            time.sleep(0.0005)
        time.sleep(chance.random() * 0.3)
        job.kill()
        job.communicate()
        how = {"resume": True} if chance.random() < 0.5 else {"overwrite": True}
        again = places.start(value, how=how)
        _, told = again.communicate(timeout=120)
        if again.returncode and "is of another job" not in told and "image has changed" not in told:
            raise AssertionError(told)
        if again.returncode:  # it was killed before it had begun
            assert places.values() == {value - 1}
            places.write(value, overwrite=True)
        assert places.values() == {value}
        assert not (places.out / JOB).exists()


@pytest.mark.parametrize(
    ("there", "then"),
    [("zarr", "overwrite"), ("patches", "overwrite"), ("patches", "resume")],
)
def test_a_job_that_ends_at_any_step_is_resumed_or_overwritten(
    tmp_path: Path, there: str, then: str
) -> None:
    def write(value: int, out: Path, **options: Any) -> None:
        p = image_of(value)[:24, :24].patches(y=8, x=8)
        p.to_zarr(out, chunks={"y": 2, "x": 2}, shards=False, **options, **QUIET)

    before, peace = tmp_path / "before.zarr", tmp_path / "peace.zarr"
    if there == "zarr":
        xr.Dataset({"x_origin": ("x", np.arange(6)), "other": ("x", np.ones(6))}).to_zarr(
            before, zarr_format=3, consolidated=False, encoding={"x_origin": {"chunks": (2,)}}
        )
    else:
        write(1, before)
    write(2, peace)
    for last in range(1000):
        out = tmp_path / f"{last}.zarr"
        shutil.copytree(before, out)
        try:
            with ending_after(last):
                write(2, out, overwrite=True, retries=0)
            break
        except EndError:
            pass
        try:
            write(2, out, **{then: True})
        except PatchError as error:
            if then == "overwrite" or "image has changed" not in str(error):
                raise
            write(2, out, overwrite=True)  # it ended before it had begun
        assert files(out) == files(peace)
    assert 20 < last < 999


def image_at(path: Path) -> xr.DataArray:
    image = xr.DataArray(
        np.arange(6400).reshape(80, 80).astype("u2"), dims=("y", "x"), name="image"
    )
    image.chunk(y=40, x=40).to_dataset().to_zarr(path, consolidated=False)
    return image


def test_the_image_is_found_behind_a_bind_mount(tmp_path: Path) -> None:
    image_at(tmp_path / "image.zarr")
    (tmp_path / "mounted").mkdir()
    bind = ["mount", "--bind", str(tmp_path), str(tmp_path / "mounted")]
    if subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("cannot mount")
    try:
        before = files(tmp_path / "image.zarr")
        p = xr.open_zarr(tmp_path / "image.zarr", chunks=None, consolidated=False).image.patches(
            y=8, x=8
        )
        with pytest.raises(PatchError, match="is where the image lies"):
            p.to_zarr(tmp_path / "mounted" / "image.zarr", overwrite=True, **QUIET)
        assert files(tmp_path / "image.zarr") == before
    finally:
        subprocess.run(["umount", str(tmp_path / "mounted")], check=True)


def test_the_image_is_found_by_another_store_class(tmp_path: Path) -> None:
    obstore = pytest.importorskip("obstore.store")
    from zarr.storage import LocalStore, ObjectStore

    class Odd(LocalStore):
        """Called otherwise, and nothing more is known of it."""

        def __str__(self) -> str:
            return f"odd://{id(self)}"

    image_at(tmp_path / "image.zarr")
    before = files(tmp_path / "image.zarr")
    by_obstore = ObjectStore(obstore.LocalStore(str(tmp_path / "image.zarr")), read_only=True)
    for source in (by_obstore, Odd(tmp_path / "image.zarr", read_only=True)):
        opened = xr.open_zarr(source, chunks=None, consolidated=False).image
        targets = [
            Odd(tmp_path / "image.zarr"),
            ObjectStore(obstore.LocalStore(str(tmp_path / "image.zarr"))),
            str(tmp_path / "image.zarr"),
        ]
        for target in targets:
            with pytest.raises(PatchError, match="is where the image lies"):
                opened.patches(y=8, x=8).to_zarr(target, overwrite=True, **QUIET)
    assert files(tmp_path / "image.zarr") == before


def test_hard_links_to_the_image_are_replaced_not_written_through(tmp_path: Path) -> None:
    image = image_at(tmp_path / "image.zarr")
    shutil.copytree(tmp_path / "image.zarr", tmp_path / "linked.zarr", copy_function=os.link)
    before = files(tmp_path / "image.zarr")
    p = xr.open_zarr(tmp_path / "image.zarr", chunks=None, consolidated=False).image.patches(
        y=8, x=8
    )
    made: Any = p.to_zarr(tmp_path / "linked.zarr", overwrite=True, **QUIET)
    assert files(tmp_path / "image.zarr") == before
    np.testing.assert_array_equal(made, image.patches(y=8, x=8).extract())


@pytest.mark.filterwarnings("ignore:The `asynchronous`")
def test_the_image_is_found_in_memory_that_is_opened_twice() -> None:
    from zarr.storage import FsspecStore

    url = f"memory://images/{os.getpid()}"
    image = xr.DataArray(np.arange(64.0).reshape(8, 8), dims=("y", "x"), name="image")
    image.to_dataset().to_zarr(FsspecStore.from_url(url), consolidated=False)
    opened = xr.open_zarr(
        FsspecStore.from_url(url, read_only=True), chunks=None, consolidated=False
    ).image
    with pytest.raises(PatchError, match="is where the image lies"):
        opened.patches(y=4, x=4).to_zarr(f"{url}/", overwrite=True, **QUIET)
    np.testing.assert_array_equal(opened, image)
    made: Any = opened.patches(y=4, x=4).to_zarr(f"{url}-out", **QUIET)
    np.testing.assert_array_equal(made, image.patches(y=4, x=4).extract())


FOREIGN = ["c/src/main.c", "2024", "image/c/NOTES.txt", "image/c/0/99/0/0", f"{JOB}/blocks/notes"]
FOREIGN += [f"{JOB}/mine", f"{JOB}/runs/notes", f"{JOB}/blocks/image/NOTES.txt", "image/2024"]


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others_are_not_removed(places: Places, name: str) -> None:
    places.write(1)
    path = places.out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    before = files(places.out)
    with pytest.raises(PatchError, match=f"holds what is no zarr: {name}; remove it"):
        places.write(2, overwrite=True)
    assert files(places.out) == before


@pytest.mark.parametrize("name", ["image/c", "image/c/0", "zarr.json", JOB])
def test_links_are_refused_before_anything_is_touched(places: Places, name: str) -> None:
    places.write(1)
    elsewhere = places.folder / "elsewhere"
    path = places.out / name
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.mkdir()
    path.symlink_to(elsewhere)
    before, outside = files(places.out), files(places.folder)
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(PatchError, match=f"holds links, {path}, "):
            places.write(2, **how)
    assert files(places.out) == before
    assert files(places.folder) == outside


def test_a_store_that_cannot_keep_others_out_is_refused_without_lock_false() -> None:
    class Careless(MemoryStore):
        async def set_if_not_exists(self, key: str, value: Any) -> None:
            await self.set(key, value)

    image = xr.DataArray(np.arange(64).reshape(8, 8), dims=("y", "x"), name="image")
    p = image.patches(y=4, x=4)
    refused = {
        "is not known to create objects exclusively": LoggingStore(
            MemoryStore(), log_level="ERROR"
        ),
        "does not create objects exclusively": Careless(),
    }
    for message, store in refused.items():
        with pytest.raises(PatchError, match=f"{message}.*lock=False if nobody else writes"):
            p.to_zarr(store, **QUIET)
        made: Any = p.to_zarr(store, lock=False, **QUIET)
        np.testing.assert_array_equal(made, p.extract())
        p.to_zarr(store, lock=False, overwrite=True, **QUIET)
        assert not [name for name in open_folder(store).names() if JOB in name]


def test_fsync_reaches_every_file_before_it_is_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    plain, replace = os.fsync, os.replace
    unsynced: list[Any] = []

    def fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        plain(descriptor)

    def moved(source: Any, target: Any) -> None:
        if not str(target).endswith(("removed", "claim")):
            unsynced.extend([target] * (os.stat(source).st_ino not in synced))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", moved)
    image = xr.DataArray(np.arange(64).reshape(8, 8), dims=("y", "x"), name="image")
    p = image.patches(y=4, x=4)
    p.to_zarr(tmp_path / "out.zarr", fsync=True, **QUIET)
    assert not unsynced
    for folder in ("image/c/0/0/0", "image/c", "image", ""):
        assert os.stat(tmp_path / "out.zarr" / folder).st_ino in synced
    with pytest.raises(PatchError, match="fsync=True is for stores on disks, got "):
        p.to_zarr(MemoryStore(), fsync=True, **QUIET)
