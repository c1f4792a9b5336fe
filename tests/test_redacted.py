"""Credentials stand in nothing that is shown, and in nothing that is stored."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import FsspecStore, ObjectStore

import xpatches
from xpatches.cli.main import main
from xpatches.credentials import redacted
from xpatches.errors import BlockFailure, JobError, MapError, PatchError
from xpatches.jobs.folder import Folder
from xpatches.jobs.open import open_folder

SECRET = "c3cr3t+word"
QUIET: dict[str, Any] = {"progress": False}

# What servers' libraries warn of, sockets that are still open among it, is theirs.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("s3://ann:SECRET@bucket/a.zarr", "s3://***@bucket/a.zarr"),
        ("simplecache::s3://SECRET@bucket/a", "simplecache::s3://***@bucket/a"),
        ("s3://ann:SEC/SECRET@bucket/a", "s3://***@bucket/a"),
        ("http://ann:SEC?SECRET#SECRET@host/a", "http://***@host/a"),
        ("s3://bucket/ann@home/a.zarr", "s3://bucket/ann@home/a.zarr"),
        ("store 'https://host/a?sig=SECRET' is, see", "store 'https://host/a?***' is, see"),
        ("GET https://host/a?X-Amz-Signature=SECRET; again", "GET https://host/a?***; again"),
        ("https://host/a#SECRET.", "https://host/a#***."),
        ("https://host/a?next=https://ann:SECRET@host/b", "https://***@host/b"),
        ("URL('https://host/a?b=SECRET'), 403", "URL('https://host/a?***'), 403"),
        ("{'key': 'SECRET', 'anon': False}", "{'key': ***, 'anon': False}"),
        ("secret='SECRET' token=SECRET, x=1", "secret=*** token=***, x=1"),
        ('{"headers": {"Authorization": "Bearer SECRET"}}', '{"headers": {"Authorization": ***}}'),
        ("Authorization: Bearer SECRET", "Authorization: ***"),
        ("AccountName=a;AccountKey=SECRET==;x=y", "AccountName=a;AccountKey=***;x=y"),
        ("sas_token: '?sv=1&sig=SEC\\'SECRET'", "sas_token: ***"),
        ("AWS_SESSION_TOKEN=SECRET", "AWS_SESSION_TOKEN=***"),
        ("password=b'SECRET', tokens=('a', 'SECRET')", "password=***, tokens=***"),
        ("token='SECRET and what was cut", "token=***"),
        ("no keyword argument 'secret'", "no keyword argument 'secret'"),
        ("key: y, dims y=3", "key: y, dims y=3"),
    ],
)  # fmt: skip
def test_a_text_is_written_without_its_credentials(text: str, masked: str) -> None:
    assert redacted(text.replace("SECRET", SECRET)) == masked


WORDS = st.text(alphabet=st.characters(blacklist_categories=["Z", "C"]), min_size=8)


@given(WORDS.filter(lambda word: "@" not in word), st.text(alphabet="ab/:.", max_size=5))
def test_whatever_is_before_the_host_or_behind_the_path_is_masked(word: str, path: str) -> None:
    secret = f"{word}Z"
    for url in (f"http://ann:{secret}@host/{path}", f"http://host/{path}?sig={secret}"):
        assert secret not in redacted(f"no answer from {url}: again")


def test_long_texts_take_time_in_proportion() -> None:
    for text in ("://a:", "://a?", "secret", "token='", "token=[", "a.", "://@", "token: bearer "):
        assert len(redacted(text * 100_000)) <= 3 * len(text) * 100_000


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder to those who know the password, or the query."""

    def do_GET(self) -> None:
        if "refuse" in self.path:
            self.send_error(403)
        else:
            super().do_GET()

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve an image and a dataset over HTTP; the address."""
    folder = tmp_path_factory.mktemp("served")
    image().to_dataset().to_zarr(folder / "image.zarr")
    image().patches(y=2, x=2).to_zarr(folder / "patches.zarr", **QUIET)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xpatches.jobs.folder._PAUSES", ())


def image() -> xr.DataArray:
    return xr.DataArray(np.arange(16).reshape(4, 4), dims=("y", "x"), name="image")


URLS = [
    f"http://ann:{SECRET}@HOST/PATH",
    f"http://HOST/PATH?sig={SECRET}",
    f"http://HOST/PATH?X-Amz-Signature={SECRET}&a=b.zarr#{SECRET}",
    f"http://ann:{SECRET}@HOST/refuse/PATH?sig={SECRET}",
    f"http://ann:{SECRET}@127.0.0.1:1/PATH",
    f"s3://ann:{SECRET}@bucket/PATH",
    f"s3://ann:{SECRET}/{SECRET}@bucket/PATH",
    f"memory://ann:{SECRET}@bucket/PATH",
    f"memory://bucket/PATH?sig={SECRET}",
    f"nothing://ann:{SECRET}@host/PATH",
    f"simplecache::http://ann:{SECRET}@HOST/PATH",
]


def shown(verb: Callable[[], Any]) -> str:
    """Give what a verb shows: the texts of its error or its result, not of what that came from."""
    try:
        made = verb()
    except Exception as error:
        return f"{error} {error!r} {vars(error)}"
    return f"{made} {made!r} {getattr(made, '_repr_html_', str)()} {getattr(made, 'attrs', '')}"


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("path", ["patches.zarr", "image.zarr", "none.zarr", "none.tif"])
def test_verbs_show_no_credentials_of_a_store(
    url: str, path: str, served: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store = url.replace("HOST", served).replace("PATH", path)
    p = image().patches(y=2, x=2)
    verbs: list[Callable[[], Any]] = [
        partial(xpatches.open_patches, store),
        partial(p.to_zarr, store),
        partial(p.to_zarr, store, resume=True),
        partial(p.to_zarr, store, overwrite=True),
        partial(p.map_to_zarr, store, np.copy),
        partial(p.map_to_zarr, None, np.copy, materialize=store),
        partial(repr, image()),
    ]
    for verb in verbs:
        assert SECRET not in shown(verb)
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("path", ["patches.zarr", "image.zarr", "none.zarr", "none.tif"])
def test_the_command_shows_no_credentials_of_a_store(
    url: str, path: str, served: str, tmp_path: Path
) -> None:
    store = url.replace("HOST", served).replace("PATH", path)
    (tmp_path / "a.zarr").mkdir()
    size = ["--size", "y=2,x=2"]
    here = str(tmp_path / "image.zarr")
    image().to_dataset().to_zarr(here)
    for arguments in (
        ["info", store],
        ["info", store, "--json"],
        ["info", store, store],
        ["extract", store, str(tmp_path / "out.zarr"), *size, "--json"],
        ["extract", here, store, *size],
        ["extract", here, store, *size, "--resume", "--json"],
        ["map", here, store, "--func", "numpy:copy", *size],
        ["map", here, here + "2", "--func", "numpy:copy", "--materialize", store, *size],
        ["show", store, "-o", str(tmp_path / "a.png"), "--var", store],
        [store],
        ["info", f"--{store}"],
    ):
        ended = CliRunner().invoke(main, arguments)
        assert SECRET not in ended.output + ended.stderr, arguments


def test_a_url_with_credentials_is_opened_and_told_of_without_them(served: str) -> None:
    store = f"http://ann:{SECRET}@{served}/patches.zarr"
    np.testing.assert_array_equal(xpatches.open_patches(store), image().patches(y=2, x=2).extract())
    ended = CliRunner().invoke(main, ["info", store, "--json"])
    assert json.loads(ended.output)["store"] == f"http://***@{served}/patches.zarr"


def test_options_of_stores_are_not_told(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    obstore = pytest.importorskip("obstore.store")
    options = dict.fromkeys(("key", "secret", "token"), SECRET)
    files = fsspec.filesystem("memory", asynchronous=True, **options)
    s3 = obstore.S3Store("bucket", access_key_id=SECRET, secret_access_key=SECRET, region="a")
    for store in (
        FsspecStore.from_url(f"http://host/a?sig={SECRET}"),
        FsspecStore(fsspec.implementations.asyn_wrapper.AsyncFileSystemWrapper(files)),
        ObjectStore(s3),
        ObjectStore(obstore.HTTPStore.from_url(f"https://ann:{SECRET}@host/a?sig={SECRET}")),
    ):
        folder = open_folder(store)
        assert SECRET not in f"{folder} {folder!r}"


def test_a_folder_is_named_as_it_was_given() -> None:
    pytest.importorskip("s3fs")
    assert str(open_folder("s3://bucket/a.zarr", read_only=True)) == "s3://bucket/a.zarr"
    assert str(Folder(FsspecStore.from_url("http://host/a"), "b")) == "http://host/a/b"


def test_errors_of_jobs_and_functions_hold_no_credentials() -> None:
    cause = OSError(f"403, url='https://host/c/0?sig={SECRET}', headers={{'token': '{SECRET}'}}")
    error = JobError("store", 1, [BlockFailure(0, "'image', y=0:2", cause)])
    assert SECRET not in str(error)
    assert "OSError: 403, url='https://host/c/0?***'" in str(error)

    def failing(batch: Any) -> Any:
        raise cause

    with pytest.raises(MapError) as failed:
        image().patches(y=2, x=2).map(failing)
    assert SECRET not in f"{failed.value} {failed.value.reason}"


def ask(batch: Any, url: str, token: str) -> Any:
    return batch + len(url) - len(token)


def test_what_describes_a_job_holds_no_credentials_of_the_function(tmp_path: Path) -> None:
    url = f"https://ann:{SECRET}@host/model?sig={SECRET}"
    func = partial(ask, url=url, token=SECRET)
    image().patches(y=2, x=2).map_to_zarr(tmp_path / "out", func, **QUIET)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("zarr.json"))
    assert SECRET.encode() not in stored
    assert b"url='https://***@host/model?***'" in stored
    assert b"token=***" in stored


def test_credentials_before_a_bucket_are_refused() -> None:
    with pytest.raises(PatchError, match=r"must not hold credentials, got s3://\*\*\*; give s3://"):
        open_folder(f"s3://ann:{SECRET}@bucket/a.zarr")
