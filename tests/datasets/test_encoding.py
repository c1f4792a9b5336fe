"""What is written comes back as it was, or is refused before anything is written."""

import os
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, StorePath

import xpatches
from stores import files
from xpatches.errors import JobError, PatchError
from xpatches.jobs.folder import Folder

QUIET: dict[str, Any] = {"progress": False}


def image_of(**coords: Any) -> xr.DataArray:
    samples = np.arange(1, 169).reshape(12, 14).astype("u2")
    return xr.DataArray(samples, coords, ("y", "x"), "image")


def patches_of(image: Any) -> Any:
    return image.patches(y=3, x=4)


HOURS = np.datetime64("1500-01-01", "s") + np.arange(12) * np.timedelta64(1, "h")
NAMED: dict[str, Any] = {
    "seconds before pandas' times": image_of(y=HOURS),
    "undecoded packing": image_of().assign_attrs(scale_factor=2.0, add_offset=1, _FillValue=3),
    "undecoded times": image_of().assign_attrs(units="days since 2000-01-01"),
    "units of time": image_of().assign_attrs(units="seconds"),
    "a packed coord": image_of(y=("y", np.arange(12), {"scale_factor": 3})),
    "attrs like JSON": image_of().assign_attrs(title="{draft} survey"),
    "a name with a space": image_of().rename("my image"),
    "numpy in attrs": image_of().assign_attrs(gain=np.float32(2), offsets=np.arange(3)),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("layout", ["grid", "samples"])
def test_what_looks_encoded_comes_back_as_it_was(name: str, layout: str, tmp_path: Path) -> None:
    p = patches_of(NAMED[name])
    made = p.to_zarr(tmp_path / "out", layout=layout, **QUIET)
    p.to_zarr(tmp_path / "out", layout=layout, resume=True, **QUIET)
    expected = p.extract()
    assert made.dtype == expected.dtype
    for key, value in NAMED[name].attrs.items():
        np.testing.assert_array_equal(made.attrs[key], value)
    if layout == "grid":
        xr.testing.assert_equal(made.compute(), expected)
        assert {k: v.dtype for k, v in made.coords.items()} == {
            k: v.dtype for k, v in expected.coords.items()
        }
    else:
        np.testing.assert_array_equal(made[5], p[5])


TIMES = image_of().astype("m8[s]")
REFUSED: dict[str, Any] = {
    "dim 1 must have a string": image_of().rename(y=1),
    r"variable 'a/b' cannot be stored": image_of().rename("a/b"),
    r"variable 'xpatches_job' cannot be stored": image_of().rename("xpatches_job"),
    r"variable 'c d' cannot be stored": image_of(**{"c d": ("x", np.arange(14))}),
    r"dim 'a b' cannot be stored": image_of().rename(y="a b"),
    r"the name 'lat' of the image is that of a coord": image_of(lat=1.0).rename("lat"),
    r"attr 'when' of 'image' cannot be stored": image_of().assign_attrs(when=np.datetime64("now")),
    r"attr 3 of 'image' cannot be stored": image_of().assign_attrs({3: 4}),
    r"attr 'a' of 'image' cannot be stored, ndarray is no JSON, use .tolist\(\); drop": (
        image_of().assign_attrs(a=[np.arange(3)])
    ),
    r"attr 'b' of 'image' cannot be stored, ndarray is no JSON, use .tolist\(\); drop": (
        image_of().assign_attrs(b={"c": {"d": np.ones(2)}})
    ),
    r"attr 'c' of 'image' cannot be stored, int64 is no JSON, use .tolist\(\); drop": (
        image_of().assign_attrs(c=[np.int64(3)])
    ),
    r"attr 'd' of 'image' cannot be stored, ndarray is no JSON; drop": (
        image_of().assign_attrs(d=np.array([1, "a"], object))
    ),
    r"attr 'e' of 'image' cannot be stored, longdouble is no JSON; drop": (
        image_of().assign_attrs(e=np.longdouble(1))
    ),
    r"attr 'f' of 'x' cannot be stored, ndarray is no JSON": image_of(
        x=("x", np.arange(14), {"f": [np.arange(3)]})
    ),
    r"coord 'y' of dtype category cannot be stored": image_of(
        y=xr.Variable("y", pd.Categorical(list("abcabcabcabc")))
    ),
    r"coord 'y' is of a MultiIndex": image_of(
        a=("y", np.arange(12)), b=("y", np.arange(12))
    ).set_index(y=["a", "b"]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_be_lost_is_refused_before_anything_is_written(
    message: str, tmp_path: Path
) -> None:
    image = REFUSED[message]
    y, x = image.dims
    with pytest.raises(PatchError, match=message):
        image.patches({y: 3, x: 4}).to_zarr(tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()


def test_variables_whose_names_could_become_the_same_are_refused(tmp_path: Path) -> None:
    image = xr.Dataset({3: image_of(), "3": image_of()})
    with pytest.raises(PatchError, match=r"name of a variable must be a string .*, got 3"):
        patches_of(image).to_zarr(tmp_path / "out", **QUIET)


def test_an_image_of_the_name_of_a_coord_of_patches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="'y_origin' of the image is that of a coord"):
        patches_of(image_of().rename("y_origin")).to_zarr(tmp_path / "out", **QUIET)


GIVEN: list[tuple[dict[str, Any], str]] = [
    ({"chunks": 3}, "chunks must be a mapping from dim to length, got 3"),
    ({"chunks": "auto"}, "chunks must be a mapping from dim to length, got 'auto'"),
    ({"shards": [1, 2]}, "shards must be a mapping from dim to length"),
    ({"shards": True}, "shards must be a mapping from dim to length"),
    ({"encoding": 3}, "encoding must be a mapping from variable to a mapping, got 3"),
    ({"encoding": {"image": 3}}, "encoding of 'image' must be a mapping from word to value, got 3"),
    ({"encoding": {"image": {"dtype": "nope"}}}, "the dataset cannot be stored: .*nope"),
]


@pytest.mark.parametrize(("given", "message"), GIVEN)
def test_arguments_of_other_types_are_named(given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=message):
        patches_of(image_of()).to_zarr(tmp_path / "out", **given, **QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["units", "dtype", "scale_factor"])
def test_times_are_not_encoded_in_other_units(key: str, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=f"must not hold '{key}': times are stored as they are"):
        patches_of(TIMES).to_zarr(tmp_path / "out", encoding={"image": {key: "days"}}, **QUIET)


def test_images_in_zarr_of_format_2_are_cut(tmp_path: Path) -> None:
    image = image_of(y=np.arange(12.0))
    image.to_dataset().to_zarr(tmp_path / "v2", zarr_format=2, consolidated=False)
    opened = xr.open_zarr(tmp_path / "v2", chunks=None, consolidated=False).image
    made = patches_of(opened).to_zarr(tmp_path / "out", **QUIET)
    xr.testing.assert_equal(made.compute(), patches_of(image).extract())


def test_a_relative_path_is_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = patches_of(image_of()).to_zarr("out", **QUIET)
    opened = xpatches.open_patches("out")
    (tmp_path / "elsewhere").mkdir()
    os.chdir("elsewhere")
    for of in (made, opened):
        np.testing.assert_array_equal(of, patches_of(image_of()).extract())


def opened_otherwise(path: Path) -> dict[str, Any]:
    opened = xr.open_zarr(path, consolidated=False).image
    url = FsspecStore.from_url(f"file://{path}", read_only=True)
    return {
        "computed": opened.astype("f4") + 1,
        "transposed": opened.T,
        "from_zarr": xr.DataArray(da.from_zarr(f"{path}/image"), dims=("y", "x")),
        "as a URL": xr.open_zarr(url, chunks=None, consolidated=False).image,
    }


@pytest.mark.filterwarnings("ignore:The `asynchronous`")
@pytest.mark.parametrize("way", ["computed", "transposed", "from_zarr", "as a URL"])
def test_the_image_is_never_overwritten_however_it_was_opened(way: str, tmp_path: Path) -> None:
    path = tmp_path / "image.zarr"
    image_of().to_dataset().to_zarr(path, consolidated=False)
    before = files(path)
    image = opened_otherwise(path)[way]
    for store in (path, f"file://{path}"):
        with pytest.raises(PatchError, match="is where the image lies"):
            patches_of(image).to_zarr(store, overwrite=True, **QUIET)
    assert files(path) == before


def test_files_that_are_no_zarr_are_never_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    patches_of(image_of()).to_zarr(out, **QUIET)
    for name in ("notes.txt", "notes-zarr.json", "thesis.partial", "image/notes.txt", "c.txt"):
        (out / name).write_text("...")
        with pytest.raises(PatchError, match=rf"holds what is no zarr: {name}; remove it"):
            patches_of(image_of()).to_zarr(out, overwrite=True, **QUIET)
        assert (out / name).exists()
        (out / name).unlink()
    patches_of(image_of()).to_zarr(out, overwrite=True, **QUIET)


@pytest.mark.parametrize("content", [b"{nope", b"[]", b"null"])
def test_a_damaged_store_is_said_to_be(content: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    patches_of(image_of()).to_zarr(out, **QUIET)
    (out / "zarr.json").write_bytes(content)
    with pytest.raises(PatchError, match=r"zarr.json of store .* is damaged"):
        xpatches.open_patches(out)
    for how in ("overwrite", "resume"):
        with pytest.raises(PatchError, match=r"zarr.json of store .* is damaged"):
            patches_of(image_of()).to_zarr(out, **{how: True}, **QUIET)


def test_a_store_that_workers_do_not_share_is_not_taken_for_complete() -> None:
    distributed = pytest.importorskip("distributed")
    given = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        distributed.Client(**given),
        pytest.raises(JobError, match="workers do not share the store; give a path or a URL"),
    ):
        patches_of(image_of()).to_zarr(MemoryStore(), **QUIET)


def slide(path: Path) -> None:
    """Write an image with levels, axes and labels, as OME-Zarr lays them out."""
    levels: dict[str, Any] = {"0": np.arange(168).reshape(12, 14), "1": np.arange(42).reshape(6, 7)}
    group = zarr.create_group(path, attributes={"ome": {"version": "0.5"}})
    for name, samples in levels.items():
        dims = [f"{dim}{name}" for dim in "yx"]
        group.create_array(name, data=samples.astype("u2"), chunks=(3, 3), dimension_names=dims)
    group.create_array("y0", data=np.arange(12.0), dimension_names=["y0"])
    cells = group.create_group("labels", attributes={"ome": {"labels": ["cells"]}})
    cells.create_array("cells", data=np.ones((12, 14), "u1"), dimension_names=["y0", "x0"])


def ways_to_open(path: Path) -> dict[str, Any]:
    url = FsspecStore.from_url(f"file://{path}", read_only=True)
    below, at = FsspecStore.from_url(f"file://{path.parent}", read_only=True), path.name
    how: dict[str, Any] = {"consolidated": False}
    return {
        "path": xr.open_zarr(path, **how)["0"],
        "without dask": xr.open_zarr(path, chunks=None, **how)["0"],
        "computed": xr.open_zarr(path, **how)["0"] + np.uint16(0),
        "group=": xr.open_zarr(path.parent, group=at, **how)["0"],
        "LocalStore": xr.open_zarr(LocalStore(path.parent), group=at, chunks=None, **how)["0"],
        "a URL": xr.open_zarr(url, chunks=None, **how)["0"],
        "a URL and group=": xr.open_zarr(below, group=at, chunks=None, **how)["0"],
        "the array": xr.DataArray(da.from_zarr(f"{path}/0"), dims=("y0", "x0"), name="0"),
        "labelled": xr.open_zarr(path, chunks=None, **how).set_coords(["1"])["0"],
    }


WAYS = [
    *("path", "without dask", "computed", "group=", "LocalStore", "a URL", "a URL and group="),
    *("the array", "labelled"),
]


@pytest.mark.filterwarnings("ignore:The `asynchronous`")
@pytest.mark.parametrize("way", WAYS)
def test_results_may_lie_beside_the_image_but_replace_nothing_of_it(
    way: str, tmp_path: Path
) -> None:
    path = tmp_path / "slide.zarr"
    slide(path)
    before = files(path)
    p = ways_to_open(path)[way].patches(y0=3, x0=4)
    for name in ("", "0", "0/nuclei", "0/c", "1", "1/nuclei", "y0", "y0/nuclei", "labels"):
        for given in (f"{path}/{name}", f"file://{path}/{name}", StorePath(LocalStore(path), name)):
            for overwrite in (True, False):
                with pytest.raises(PatchError, match=r"where the image lies|in the group of"):
                    p.to_zarr(given, overwrite=overwrite, **QUIET)
    with pytest.raises(PatchError, match=r"lies in the array .*cells"):
        p.to_zarr(path / "labels" / "cells" / "nuclei", **QUIET)
    with pytest.raises(PatchError, match=r"where the image lies|no zarr"):
        p.to_zarr(tmp_path, overwrite=True, **QUIET)
    assert files(path) == before
    for store in (path / "labels" / "nuclei", path / "mine", str(tmp_path / "slide.zarr-1")):
        made = p.to_zarr(store, **QUIET)
        xr.testing.assert_equal(made.drop_vars(["1"], errors="ignore"), p.extract().compute())
        p.to_zarr(store, resume=True, **QUIET)
        p.to_zarr(store, overwrite=True, **QUIET)
    assert {name: files(path)[name] for name in before} == before
    opened = xr.open_zarr(path, consolidated=False)
    assert set(opened.variables) == {"0", "1", "y0"}


def test_a_map_goes_into_the_labels_of_its_image(tmp_path: Path) -> None:
    path = tmp_path / "slide.zarr"
    slide(path)
    p = xr.open_zarr(path, chunks=None, consolidated=False)["0"].patches(y0=4, x0=7)
    made = p.map_to_zarr(path / "labels" / "nuclei", np.copy, taper="flat", **QUIET)
    xr.testing.assert_identical(made.compute(), p.source.compute())
    beside = xr.open_zarr(path, group="labels/nuclei", chunks=None, consolidated=False)["0"]
    again = beside.patches(y0=4, x0=7)
    again.to_zarr(path / "labels" / "more", **QUIET)
    with pytest.raises(PatchError, match="where the image lies"):
        again.to_zarr(path / "labels" / "nuclei", overwrite=True, **QUIET)
    with pytest.raises(PatchError, match="where the image lies"):
        again.to_zarr(path / "labels", overwrite=True, **QUIET)


def test_stores_in_memory_are_told_apart(tmp_path: Path) -> None:
    store = MemoryStore()
    image_of().to_dataset().to_zarr(store, group="a/b", consolidated=False)
    p = patches_of(xr.open_zarr(store, group="a/b", chunks=None, consolidated=False).image)
    for path in ("", "a", "a/b", "a/b/image", "a/b/image/x"):
        with pytest.raises(PatchError, match="where the image lies"):
            p.to_zarr(StorePath(store, path), overwrite=True, **QUIET)
    for target in (StorePath(store, "a/b/c"), StorePath(store, "a/bc"), MemoryStore()):
        np.testing.assert_array_equal(p.to_zarr(target, **QUIET), p.extract())


def test_buckets_are_known_by_their_names() -> None:
    obstore = pytest.importorskip("obstore.store")
    pytest.importorskip("s3fs")
    how = {"region": "x", "skip_signature": True}

    def by_fsspec(path: str) -> Folder:
        return Folder(FsspecStore.from_url(f"s3://{path}"))

    def by_obstore(path: str, key: str = "") -> Folder:
        return Folder(ObjectStore(obstore.from_url(f"s3://{path}", **how)), key)

    image = [by_fsspec("b/slide"), by_obstore("b/slide"), by_obstore("b", "slide")]
    for folder in image:
        assert by_fsspec("b/slide/labels").below(folder) == "labels"
        assert by_obstore("b/slide", "labels/x").below(folder) == "labels/x"
        assert by_fsspec("b/slides").below(folder) is None
        assert by_obstore("a/slide").below(folder) is None
        assert by_fsspec("b").overlaps(folder)


def test_floats_that_zarr_does_not_have_are_refused(tmp_path: Path) -> None:
    floats = pytest.importorskip("ml_dtypes")
    image = image_of()
    with pytest.raises(PatchError, match=r"'image' of dtype bfloat16 cannot be stored; convert it"):
        patches_of(image.astype(floats.bfloat16)).to_zarr(tmp_path / "out", **QUIET)
    labelled = image.assign_coords(w=("y", np.ones(12, floats.bfloat16)))
    with pytest.raises(PatchError, match=r"coord 'w' of dtype bfloat16 cannot be stored; convert"):
        patches_of(labelled).to_zarr(tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()


def test_what_another_library_holds_is_not_stored(tmp_path: Path) -> None:
    sparse = pytest.importorskip("sparse")
    dataset = image_of().to_dataset().assign(table=("n", sparse.COO.from_numpy(np.arange(3))))
    with pytest.raises(PatchError, match=r"variable 'table' must hold NumPy or dask data, "):
        patches_of(dataset).to_zarr(tmp_path / "out", **QUIET)
    patches_of(dataset.as_numpy()).to_zarr(tmp_path / "out", **QUIET)
