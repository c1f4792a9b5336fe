"""Icechunk: images in its sessions are cut, and what jobs write is copied there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import StorePath

import xpatches

icechunk = pytest.importorskip("icechunk")

QUIET: dict[str, Any] = {"progress": False}
ZARR: dict[str, Any] = {"zarr_format": 3, "consolidated": False}
IMAGE = xr.DataArray(
    np.random.default_rng(0).integers(0, 999, (40, 50)).astype("u2"),
    {"y": np.linspace(9, 8, 40)},
    ("y", "x"),
    "image",
)


@pytest.fixture
def repository(tmp_path: Path) -> Any:
    """A repository that holds an image."""
    made = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repo")))
    session = made.writable_session("main")
    IMAGE.chunk(y=10, x=10).to_dataset().to_zarr(session.store, **ZARR)
    session.commit("image")
    return made


def patches_in(session: Any) -> Any:
    image = xr.open_zarr(session.store, chunks=None, consolidated=False).image
    return image.patches(y=8, x=8, stride=4)


def test_a_session_is_no_target_and_the_error_says_how_to_get_there(
    repository: Any, tmp_path: Path
) -> None:
    session = repository.writable_session("main")
    p = patches_in(session)
    for target in (session.store, session, StorePath(session.store, "patches")):
        with pytest.raises(xpatches.PatchError, match="must not be an Icechunk session") as caught:
            p.to_zarr(target, **QUIET)
        assert "consolidated=False), and commit" in str(caught.value)
        with pytest.raises(xpatches.PatchError, match="must not be an Icechunk session"):
            p.map_to_zarr(
                None, np.copy, materialize=target, reduce="max", fill_value=0, taper="flat", **QUIET
            )
        with pytest.raises(xpatches.PatchError, match=r"opened by xarray.open_zarr\(session"):
            xpatches.open_patches(target)
    assert not session.has_uncommitted_changes

    # What the error says.
    path = tmp_path / "patches.zarr"
    p.to_zarr(path, **QUIET)
    copied = xr.open_zarr(path, consolidated=False)
    copied.to_zarr(session.store, group="patches", **ZARR)
    session.commit("patches")
    there = xr.open_zarr(repository.readonly_session("main").store, "patches", consolidated=False)
    np.testing.assert_array_equal(there.image, IMAGE.patches(y=8, x=8, stride=4).extract())
    image = there.image.patches.stitch(like=IMAGE, reduce="max", fill_value=0)
    np.testing.assert_array_equal(image[:, :48], IMAGE[:, :48])


@pytest.mark.filterwarnings("ignore")  # of distributed, which logs what it cannot send
def test_workers_read_a_read_only_session(repository: Any, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    expected = IMAGE.patches(y=8, x=8, stride=4).extract()
    writable = patches_in(repository.writable_session("main"))
    np.testing.assert_array_equal(writable.to_zarr(tmp_path / "threads", **QUIET), expected)
    with distributed.Client(n_workers=1, threads_per_worker=1, dashboard_address=None):
        with pytest.raises(xpatches.PatchError, match=r"of Icechunk a read-only session can"):
            writable.to_zarr(tmp_path / "patches", **QUIET)
        p = patches_in(repository.readonly_session("main"))
        np.testing.assert_array_equal(p.to_zarr(tmp_path / "patches", **QUIET), expected)
