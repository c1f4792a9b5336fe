from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import xpatches
from xpatches import PatchError

PACKING = {
    "_FillValue": 1, "missing_value": 1, "scale_factor": 0.1, "add_offset": -0.1,
    "valid_range": [0, 200], "flag_values": [0, 1], "flag_meanings": "land sea",
    "STATISTICS_MAXIMUM": 7,
}  # fmt: skip
QUANTITY = {"units": "K", "long_name": "brightness", "standard_name": "toa_brightness"}
OTHER = {"AREA_OR_POINT": "Area", "grid_mapping": "crs"}


@pytest.fixture(autouse=True)
def _keep_attrs() -> Iterator[None]:
    """As xarray does since 2025.11."""
    with xr.set_options(keep_attrs=True):
        yield


def packed(dtype: str = "uint8", **encoding: Any) -> xr.DataArray:
    """Numbers as they are stored, with all that says so."""
    numbers = (np.arange(64).reshape(8, 8) % 5).astype(dtype)
    coords = {"y": np.arange(8.0), "x": np.arange(8.0), "crs": 0}
    image = xr.DataArray(numbers, coords, ("y", "x"), "image", {**PACKING, **QUANTITY, **OTHER})
    image.encoding = encoding
    return image


def fill(image: xr.DataArray) -> tuple[Any, str]:
    """What pads the image, and what the repr says of it."""
    p = image.patches(x=3, y=3, padding=(1, 1))
    (line,) = (line for line in repr(p).splitlines() if line.startswith("Fill:"))
    return p[0].values[0, 0], line.removeprefix("Fill:").strip()


@pytest.mark.parametrize(
    ("dtype", "attrs", "encoding", "value", "why"),
    [
        ("uint8", {}, {}, 0, "0 (no nodata declared)"),
        ("uint8", {"_FillValue": np.uint8(255)}, {}, 255, "255 (_FillValue)"),
        ("int16", {"missing_value": [-99, -98]}, {}, -99, "-99 (missing_value)"),
        ("int16", {"nodata": -9999.0}, {}, -9999, "-9999 (nodata)"),
        ("int16", {}, {"_FillValue": -1}, -1, "-1 (_FillValue)"),
        ("uint8", {"_FillValue": -9999}, {}, 0, "0 (_FillValue -9999 does not fit uint8)"),
        ("uint8", {"_FillValue": "none"}, {}, 0, "0 (no nodata declared)"),
        ("f4", {}, {"_FillValue": 255, "dtype": "uint8"}, np.nan,
         "nan (missing, _FillValue 255 of uint8)"),
        ("f4", {}, {"_FillValue": -9999.0, "dtype": "float32"}, np.nan,
         "nan (missing, _FillValue -9999.0 of float32)"),
        ("f4", {}, {"_FillValue": np.nan, "dtype": "float32"}, 0, "0.0 (no nodata declared)"),
        ("f4", {"_FillValue": np.nan}, {}, 0, "0.0 (no nodata declared)"),
        ("f4", {"_FillValue": -9999.0}, {}, -9999, "-9999.0 (_FillValue)"),
        ("f8", {}, {"scale_factor": 0.1, "dtype": "int16"}, 0, "0.0 (no nodata declared)"),
        ("M8[ns]", {}, {"_FillValue": -1}, np.datetime64("NaT", "ns"), "NaT (no nodata declared)"),
    ],
)  # fmt: skip
def test_padding_is_what_the_image_declares_as_missing(
    dtype: str, attrs: Any, encoding: Any, value: Any, why: str
) -> None:
    image = xr.DataArray(np.ones((6, 6)).astype(dtype), dims=("y", "x"), attrs=attrs)
    image.encoding = encoding
    padding, said = fill(image)
    np.testing.assert_equal(padding, value)
    assert said == why
    given = image.patches(x=3, fill_value=np.ones((), dtype))
    assert "(given)" in repr(given)


def test_what_xarray_writes_and_reads_declares_what_was_meant(tmp_path: Any) -> None:
    ds = xr.Dataset({"plain": ("x", [1.0, 2]), "packed": ("x", [1.0, np.nan])})
    encoding = {"packed": {"dtype": "int16", "_FillValue": -5, "scale_factor": 0.5}}
    for save, load in (
        (lambda: ds.to_netcdf(tmp_path / "a.nc", encoding=encoding, engine="h5netcdf"),
         lambda **kw: xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf", **kw)),
        (lambda: ds.to_zarr(tmp_path / "a.zarr", encoding=encoding, consolidated=False),
         lambda **kw: xr.open_zarr(tmp_path / "a.zarr", consolidated=False, **kw)),
    ):  # fmt: skip
        save()
        edge = load().patches(x=2, padding=(0, 1), stride=1)[-1].compute()
        np.testing.assert_equal(edge.plain.values, [2, 0])
        np.testing.assert_equal(edge.packed.values, [np.nan, np.nan])
        edge = load(mask_and_scale=False).patches(x=2, padding=(0, 1), stride=1)[-1].compute()
        np.testing.assert_equal(edge.plain.values, [2, 0])
        np.testing.assert_equal(edge.packed.values, [-5, -5])


def attrs_of(result: xr.DataArray) -> dict[Any, Any]:
    return {key: value for key, value in result.attrs.items() if key != "xpatches"}


def test_patches_keep_all_that_is_said_of_their_numbers() -> None:
    image = packed()
    p = image.patches(y=2, x=2)
    for same in (p.extract(), p[0], p.reduce("max"), xpatches.stitch(p.extract(), like=image)):
        assert attrs_of(same) == image.attrs


def test_stitched_numbers_of_another_dtype_are_not_packed_like_the_image() -> None:
    image = packed()
    for result in (
        xpatches.stitch(image.patches(y=2, x=2).extract(), reduce="sum"),
        xpatches.stitch(image.patches(y=2, x=2).extract() / 2, like=image),
    ):
        assert result.attrs == {**QUANTITY, **OTHER}


@pytest.mark.parametrize("stored", [False, True])
def test_what_a_model_returns_is_described_by_the_output_alone(stored: bool) -> None:
    image = packed()
    p = image.patches(y=2, x=2)
    job: dict[str, Any] = {"store": MemoryStore(), "progress": False} if stored else {}
    verb: Any = p.map_to_zarr if stored else p.map
    plain = verb(func=lambda batch: batch > 2, reduce="first", output={"dtype": "bool"}, **job)
    assert plain.attrs == OTHER
    assert plain.name == "image"
    if stored:
        job["store"] = MemoryStore()
    output = {"dtype": "uint8", "name": "water", "attrs": {"units": "1"}, "nodata": 9}
    described = verb(func=lambda batch: batch % 2, output=output, **job)
    assert described.attrs == {**OTHER, "units": "1", "_FillValue": 9}
    assert described.name == "water"
    np.testing.assert_array_equal(described.compute(), image % 2)
    if stored:
        # xarray itself masks what is declared as missing, of which there is none, and no more.
        again = xr.open_zarr(job["store"], consolidated=False).water
        np.testing.assert_array_equal(again, image % 2)


def test_nodata_of_the_output_is_the_value_of_samples_in_no_patch() -> None:
    p = packed().patches(y=3, x=3)
    made = p.map(lambda batch: batch, output={"nodata": 9})
    assert made.values[7].tolist() == [9] * 8
    assert p.map(lambda batch: batch, output={"nodata": 9}, fill_value=4).values[7, 7] == 4


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"nodata": 300}, "output nodata must be a value that uint8 can hold, got 300"),
        ({"nodata": 3, "attrs": {"_FillValue": 3}}, "output nodata becomes the attr '_FillValue'"),
        ({"attrs": ["units"]}, "output attrs must be a mapping from name to value, got"),
        ({"name": 3}, "output name must be a string without NUL and lone surrogates, got 3"),
    ],
)
def test_outputs_that_say_nonsense_are_refused(output: Any, message: str) -> None:
    with pytest.raises(PatchError, match=message):
        packed().patches(y=2, x=2).map(lambda batch: batch, output=output)
    with pytest.raises(PatchError, match="output name is for a DataArray, got 'a' for a Dataset"):
        packed().to_dataset().patches(y=2, x=2).map(lambda batch: batch, output={"name": "a"})


@pytest.mark.parametrize(
    ("reduction", "kept"),
    [
        *((name, {**QUANTITY, **OTHER}) for name in ("mean", "sum", "std", "median", np.median)),
        *((name, OTHER) for name in ("argmax", "argmin", "count", "any", "all", "var")),
    ],
)
def test_a_reduction_keeps_what_still_holds(reduction: Any, kept: dict[str, Any]) -> None:
    p = packed().patches(y=2, x=2)
    assert p.reduce(reduction).attrs == kept
    with xr.set_options(keep_attrs=False):
        assert p.reduce(reduction).attrs == {"grid_mapping": "crs"}


def test_links_to_other_variables_survive_every_verb_and_job() -> None:
    image = packed("f4", grid_mapping="rotated", scale_factor=3)
    image.attrs = {"units": "K"}
    image = image.assign_coords(
        rotated=((), 0, {"grid_mapping_name": "rotated_latitude_longitude"})
    )
    lat = xr.DataArray(np.add.outer(np.arange(8.0), np.zeros(8)), dims=("y", "x"))
    for ds in (image, image.to_dataset()):
        shown = ds.assign_coords(lat=lat, lon=lat.T.transpose("y", "x"))
        shown.lat.encoding["grid_mapping"] = "rotated"
        p = shown.patches(y=2, x=2)
        for result in (
            p.extract(),
            p[3],
            p.reduce("min"),
            p.map(lambda batch: batch),
            p.to_zarr(MemoryStore(), progress=False),
            p.to_zarr(MemoryStore(), layout="samples", progress=False),
            p.to_zarr(MemoryStore(), progress=False, encoding={"lat": {"dtype": "float32"}}),
            p.map_to_zarr(MemoryStore(), lambda batch: batch, progress=False),
            xpatches.stitch(p.extract(), like=shown),
            xpatches.stitch(p.to_zarr(MemoryStore(), progress=False), like=shown),
        ):
            array = result if isinstance(result, xr.DataArray) else result["image"]
            assert array.encoding["grid_mapping"] == "rotated"
            assert "grid_mapping" not in array.attrs
            assert {"rotated", "lat", "lon"} <= set(array.coords)
            assert result.lat.encoding.get("grid_mapping") == "rotated"


def test_a_job_gives_back_bounds_and_other_links_as_they_were() -> None:
    ds = xr.Dataset(
        {"image": (("time", "x"), np.zeros((3, 8)))},
        {"time": ("time", [0.5, 1.5, 2.5]), "edges": (("time", "nv"), np.zeros((3, 2)))},
    )
    ds.time.encoding["bounds"] = "edges"
    p = ds.patches(x=4)
    for result in (
        p.to_zarr(MemoryStore(), progress=False),
        p.map_to_zarr(MemoryStore(), lambda batch: batch, progress=False),
        xpatches.stitch(p.extract(), like=ds),
        p.map(lambda batch: batch),
    ):
        assert "edges" in result.coords
        assert result.time.encoding["bounds"] == "edges"
        assert "bounds" not in result.time.attrs


def test_missing_answers_do_not_count_where_others_are_known() -> None:
    image = xr.DataArray(np.full(8, 0.5, "f4"), dims="x")
    image[0] = 9

    def guess(batch: Any) -> Any:
        return np.where((batch > 1).any(axis=1)[:, None], -9999, batch).astype("f4")

    p = image.patches(x=4, stride=2)
    for taper in (None, "flat", "crop"):
        made = p.map(guess, taper=taper, output={"nodata": -9999})
        assert made.values.tolist() == [-9999, -9999, *[0.5] * 6]
    for reduce in ("max", "min", "first", "vote", "mean"):
        classes = p.map(
            lambda batch: np.where((batch > 1).any(axis=1)[:, None], 255, 3 + 0 * batch).astype(
                "u1"
            ),
            output={"dtype": "u1", "nodata": 255},
            reduce=reduce,
        )
        assert classes.values.tolist() == [255, 255, *[3] * 6], reduce
        counted = p.map(
            lambda batch: np.where((batch > 1).any(axis=1)[:, None], 255, 3 + 0 * batch).astype(
                "u1"
            ),
            output={"dtype": "u1", "nodata": 255},
            reduce=reduce,
            skipna=False,
        )
        assert (reduce in ("max", "first")) == (counted.values[2] == 255), reduce


def test_declared_nodata_of_patches_does_not_count_when_they_are_stitched() -> None:
    image = xr.DataArray(np.arange(1, 7, dtype="u1"), dims="x", attrs={"_FillValue": 255})
    patches = image.patches(x=4, stride=2).extract()
    patches[0] = 255
    for reduce in ("mean", "first", "max"):
        stitched = xpatches.stitch(patches, reduce=reduce)
        assert stitched.values.tolist() == [255, 255, 3, 4, 5, 6]
    assert xpatches.stitch(image.patches(x=4).extract()).values.tolist() == [1, 2, 3, 4, 255, 255]


def test_padding_with_nodata_is_no_sample_of_a_reduction() -> None:
    samples = np.arange(1, 10, dtype="i2").reshape(3, 3)
    image = xr.DataArray(samples, dims=("y", "x"), attrs={"_FillValue": -9999})
    p = image.patches(y=3, x=3, stride=1, padding="same")
    assert p.reduce("mean").values[0].tolist() == [3.0, 3.5, 4.0]
    assert p.reduce("min").values[0].tolist() == [1, 1, 2]
    assert p.reduce("count").values[0].tolist() == [4, 6, 4]
    assert p.reduce("mean", ignore_padding=False).values[0, 0] < -5000
    given = image.patches(y=3, x=3, stride=1, padding="same", fill_value=0)
    assert given.reduce("sum").values[0, 0] == 12


def test_labels_outside_are_stored_as_they_are_whatever_stored_those_inside(tmp_path: Any) -> None:
    days = np.datetime64("2024-01-01", "ns") + np.arange(6) * np.timedelta64(1, "D")
    image = xr.DataArray(
        np.arange(6.0), {"t": days, "n": ("t", np.arange(6, dtype="u2"))}, ("t",), "b"
    )
    image.t.encoding = {"units": "days since 2024-01-01", "dtype": "uint16"}
    image.to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    opened = xr.load_dataarray(tmp_path / "b.nc", engine="h5netcdf")
    p = opened.patches(t=3, stride=2, padding=(2, 2))
    for layout in ("grid", "samples"):
        written = p.to_zarr(MemoryStore(), label="origin", layout=layout, progress=False)
        assert written.t.values[0] == np.datetime64("2023-12-30")
        assert written.n.values[:2].tolist() == [-2, 0]
    p[0].to_netcdf(tmp_path / "p.nc", engine="h5netcdf")
    again = xr.open_dataarray(tmp_path / "p.nc", engine="h5netcdf")
    xr.testing.assert_equal(again, p[0])


def test_what_others_name_as_their_crs_or_bounds_is_no_data() -> None:
    t = np.arange(6.0)
    ds = xr.Dataset(
        {
            "a": (("y", "x"), np.ones((6, 6)), {"grid_mapping": "crs"}),
            "crs": ((), 0, {"GeoTransform": "0 1 0 0 0 1"}),
            "y_bnds": (("y", "nv"), np.stack([t - 0.5, t + 0.5], 1)),
        },
        {"y": ("y", t, {"bounds": "y_bnds"}), "x": t},
    )
    p = ds.patches(y=3, x=3)
    assert p.reduce("sum").y_bnds.values.tolist() == [[0.5, 1.5], [3.5, 4.5]]
    mapped = p.map(lambda batch: batch + 1)
    np.testing.assert_array_equal(mapped.y_bnds, ds.y_bnds)
    assert "y_bnds" in mapped.coords
    assert p[1].crs.attrs["GeoTransform"] == "3.0 1.0 0.0 0.0 0.0 1.0"
    assert set(p.to_zarr(MemoryStore(), layout="samples", progress=False).data_vars) == {"a"}
