"""Jobs on object storage: a real S3 protocol server on loopback."""

import asyncio
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.core.sync import sync
from zarr.storage import FsspecStore, ObjectStore

import xpatches
from xpatches.errors import JobError, PatchError
from xpatches.jobs import job as jobs
from xpatches.jobs.conditional_puts import exclusive
from xpatches.jobs.folder import JOB, Folder

pytest.importorskip("moto")
pytest.importorskip("s3fs")

import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

# What the server's libraries warn of is theirs.
pytestmark = pytest.mark.filterwarnings("default")


class Failing:
    """A server that answers some requests with an error."""

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.share = 0.0
        self.chance = random.Random(0)
        self.failed = 0
        self.hold: Callable[[str, str], None] = lambda method, path: None
        """Is called with every request before it is answered."""

    def __call__(self, environ: Any, start_response: Any) -> Any:
        if self.chance.random() < self.share:
            self.failed += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        self.hold(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        return self.app(environ, start_response)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Failing, str]]:
    app = Failing()
    http = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield app, f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes all sessions: those that stores open in zarr's own event loop, nothing else does."""
    opened: dict[Any, asyncio.AbstractEventLoop] = {}
    set_session = s3fs.S3FileSystem.set_session

    async def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        session = await set_session(self, *args, **kwargs)
        opened[session] = asyncio.get_running_loop()
        return session

    monkeypatch.setattr(s3fs.S3FileSystem, "set_session", recorded)
    yield
    s3fs.S3FileSystem.clear_instance_cache()
    for session, loop in opened.items():
        asyncio.run_coroutine_threadsafe(session.close(), loop).result()


@pytest.fixture
def bucket(
    server: tuple[Failing, str],
    monkeypatch: pytest.MonkeyPatch,
    sessions: None,
    single_objects: None,
) -> Iterator[Any]:
    app, address = server
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_ENDPOINT_URL": address,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jobs, "_PAUSE", 0.0)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    app.share, app.hold = 0.0, lambda method, path: None
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(endpoint_url=address)
    files.mkdir("bucket")
    yield files
    app.share, app.hold = 0.0, lambda method, path: None
    files.rm("bucket", recursive=True)


SMALL: dict[str, Any] = {"chunks": {"y": 1, "x": 1}, "shards": {"y": 2, "x": 2}, "progress": False}


CUT = {"y": 16, "x": 16, "stride": 8}


def image_of() -> xr.DataArray:
    samples = np.random.default_rng(0).integers(0, 999, (60, 70)).astype("uint16")
    return xr.DataArray(samples, {"x": np.arange(70.0)}, ("y", "x"), "image")


def patches() -> Any:
    return image_of().patches(**CUT)


def contents(files: Any, path: str) -> dict[str, bytes]:
    files.invalidate_cache()
    return {name.removeprefix(path): files.cat_file(name) for name in files.find(path)}


def test_a_url_is_written_and_read(bucket: Any, tmp_path: Path) -> None:
    made = patches().to_zarr("s3://bucket/out.zarr", **SMALL)
    xr.testing.assert_identical(made.compute(), patches().extract())
    assert not [name for name in contents(bucket, "bucket/out.zarr") if JOB in name]
    with pytest.raises(PatchError, match="exists already"):
        patches().to_zarr("s3://bucket/out.zarr", **SMALL)
    patches().to_zarr(tmp_path / "out.zarr", **SMALL)
    local = {
        f"/{path.relative_to(tmp_path / 'out.zarr')}": path.read_bytes()
        for path in (tmp_path / "out.zarr").rglob("*")
        if path.is_file()
    }
    assert contents(bucket, "bucket/out.zarr") == local


def test_a_url_is_written_with_obstore(bucket: Any) -> None:
    obstore = pytest.importorskip("obstore")
    from zarr.storage import ObjectStore

    store = ObjectStore(obstore.store.from_url("s3://bucket/ob.zarr"))
    made = patches().to_zarr(store, **SMALL)
    xr.testing.assert_identical(made.compute(), patches().extract())
    assert not [name for name in contents(bucket, "bucket/ob.zarr") if JOB in name]


def test_a_server_that_fails_one_request_in_ten(bucket: Any, server: tuple[Failing, str]) -> None:
    patches().to_zarr("s3://bucket/peace.zarr", **SMALL)
    app, _ = server
    app.share = 0.1
    tries = 0
    while True:
        tries += 1
        assert tries < 60
        try:
            patches().to_zarr("s3://bucket/out.zarr", **SMALL, retries=1, resume=tries > 1)
        except (JobError, PatchError, OSError, RuntimeError) as error:
            if "exists already" in str(error):
                raise
            continue
        break
    assert app.failed > 5
    app.share = 0.0
    assert contents(bucket, "bucket/out.zarr") == contents(bucket, "bucket/peace.zarr")
    opened: Any = xpatches.open_patches("s3://bucket/out.zarr")
    xr.testing.assert_identical(opened.compute(), patches().extract())


@pytest.mark.parametrize("library", ["s3fs", "obstore"])
def test_conditions_are_decided_by_the_server(bucket: Any, library: str) -> None:
    conditions = exclusive(store_of(library, "conditions.zarr"))
    assert conditions is not None
    assert sync(conditions.version("a/b")) is None
    assert sync(conditions.create("a/b", b"1"))
    assert not sync(conditions.create("a/b", b"2"))
    first = sync(conditions.version("a/b"))
    assert sync(conditions.replace("a/b", b"3", first))
    assert not sync(conditions.replace("a/b", b"4", first))
    assert bucket.cat_file("bucket/conditions.zarr/a/b") == b"3"
    bucket.rm_file("bucket/conditions.zarr/a/b")
    assert not sync(conditions.replace("a/b", b"5", first))
    assert not bucket.exists("bucket/conditions.zarr/a/b")


@pytest.mark.parametrize("path", ["", "inner"])
def test_what_comes_while_a_folder_is_listed_is_no_file_of_others(
    bucket: Any, server: tuple[Failing, str], path: str
) -> None:
    app, held, prefix = server[0], list[str](), f"{path}/" if path else ""

    def hold(method: str, path: str) -> None:
        if method == "HEAD" and not held:  # which follows a list of nothing
            held.append(path)
            bucket.pipe_file(f"bucket/out.zarr/{prefix}a/b", b"1")

    folder = Folder(store_of("s3fs", "out.zarr"), path)
    app.hold = hold
    assert folder.names() in ([], ["a/b"])
    assert held
    assert folder.names() == ["a/b"]


def store_of(library: str, name: str) -> Any:
    if library == "obstore":
        obstore = pytest.importorskip("obstore")
        return ObjectStore(obstore.store.from_url(f"s3://bucket/{name}"))
    return FsspecStore.from_url(f"s3://bucket/{name}")


@pytest.mark.parametrize("library", ["s3fs", "obstore"])
def test_of_two_that_find_a_store_free_at_once_one_writes(
    bucket: Any, server: tuple[Failing, str], library: str
) -> None:
    app, both = server[0], threading.Barrier(2)
    waited: list[str] = []

    def hold(method: str, path: str) -> None:  # as a second of latency would
        if method == "PUT" and path.endswith("/writer/1") and len(waited) < 2:
            waited.append(path)
            both.wait(60)

    app.hold = hold
    told: list[Any] = []

    def start() -> None:
        try:
            told.append(patches().to_zarr(store_of(library, "out.zarr"), **SMALL))
        except PatchError as error:
            told.append(str(error))

    starters = [threading.Thread(target=start) for _ in range(2)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert len(waited) == 2
    refused = [text for text in told if isinstance(text, str)]
    assert len(refused) == 1, told
    assert "is being written by process" in refused[0] or "exists already" in refused[0]
    opened: Any = xpatches.open_patches("s3://bucket/out.zarr")
    xr.testing.assert_identical(opened.compute(), patches().extract())


SLEEPER = """
    import numpy as np, xarray as xr, xpatches
    from xpatches.datasets import chunks
    from xpatches.jobs import lock
    chunks.BLOCKS, lock.LEASE = 10**9, 0.5
    image = xr.DataArray(np.full((60, 70), 7, "u2"), dims=("y", "x"), name="image")
    small = {"chunks": {"y": 1, "x": 1}, "shards": {"y": 2, "x": 2}, "progress": False}
    image.patches(y=16, x=16, stride=8).to_zarr("s3://bucket/out.zarr", **small, **HOW)
"""


@pytest.mark.parametrize("how", [{}, {"overwrite": True}])
def test_a_request_of_a_writer_that_slept_changes_nothing(
    bucket: Any, server: tuple[Failing, str], monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    """Its last check is passed, and its request is on the way for longer than a lease.

    The image differs from the one before: servers tell versions of an object by its content.
    """
    app, arrived, go_on = server[0], threading.Event(), threading.Event()
    if how:
        (image_of() + np.uint16(1)).patches(**CUT).to_zarr("s3://bucket/out.zarr", **SMALL)

    def hold(method: str, path: str) -> None:
        if method == "PUT" and "/image/c/1/1" in path and not arrived.is_set():
            arrived.set()
            assert go_on.wait(120)

    app.hold = hold
    monkeypatch.setattr("xpatches.jobs.lock.LEASE", 0.5)
    code = f"HOW = {how!r}\n" + textwrap.dedent(SLEEPER)
    sleeper = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        assert arrived.wait(120)
        sleeper.send_signal(signal.SIGSTOP)
        patches().to_zarr("s3://bucket/out.zarr", **SMALL, overwrite=True)
        before = contents(bucket, "bucket/out.zarr")
        go_on.set()
        sleeper.send_signal(signal.SIGCONT)
        _, told = sleeper.communicate(timeout=120)
    finally:
        go_on.set()
        sleeper.kill()
        sleeper.communicate()
    assert sleeper.returncode
    assert "LostError" in told
    # A mark may have been on the way, too; it counts for nothing.
    after = contents(bucket, "bucket/out.zarr")
    assert {name: of for name, of in after.items() if f"{JOB}/blocks/" not in name} == before
    opened: Any = xpatches.open_patches("s3://bucket/out.zarr")
    xr.testing.assert_identical(opened.compute(), patches().extract())
    patches().to_zarr("s3://bucket/out.zarr", **SMALL, resume=True)
    assert contents(bucket, "bucket/out.zarr") == before
