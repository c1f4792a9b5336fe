"""Jobs that are killed, disks that fill up, stores that answer with errors."""

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stores import files, single_objects
from strategies import LONG
from xpatches.errors import JobError, PatchError
from xpatches.jobs.blocks import Job
from xpatches.jobs.folder import JOB
from xpatches.jobs.writer import LostError, Run
from xpatches.threads import available_cores

pytestmark = pytest.mark.usefixtures("single_objects")

JOB_CODE = """
    import time
    import xarray as xr, xpatches
    from xpatches.jobs import blocks
    from xpatches.datasets import chunks
    chunks.BLOCKS = 10**9
    plain = blocks.Job.write
    def write(self, number):
        with open({log!r}, "a") as log:
            log.write(f"{{number}}\\n")
        time.sleep({pause})
        return plain(self, number)
    blocks.Job.write = write
    if __name__ == "__main__":
        image = xr.open_zarr({image!r}, chunks=None, consolidated=False).image
        p = image.patches(y=16, x=16, stride=8)
        p.to_zarr({out!r}, chunks={{"y": 2, "x": 2}}, shards={{"y": 4, "x": 4}}, resume=True,
                  progress=False)
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "image.zarr"
    samples = np.random.default_rng(0).integers(0, 999, (200, 300)).astype("uint16")
    labelled = xr.DataArray(samples, {"x": np.arange(300.0)}, ("y", "x"), "image")
    labelled.chunk(y=50, x=50).to_dataset().to_zarr(path, consolidated=False)
    return path


def patches_of(image: Path) -> Any:
    opened = xr.open_zarr(image, chunks=None, consolidated=False).image
    return opened.patches(y=16, x=16, stride=8)


def write(image: Path, out: Any, **given: Any) -> Any:
    small = {"chunks": {"y": 2, "x": 2}, "shards": {"y": 4, "x": 4}}
    return patches_of(image).to_zarr(out, **small, progress=False, **given)


@pytest.fixture(scope="module")
def peace(image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects of a dataset that nothing disturbed."""
    out = tmp_path_factory.mktemp("peace") / "out.zarr"
    with single_objects():
        write(image, out)
    return files(out)


def code(image: Path, out: Path, log: Path, pause: float) -> str:
    of = {"image": str(image), "out": str(out), "log": str(log), "pause": pause}
    return textwrap.dedent(JOB_CODE.format(**of))


def marks(out: Path) -> set[str]:
    """Numbers of the blocks that are done; what a kill left of a file that was written is none."""
    names = {path.name for path in (out / JOB / "blocks" / "image").glob("*")}
    return {name for name in names if name.isdecimal()}


def start(image: Path, out: Path, log: Path, pause: float) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code(image, out, log, pause)])


def test_a_job_killed_at_any_moment_is_finished(
    image: Path, tmp_path: Path, peace: dict[str, bytes]
) -> None:
    out, log = tmp_path / "out.zarr", tmp_path / "log"
    chance = random.Random(0)
    kills = 0
    while kills < (100 if LONG else 20):
        job = start(image, out, log, pause=0.02)
        deadline = time.monotonic() + 60
        begun = len(log.read_text().split()) if log.exists() else 0
        # At a random moment of the setup, or after some blocks.
        if chance.random() < 0.5:
            while not out.exists() and time.monotonic() < deadline and job.poll() is None:
                time.sleep(0.001)
            time.sleep(chance.random() * 0.1)
        else:
            more = chance.randrange(1, 12)
            while job.poll() is None and time.monotonic() < deadline:
                if log.exists() and len(log.read_text().split()) >= begun + more:
                    break
                time.sleep(0.001)
        before = marks(out)
        job.kill()
        kills += 1
        finished = job.wait() == 0
        assert before <= marks(out) or finished
        if finished:
            assert files(out) == peace
            shutil.rmtree(out)
            log.unlink()
            continue
    recorded = marks(out)
    log.unlink(missing_ok=True)
    assert start(image, out, log, pause=0).wait() == 0
    redone = log.read_text().split() if log.exists() else []
    assert not recorded & set(redone)
    assert files(out) == peace


def test_a_full_disk_leaves_what_is_done(
    image: Path, tmp_path: Path, peace: dict[str, bytes]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=250k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs")
    try:
        with pytest.raises(JobError, match="No space left on device"):
            write(image, small / "out.zarr", retries=0)
        done = marks(small / "out.zarr")
        assert done
        subprocess.run(["mount", "-o", "remount,size=20M", str(small)], check=True)
        written: list[int] = []
        plain = Job.write

        def counted(self: Any, number: int) -> int:
            written.append(number)
            return plain(self, number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Job, "write", counted)
            write(image, small / "out.zarr", resume=True)
        assert not set(map(str, written)) & done
        assert files(small / "out.zarr") == peace
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("lost", ["everything", "zarr.json", "image/zarr.json"])
def test_a_store_that_is_removed_under_a_job_is_what_is_told_of(
    image: Path, tmp_path: Path, peace: dict[str, bytes], lost: str
) -> None:
    out, plain = tmp_path / "out.zarr", Job.write

    def remove(self: Any, number: int) -> int:
        if number == 20:
            if lost == "everything":
                out.rename(tmp_path / "elsewhere")
            else:
                (out / lost).unlink()
        if number == 3:
            raise OSError("gone")
        return plain(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "write", remove)
        with pytest.raises((PatchError, JobError), match=r"removed|failed") as caught:
            write(image, out, retries=0)
    if lost == "everything":
        assert isinstance(caught.value, LostError)
        assert not out.exists()
    else:
        assert isinstance(caught.value, JobError | LostError)
        assert any(failure.block == 3 for failure in caught.value.failures)
    write(image, out, **({"resume": True} if "image" in lost else {"overwrite": True}))
    assert files(out) == peace


def test_a_store_that_is_removed_after_a_check_does_not_come_back(
    image: Path, tmp_path: Path, peace: dict[str, bytes]
) -> None:
    out, checks, check = tmp_path / "out.zarr", itertools.count(), Run.check

    def remove(self: Run) -> None:
        check(self)
        if next(checks) == 30:
            out.rename(tmp_path / "elsewhere")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xpatches.jobs.writer.Run.check", remove)
        with pytest.raises(LostError, match="removed"):
            write(image, out, retries=0)
    assert not out.exists()
    write(image, out)
    assert files(out) == peace


def test_a_disk_that_becomes_read_only_under_a_job(
    image: Path, tmp_path: Path, peace: dict[str, bytes]
) -> None:
    out, moved, replace = tmp_path / "out.zarr", [0], os.replace

    def refuse(source: Any, target: Any) -> None:
        moved[0] += "image/c" in str(target)
        if moved[0] > 20:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xpatches.jobs.writer.os.replace", refuse)
        with pytest.raises((OSError, JobError), match="Read-only file system") as caught:
            write(image, out, retries=0)
    assert isinstance(caught.value, JobError)
    assert caught.value.failures
    write(image, out, resume=True)
    assert files(out) == peace


def test_an_unreadable_chunk_of_the_image(
    image: Path, tmp_path: Path, peace: dict[str, bytes]
) -> None:
    source, out = tmp_path / "image.zarr", tmp_path / "out.zarr"
    shutil.copytree(image, source)
    chunk = source / "image" / "c" / "2" / "3"
    content = chunk.read_bytes()
    chunk.write_bytes(content[: len(content) // 2])
    with pytest.raises(JobError) as caught:
        write(source, out, retries=1)
    assert 0 < len(caught.value.failures) < caught.value.blocks
    assert all("x=1" in failure.region for failure in caught.value.failures)
    chunk.write_bytes(content)
    write(source, out, resume=True)
    assert files(out) == peace


def test_stopping_leaves_what_is_done_and_says_how_to_go_on(
    image: Path, tmp_path: Path, peace: dict[str, bytes]
) -> None:
    out, log = tmp_path / "out.zarr", tmp_path / "log"
    job = subprocess.Popen(
        [sys.executable, "-c", code(image, out, log, 0.1)], stderr=subprocess.PIPE, text=True
    )
    while not (log.exists() and len(log.read_text().split()) > 4):
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    _, told = job.communicate(timeout=60)
    assert job.returncode
    blocks = marks(out)
    begun = log.read_text().split()
    assert blocks == set(begun)  # what had begun was finished
    assert f"stopped; {len(blocks)} of 54 blocks of store {out} are done and stay" in told
    log.unlink()
    assert start(image, out, log, pause=0).wait() == 0
    assert not blocks & set(log.read_text().split())
    assert files(out) == peace


def test_the_command_is_stopped_by_sigterm(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    command = [
        str(Path(sys.executable).with_name("xpatches")),
        *("extract", str(image), str(out), "--size", "y=16,x=16", "--stride", "2"),
        *("--chunks", "y=2,x=2", "--shards", "y=8,x=8", "--quiet"),
    ]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not [*(out / JOB / "blocks").glob("*/*")]:
        assert job.poll() is None
        time.sleep(0.01)
    job.terminate()
    _, told = job.communicate(timeout=60)
    assert job.returncode == 130
    assert told.startswith("xpatches: stopped; ")
    assert len(told.splitlines()) == 1
    assert "resume" in told


MAP_CODE = """
    import time
    import xarray as xr, xpatches
    from xpatches.jobs import blocks
    from xpatches.datasets import chunks, outputs
    chunks.BLOCKS = outputs.BLOCKS = 10**9
    plain = blocks.Job.write
    def write(self, number):
        with open({log!r}, "a") as log:
            log.write(f"{{self.folder}}:{{number}}\\n")
        time.sleep({pause})
        return plain(self, number)
    blocks.Job.write = write
    def model(batch):
        return batch - batch.mean(axis=(1, 2), keepdims=True)
    if __name__ == "__main__":
        image = xr.open_zarr({image!r}, chunks=None, consolidated=False).image.astype(float)
        p = image.patches(y=32, x=32, stride=16, padding="same")
        p.map_to_zarr({out!r}, model, materialize={runs!r}, chunks={{"y": 40, "x": 40}},
                      shards=False, max_bytes="1 MB", resume=True, progress=False)
"""


def test_a_map_killed_at_any_moment_is_finished(image: Path, tmp_path: Path) -> None:
    def go(name: str, pause: float) -> "subprocess.Popen[bytes]":
        places = {key: str(tmp_path / name / key) for key in ("out", "runs", "log")}
        made = textwrap.dedent(MAP_CODE.format(image=str(image), pause=pause, **places))
        return subprocess.Popen([sys.executable, "-c", made])

    (tmp_path / "peace").mkdir()
    (tmp_path / "killed").mkdir()
    assert go("peace", 0).wait() == 0
    expected = {place: files(tmp_path / "peace" / place) for place in ("out", "runs")}
    log, chance, kills = tmp_path / "killed" / "log", random.Random(0), 0
    while True:
        job = go("killed", 0.02)
        begun = len(log.read_text().split()) if log.exists() else 0
        more = chance.randrange(1, 25)
        while job.poll() is None:
            if kills < 6 and log.exists() and len(log.read_text().split()) >= begun + more:
                job.kill()
                kills += 1
                break
            time.sleep(0.001)
        if job.wait() == 0:
            break
    assert kills == 6
    lines = log.read_text().split()
    blocks = len((tmp_path / "peace" / "log").read_text().split())
    assert len(set(lines)) == blocks
    # Only what was underway in one of the threads was begun again.
    assert len(lines) <= blocks + available_cores() * kills
    for place, found in expected.items():
        assert files(tmp_path / "killed" / place) == found
