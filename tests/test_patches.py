import json
from typing import Any, ClassVar

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xpatches
from reference import Array, four_loops, same_bits
from strategies import arguments, chunkings, problems
from xpatches import PatchError, Patches
from xpatches.dtypes import as_fill_value
from xpatches.geometry.grid import AxisGrid
from xpatches.images.spec import read_spec


def image(ny: int = 20, nx: int = 31, depth: int = 2) -> xr.DataArray:
    """A labelled image with a coord of every kind."""
    rng = np.random.default_rng(0)
    return xr.DataArray(
        rng.integers(0, 999, (2, ny, nx, depth)),
        dims=("batch", "y", "x", "depth"),
        coords={
            "y": np.linspace(50.0, 40.0, ny),
            "time": (
                "y",
                np.datetime64("2000-01-01", "ns") + np.arange(ny) * np.timedelta64(1, "D"),
            ),
            "station": ("x", [f"s{i}" for i in range(nx)]),
            "odd": ("x", np.arange(nx) % 2 == 1),
            "lat": (("y", "x"), rng.random((ny, nx))),
            "row_depth": (("y", "depth"), rng.random((ny, depth))),
            "depth": ["r", "g", "b", "a"][:depth],
            "crs": ((), 0, {"epsg": 4326}),
        },
        name="image",
        attrs={"units": "1"},
    )


def named(problem: tuple[Array, dict[int, AxisGrid]]) -> tuple[xr.DataArray, dict[str, Any]]:
    """The labelled form of a problem, and the arguments that ask for its patches."""
    array, grids = problem
    da_ = xr.DataArray(array, dims=[f"d{axis}" for axis in range(array.ndim)])
    per_dim = {
        name: {f"d{axis}": getattr(grid, name) for axis, grid in grids.items()}
        for name in ("size", "stride", "rate", "padding")
    }
    return da_, per_dim


@given(problems(), st.data())
def test_patches_are_those_of_the_four_loops(
    problem: tuple[Array, dict[int, AxisGrid]], data: st.DataObject
) -> None:
    array, grids = problem
    da_, asked = named(problem)
    # xarray keeps times in s, ms, us or ns.
    expected = four_loops(da_.values, arguments(grids), as_fill_value(None, da_.dtype))
    result = da_.patches(**asked).extract()
    assert same_bits(result.values, expected)
    chunks = {f"d{i}": data.draw(chunkings(n)) for i, n in enumerate(array.shape) if n}
    chunked = da_.chunk(chunks).patches(**asked).extract()
    assert same_bits(chunked.values, expected)
    assert chunked.attrs == result.attrs
    xr.testing.assert_identical(chunked.coords.to_dataset(), result.coords.to_dataset())


@given(problems(max_spatial=2))
def test_every_patch_is_that_of_the_extraction(problem: tuple[Array, dict[int, AxisGrid]]) -> None:
    da_, asked = named(problem)
    p = da_.patches(**asked)
    whole = p.extract()
    spatial = list(p.grid.dims)
    assert len(list(p)) == len(p) == p.grid.total
    for index, patch in zip(np.ndindex(*p.grid.counts.values()), p, strict=True):
        at = dict(zip(spatial, index, strict=True))
        renamed = whole.isel(at).rename({f"{dim}_patch": dim for dim in spatial})
        assert same_bits(patch.values, renamed.transpose(*da_.dims).values)
        for dim in spatial:
            expected = whole[f"{dim}_origin"][at[dim]] + whole[f"{dim}_patch"]
            assert patch[f"{dim}_index"].values.tolist() == expected.values.tolist()
            assert patch[f"{dim}_index"].dtype == "int64"


def test_the_patch_dims_come_right_after_the_last_spatial_dim() -> None:
    result = image().patches(x=3, y=4).extract()
    assert result.dims == ("batch", "y", "x", "y_patch", "x_patch", "depth")
    assert image().transpose("x", "depth", "y", "batch").patches(x=3, y=4).extract().dims == (
        *("x", "depth", "y", "x_patch", "y_patch", "batch"),
    )


@pytest.mark.parametrize("chunks", [None, {"y": 7, "x": 9, "depth": 1}])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_flattening_gives_tensorflows_layout(chunks: Any, padding: str) -> None:
    source = image() if chunks is None else image().chunk(chunks)
    flat = source.patches(y=3, x=4, stride=2, padding=padding).extract(flatten="patch")
    expected = xpatches.extract_patches(
        image().values, [1, 3, 4, 1], [1, 2, 2, 1], [1, 1, 1, 1], padding.upper()
    )
    assert flat.dims == ("batch", "y", "x", "patch")
    assert same_bits(flat.values, expected)
    assert flat.y_patch.values.tolist() == np.repeat([0, 1, 2], 8).tolist()
    assert flat.depth.values.tolist() == ["r", "g"] * 12
    assert flat.row_depth.dims == ("y", "patch")
    assert flat.row_depth.shape == (flat.sizes["y"], 24)


def test_labels_are_those_of_the_center() -> None:
    source = image()
    result = source.patches(y=3, x=4, stride=5).extract()
    # Centers, counted by hand: rows 1, 6, 11, 16; columns 1, 6, 11, ...
    rows, columns = [1, 6, 11, 16], [1, 6, 11, 16, 21, 26]
    for name in ("y", "time", "station", "odd"):
        dims = {"y": rows, "x": columns}
        expected = source[name].isel({d: i for d, i in dims.items() if d in source[name].dims})
        assert result[name].values.tolist() == expected.values.tolist()
        assert result[name].dtype == source[name].dtype
        assert result[name].attrs == source[name].attrs
    # Patches of four columns have their middle between two of them.
    left, right = (
        source.lat.values[np.ix_(np.array(rows), np.array(columns) + one)] for one in (0, 1)
    )
    np.testing.assert_allclose(result.lat.values, (left + right) / 2, rtol=1e-15)
    assert result.y_origin.values.tolist() == [0, 5, 10, 15]
    assert (result.y_origin.dtype, result.y_origin.dims) == (np.int64, ("y",))
    assert result.x_patch.values.tolist() == [0, 1, 2, 3]


def test_everything_else_passes_through() -> None:
    result = image().patches(y=3, x=4).extract()
    assert result.name == "image"
    assert result.attrs["units"] == "1"
    assert result.depth.values.tolist() == ["r", "g"]
    assert result.crs.attrs == {"epsg": 4326}
    assert "x" not in result.coords
    assert image().attrs == {"units": "1"}


def test_labels_outside_the_image_go_on_where_they_are_even_and_are_missing_elsewhere() -> None:
    result = image().patches(y=4, x=3, stride=1, padding="same").extract(label="origin")
    assert result.y_origin.values[:2].tolist() == [-1, 0]
    assert result.y.values[0] == pytest.approx(50 + 10 / 19)
    assert result.y.values[1:].tolist() == image().y.values[:19].tolist()
    assert result.time.values[0] == np.datetime64("1999-12-31")
    assert result.station.values[:2].tolist() == [None, "s0"]
    assert result.odd.values[:3].tolist() == [None, False, True]
    assert np.isnan(result.lat.values[0]).all()
    assert result.time.dtype == image().time.dtype


@pytest.mark.parametrize("last", [80, 81])
def test_integer_labels_outside_the_image_go_on_or_are_nan(last: int) -> None:
    even = last == 80
    source = xr.DataArray(np.arange(9), {"x": [*range(0, 80, 10), last]}, name="a")
    p = source.patches(x=3, stride=3, padding=(1, 2))
    assert p[0].x.values[1:].tolist() == [0, 10]
    assert p[0].x.values[0] == -10 if even else np.isnan(p[0].x.values[0])
    assert (p[0].x.dtype == source.x.dtype) == even
    assert p[1].x.dtype == source.x.dtype
    far = source.patches(x=3, stride=4, padding=(6, 0))
    expected = [-60.0, -50, -40] if even else [np.nan] * 3
    np.testing.assert_array_equal(far[0].x.values, expected)
    np.testing.assert_array_equal(
        far.extract().x, [-50 if even else np.nan, -10 if even else np.nan, 30, 70]
    )


def test_labels_that_a_narrow_dtype_cannot_hold_get_a_wider_one() -> None:
    source = xr.DataArray(np.arange(4), {"x": np.array([250, 252, 254, 255], "uint8")})
    assert np.isnan(source.patches(x=3, padding="same", stride=1)[0].x.values[0])
    source = source.assign_coords(x=np.array([249, 251, 253, 255], "uint8"))
    edge = source.patches(x=3, padding=(0, 1), stride=1)[-1]
    assert (edge.x.values.tolist(), edge.x.dtype) == ([253, 255, 257], np.int64)


def test_longitudes_are_averaged_the_shorter_way_round() -> None:
    lon = np.array([176.0, 178, -180, -178])
    image = xr.DataArray(lon, {"lon": ("lon", lon, {"units": "degrees_east"})})
    for shown in (image, image.chunk(lon=2)):
        centers = shown.patches(lon=2, stride=1).extract().lon.values
        assert ((centers + 360) % 360).tolist() == [177, 179, 181]
    swath = xr.DataArray(lon, {"place": ("x", lon, {"standard_name": "longitude"})}, ("x",))
    assert swath.patches(x=2, stride=1).extract().place.values[1] % 360 == 179


def test_labels_that_are_even_within_rounding_go_on() -> None:
    for x in (np.arange(90, dtype="f4") * np.float32(0.1) + 30, np.arange(90) * 0.1):
        for stored in (x, x.astype("f4").astype("f8")):
            edge = xr.DataArray(np.zeros(90), {"x": stored}).patches(x=3, stride=1, padding="same")[
                0
            ]
            assert edge.x.dtype == stored.dtype
            assert edge.x.values[0] == pytest.approx(stored[0] - 0.1, abs=1e-5)
    gaussian = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(160)[0]))
    for uneven in (gaussian, np.geomspace(1, 2, 90), [0.0, np.nan, 2.0], np.ones(5)):
        edge = xr.DataArray(np.zeros(len(uneven)), {"x": uneven}).patches(x=3, padding=(1, 1))[0]
        assert np.isnan(edge.x.values[0])


def test_the_label_of_a_patch_is_that_of_its_true_middle() -> None:
    days = np.datetime64("2000-01-01", "s") + np.arange(9) * np.timedelta64(1, "D")
    source = xr.DataArray(
        np.zeros((9, 9)),
        {
            "y": [0.0, 1, 3, 6, 10, 15, 21, 28, 36],
            "x": np.arange(9) * 10,
            "day": ("y", days),
            "second": ("y", np.datetime64("2000-01-01", "s") + np.arange(9).astype("m8[s]")),
            "name": ("x", list("abcdefghi")),
            "lat": (("y", "x"), np.arange(81.0).reshape(9, 9)),
        },
        ("y", "x"),
    )
    for chunks in (None, {"y": 4, "x": 5}):
        shown = source if chunks is None else source.chunk(chunks)
        patches = shown.patches(y=4, x=2, stride=4).extract().compute()
        assert patches.y.values.tolist() == [2.0, 18.0]  # between 1 and 3, and 15 and 21
        assert patches.x.values.tolist() == [5.0, 45.0]
        noon = np.datetime64("2000-01-02T12", "s")
        assert patches.day.values.tolist() == [noon, noon + np.timedelta64(4, "D")] or chunks
        assert patches["name"].values.tolist() == ["a", "e"]
        assert patches.lat.values.tolist() == [[14.0, 18.0], [50.0, 54.0]]
    assert source.patches(y=2).extract().second.dtype == "M8[ns]"
    assert source.patches(y=3).extract().y.values.tolist() == [1.0, 10.0, 28.0]
    # Half a sample beyond the last one, which even labels have and uneven ones have not.
    last = source.patches(y=2, x=2, stride=1, padding="same").extract()
    assert last.x.values[-1] == 85.0
    assert np.isnan(last.y.values[-1])


def test_a_patch_at_the_edge_is_filled_and_says_where_it_lies() -> None:
    source = image()
    p = source.patches(y=4, x=4, stride=4, rate=2, padding="same", fill_value=-1)
    patch = p[0, 0]
    assert patch.dims == source.dims
    assert patch.y_index.values.tolist() == [-1, 1, 3, 5]
    assert (patch.isel(y=0) == -1).all()
    assert patch.y.values[0] == pytest.approx(50 + 10 / 19)
    assert patch.y.values[1:].tolist() == source.y.values[1:6:2].tolist()
    assert patch.time.values[0] == np.datetime64("1999-12-31")
    assert patch.station.values[0] is None
    inner = p[1, 1]
    assert inner.y_index.values.tolist() == [3, 5, 7, 9]
    expected = source.isel(y=slice(3, 10, 2), x=inner.x_index.values)
    assert same_bits(inner.values, expected.values)
    assert inner.attrs == source.attrs


@pytest.mark.parametrize("chunks", [None, {"y": 4}])
def test_a_patch_is_a_copy(chunks: Any) -> None:
    source = image() if chunks is None else image().chunk(chunks)
    patch = source.patches(y=3, x=3)[0].compute()
    patch.values[:] = -7
    assert not (source == -7).any()


def test_isel_and_indexing_agree() -> None:
    p = image().patches(y=3, x=4, stride=2)
    patch = p.isel(y=1, x=-1)
    assert patch.identical(p[1, -1])
    assert patch.identical(p[p.grid.counts["x"] * 2 - 1])
    assert patch.identical(p.isel({"x": -1, "y": 1}))
    assert p[-1].identical(p[-1, -1])


def test_sel_takes_the_patch_by_the_label_of_its_center() -> None:
    source = image().assign_coords(x=[f"s{i:02}" for i in range(31)])
    p = source.patches(y=5, x=3, stride=2, padding="same")
    exact = p.sel(y=source.y.values[5], x="s06")
    assert exact.identical(p[2, 3])
    with pytest.raises(PatchError, match=r"no patch whose center has y=44\.9; use method"):
        p.sel(y=44.9, x="s06")
    p = image().assign_coords(x=np.arange(31.0)).patches(y=5, x=3, stride=2, padding="same")
    # Centers lie on odd rows and even columns: row 5 is at 47.37, row 3 at 48.42.
    assert p.sel(y=47.5, x=7.2, method="nearest").identical(p[2, 4])
    assert p.sel(y=99, x=-99, method="nearest", tolerance=200).identical(p[0, 0])
    with pytest.raises(PatchError, match="sel found no patch"):
        p.sel(y=47.5, x=7.2, method="nearest", tolerance=0.01)


def test_sel_looks_at_centers_that_have_a_label() -> None:
    source = xr.DataArray(np.arange(9), {"x": np.arange(9.0)})
    p = source.patches(x=3, stride=1, padding=(4, 4))
    assert p.sel(x=0.2, method="nearest").x_index.values.tolist() == [-1, 0, 1]
    assert p.sel(x=8.0).x_index.values.tolist() == [7, 8, 9]
    assert p.sel(x=-2.0).x_index.values.tolist() == [-3, -2, -1]
    uneven = source.assign_coords(x=np.arange(9.0) ** 2).patches(x=3, stride=1, padding=(4, 4))
    assert uneven.sel(x=0.2, method="nearest").x_index.values.tolist() == [-1, 0, 1]


def test_sel_takes_the_nearest_center_of_a_label_outside_within_half_a_stride() -> None:
    source = xr.DataArray(np.arange(20), {"x": np.arange(20.0)})
    p = source.patches(x=8, stride=8)  # centers at 3.5 and 11.5
    assert p.sel(x=19.0, method="nearest").x_index.values[0] == 8  # inside
    assert p.sel(x=-0.5, method="nearest").x_index.values[0] == 0
    for label in (-0.6, 19.1, 300.0):
        with pytest.raises(
            PatchError, match=r"outside the image, whose labels go from 0.0 to 19.0"
        ):
            p.sel(x=label, method="nearest")
    assert p.sel(x=300.0, method="nearest", tolerance=np.inf).x_index.values[0] == 8
    days = np.datetime64("2000-01-01", "ns") + np.arange(20) * np.timedelta64(1, "D")
    p = source.rename(x="time").assign_coords(time=days).patches(time=4)
    assert p.sel(time="1999-12-31T12", method="nearest").time_index.values[0] == 0
    with pytest.raises(PatchError, match="outside the image"):
        p.sel(time="1999-12-31", method="nearest")


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("chunks", [None, {"y": 7, "x": 9}])
def test_sel_of_several_labels_takes_what_it_would_of_all_patches(size: int, chunks: Any) -> None:
    source = (
        image().assign_coords(x=np.linspace(5, -10, 31)).drop_vars(["station", "odd", "row_depth"])
    )
    ds = xr.Dataset(
        {
            "image": source,
            "mask": source[0, ..., 0].transpose("x", "y"),
            "row": source[0, :, 0, 0].drop_vars(["lat", "x"]),
        },
    ).drop_vars(["batch"], errors="ignore")
    for shown in (source, ds) if chunks is None else (source.chunk(chunks), ds.chunk(chunks)):
        p = shown.patches(y=size, x=size, stride=3, padding="same")
        whole = p.extract()
        y, x = whole.y.values, whole.x.values
        pair, square = (
            xr.DataArray(np.array(i), dims=d)
            for i, d in (([3, 1], "point"), ([[4, 0], [1, 2]], ("a", "b")))
        )
        for labels in (
            {"y": y[[3, 1]], "x": x[[2, 2, 5]]},
            {"x": list(x[[1, 7]]), "y": y[2]},
            {"y": whole.y[pair].drop_vars("y"), "x": whole.x[pair].drop_vars("x")},
            {"x": whole.x[square].drop_vars("x"), "y": y[[0, 0]]},
        ):
            expected = whole.sel(labels)
            taken = p.sel(labels)
            taken = taken[list(expected)] if isinstance(taken, xr.Dataset) else taken
            xr.testing.assert_identical(taken.compute(), expected.compute())
    with pytest.raises(PatchError, match="sel found no patch"):
        p.sel(y=y[:2], x=[99.0])


def test_sel_of_several_labels_reads_no_other_patches(no_compute: None) -> None:
    source = xr.DataArray(
        da.zeros((400, 400), chunks=20), {"y": range(400), "x": range(400)}, ("y", "x")
    )
    taken = source.patches(y=5, x=5).sel(y=[2, 397], x=[7])
    assert taken.sizes == {"y": 2, "x": 1, "y_patch": 5, "x_patch": 5}
    assert len(dask.optimize(taken.data)[0].__dask_graph__()) < 20


def test_sel_by_texts_of_times_of_another_calendar() -> None:
    pytest.importorskip("cftime")
    times = xr.date_range("2000-02-25", periods=12, calendar="noleap", use_cftime=True)
    p = xr.DataArray(np.arange(12), {"time": times}).patches(time=3)
    assert p.sel(time="2000-02-26").values.tolist() == [0, 1, 2]
    assert p.sel(time=["2000-03-01", "2000-03-04"]).values.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert p.sel(time="2000-03-02", method="nearest").values.tolist() == [3, 4, 5]
    with pytest.raises(PatchError, match="cannot look up 'soon'"):
        p.sel(time="soon", method="nearest")
    even = p.source.patches(time=2, stride=1, padding="same").extract().time
    assert [str(time) for time in even.values[[0, 3, -1]]] == [
        "2000-02-25 12:00:00",
        "2000-02-28 12:00:00",
        "2000-03-08 12:00:00",
    ]


def test_sel_on_times() -> None:
    days = np.datetime64("2000-01-01", "ns") + np.arange(20) * np.timedelta64(1, "D")
    p = xr.DataArray(np.arange(20), {"time": days}).patches(time=3)
    assert p.sel(time="2000-01-05").values.tolist() == [3, 4, 5]
    near = np.datetime64("2000-01-06T01")
    assert p.sel(time=near, method="nearest").values.tolist() == [3, 4, 5]
    with pytest.raises(PatchError, match="sel on 'time' must name one patch, got '2000-01'"):
        p.sel(time="2000-01")


def test_sel_on_coords_that_cannot_be_looked_up_names_the_dim() -> None:
    source = xr.DataArray(np.arange(6), {"x": [0.0, 0, 0, 0, 1, 1]})
    with pytest.raises(PatchError, match=r"sel on 'x' cannot look up 0\.4, .*; use isel"):
        source.patches(x=1).sel(x=0.4, method="nearest")
    with pytest.raises(PatchError, match="sel on 'x' must name one patch, got 1, which names 2"):
        source.patches(x=1).sel(x=1)


def test_uneven_and_unindexed_coords_need_nothing() -> None:
    source = xr.DataArray(np.arange(6), {"x": [0.0, 5, 1, 1, 9, 2]}).drop_indexes("x")
    result = source.patches(x=2).extract()
    assert result.x.values.tolist() == [2.5, 1.0, 5.5]
    assert source.patches(x=2)[1].x.values.tolist() == [1.0, 1.0]


def test_a_multiindex_is_cut_like_any_other() -> None:
    source = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=("a", "b")).stack(x=("a", "b"))
    result = source.patches(x=2).extract()
    assert result.a.values.tolist() == [0, 0, 1]
    assert result.b.values.tolist() == [0, 2, 1]
    edge = source.patches(x=3, stride=2, padding="same")[-1]
    assert np.isnan(edge.a.values[-1])


def test_a_dataset_is_cut_variable_by_variable() -> None:
    ds = xr.Dataset(
        {
            "rgb": (("y", "x", "band"), np.arange(9 * 8 * 3, dtype="u1").reshape(9, 8, 3)),
            "mask": (("x", "y"), np.ones((8, 9), bool)),
            "profile": ("y", np.arange(9.0)),
            "version": ((), 3),
            "weights": ("band", [0.2, 0.5, 0.3]),
        },
        coords={"y": np.arange(9.0), "x": np.arange(8.0)},
        attrs={"title": "t"},
    )
    p = ds.patches(y=3, x=2, stride=2, padding="same", fill_value={"profile": np.nan})
    result = p.extract()
    for name in ("rgb", "mask", "profile"):
        dims = {d: k for d, k in {"y": 3, "x": 2}.items() if d in ds[name].dims}
        fill = np.nan if name == "profile" else None
        alone = ds[name].patches(dims, stride=2, padding="same", fill_value=fill).extract()
        xr.testing.assert_equal(result[name].variable, alone.variable)
        # Alone, the mask is numbered in its own order.
        order = ["y", "x"] if name != "profile" else ["y"]
        assert [axis["dim"] for axis in json.loads(result[name].attrs["xpatches"])["axes"]] == order
    assert result.mask.dims == ("x", "y", "x_patch", "y_patch")
    assert result.version.identical(ds.version)
    assert result.weights.identical(ds.weights)
    assert result.attrs == {"title": "t"}
    assert p.nbytes == sum(result[name].nbytes for name in ("rgb", "mask", "profile"))
    patch = p[1, 2]
    assert patch.sizes == {"y": 3, "x": 2, "band": 3}
    assert patch.profile.values.tolist() == [1.0, 2.0, 3.0]
    assert set(p.plan()) == {"rgb", "mask", "profile"}
    xr.testing.assert_identical(
        ds.chunk(y=2, x=3)
        .patches(y=3, x=2, stride=2, padding="same", fill_value={"profile": np.nan})
        .extract()
        .compute(),
        result,
    )


def test_flattening_a_dataset_needs_equal_dims_behind_the_spatial_ones() -> None:
    ds = xr.Dataset({"a": (("y", "b"), np.zeros((4, 2))), "c": (("y", "b"), np.ones((4, 2)))})
    flat = ds.patches(y=2).extract(flatten="patch")
    assert flat.sizes == {"y": 2, "patch": 4}
    for odd in (("y", np.zeros(4)), ("b", np.zeros(2))):
        with pytest.raises(PatchError, match="flatten='patch' joins the dims"):
            ds.assign(d=odd).patches(y=2).extract(flatten="patch")


def test_len_grid_sizes_and_nbytes_describe_the_extraction() -> None:
    p = image().patches(y=3, x=4, stride=2, rate=2, padding="same")
    result = p.extract()
    assert p.grid.counts == {d: result.sizes[d] for d in ("y", "x")}
    assert p.sizes == {"y": 3, "x": 4}
    assert len(p) == result.sizes["y"] * result.sizes["x"]
    assert p.nbytes == result.nbytes
    assert isinstance(p, Patches)


def test_patches_cannot_be_changed() -> None:
    p = image().patches(y=3, x=4)
    with pytest.raises(AttributeError):
        p.grid = None


def test_one_value_serves_all_dims_and_a_mapping_may_leave_some_out() -> None:
    p = image().patches(y=3, x=4, stride={"y": 1}, rate=2, padding={"x": "same"})
    assert p.grid["y"] == AxisGrid("y", 20, 3, 1, 2, "valid")
    assert p.grid["x"] == AxisGrid("x", 31, 4, 4, 2, "same")
    assert image().patches(size={"x": 4}, y=3, stride=1, padding=(1, 2)).grid["y"].pads == (1, 2)


def test_dims_named_like_arguments_are_given_by_mapping() -> None:
    source = xr.DataArray(np.arange(12).reshape(3, 4), dims=("stride", "rate"))
    assert source.patches({"stride": 3, "rate": 2}).extract().dims[-2:] == (
        "stride_patch",
        "rate_patch",
    )


def test_the_spec_is_json_from_which_the_grid_can_be_rebuilt() -> None:
    p = image().patches(
        y=3, x=4, stride=2, rate=2, padding={"y": "same", "x": (1, 2)}, fill_value=7
    )
    result = p.extract(flatten="patch")
    spec = json.loads(result.attrs["xpatches"])
    assert spec["dims"] == ["batch", "y", "x", "depth"]
    assert spec["fill_value"] == 7
    assert spec["flattened"] == [["y_patch", 3], ["x_patch", 4], ["depth", 2]]
    assert read_spec(result.attrs).grid == p.grid
    with pytest.raises(PatchError, match="no attr 'xpatches': it does not come from extract"):
        read_spec({})
    with pytest.raises(PatchError, match="is of version 99, this xpatches reads 2"):
        read_spec({"xpatches": json.dumps({**spec, "version": 99})})


@pytest.mark.parametrize(
    ("dtype", "fill", "stored"),
    [("f4", np.nan, "nan"), ("f4", 0.5, 0.5), ("?", True, True), ("u8", 2**64 - 1, 2**64 - 1),
     ("M8[s]", None, "NaT"), ("U3", "abc", "abc"), ("c8", 1j, "1j"), ("f8", -np.inf, "-inf")],
)  # fmt: skip
def test_every_fill_value_can_be_stored(dtype: str, fill: Any, stored: Any) -> None:
    source = xr.DataArray(np.zeros(4, dtype), dims="x")
    result = source.patches(x=3, padding="same", fill_value=fill).extract()
    assert json.loads(result.attrs["xpatches"])["fill_value"] == stored


def test_building_and_describing_compute_nothing(no_compute: None) -> None:
    source = image().chunk(y=6, x=7)
    p = source.patches(y=5, x=5, stride=2, padding="same")
    assert dask.is_dask_collection(p.extract())
    assert dask.is_dask_collection(p.extract(flatten="patch", label="origin"))
    assert dask.is_dask_collection(p[0])
    by_label = source.assign_coords(x=np.arange(31)).patches(y=5, x=5, stride=2)
    assert dask.is_dask_collection(by_label.sel(y=45.0, x=3, method="nearest"))
    assert "160 patches" in repr(p)
    assert p.plan()["blocks"] > 1


def test_the_graph_of_one_patch_is_small() -> None:
    source = xr.DataArray(da.zeros((100, 100), chunks=2), dims=("y", "x"))
    patch = source.patches(y=4, x=4)[100].data
    assert patch.shape == (4, 4)
    assert len(dask.optimize(patch)[0].__dask_graph__()) <= 10


def test_lazy_coords_stay_lazy(no_compute: None) -> None:
    lat = xr.DataArray(da.zeros((20, 31), chunks=(6, 7)), dims=("y", "x"))
    source = image().assign_coords(lat=lat)
    for label in ("center", "origin"):
        result = source.patches(y=4, x=4, padding="same").extract(label=label)
        assert dask.is_dask_collection(result.lat.data)
    assert dask.is_dask_collection(source.patches(y=4, x=4, padding="same")[0].lat.data)


def test_keys_are_deterministic() -> None:
    source = image().chunk(y=6, x=7)
    p, q = (source.patches(y=5, x=5, stride=2) for _ in range(2))
    assert p.extract().data.name == q.extract().data.name
    assert p[3].data.name == q[3].data.name
    assert p[3].data.name != p[4].data.name


def test_the_plan_tells_the_extraction() -> None:
    source = image().chunk(y=6, x=7, batch=1)
    p = source.patches(y=5, x=5, stride=1, padding="same")
    plan, result = p.plan(), p.extract()
    assert plan["patches"] == len(p)
    assert plan["engine"] == "map_overlap"
    assert plan["blocks"] == result.data.npartitions
    assert plan["halo"] == {"y": [2, 2], "x": [2, 2]}
    assert plan["chunks"] == {dim: list(n) for dim, n in result.variable.chunksizes.items()}
    assert plan["regions"]["y"] == [[0, 8], [4, 14], [10, 20], [16, 20]]
    assert plan["regions"]["batch"] == [[0, 1], [1, 2]]
    assert plan["max_bytes"] == 2**27
    assert plan["tasks"] + plan["image_tasks"] == len(result.data.__dask_graph__())
    assert json.loads(json.dumps(plan)) == plan
    flat = p.plan(flatten="patch", max_bytes="10 kB")
    result = p.extract(flatten="patch", max_bytes=10_000)
    assert flat["chunks"] == {dim: list(n) for dim, n in result.variable.chunksizes.items()}
    assert image().patches(y=5, x=5).plan()["engine"] == "numpy"


def test_the_reprs_say_what_there_is() -> None:
    p = image().patches(y=3, x=4, stride=2, padding={"x": "same", "y": (1, 0)})
    assert repr(p).splitlines() == [
        "<xpatches.Patches: 160 patches, 61.4 kB in all>",
        "Source: DataArray 'image' int64 (batch: 2, y: 20, x: 31, depth: 2)",
        "Fill:   0 (no nodata declared)",
        "Grid:",
        "    dim  count  size  stride  rate  padding",
        "    y       10     3       2     1  (1, 0)",
        "    x       16     4       2     1  same (1, 2)",
    ]
    markup = p._repr_html_()
    assert "<td>same (1, 2)</td>" in markup
    assert "&lt;xpatches.Patches: 160 patches" in markup
    ds = image().to_dataset().patches(y=3, x=4)
    assert "Fill:   image 0 (no nodata declared)" in repr(ds)
    assert "1 patch," in repr(image().patches(y=20, x=31))


def test_patches_of_a_patch() -> None:
    patch = image().patches(y=10, x=10)[0]
    result = patch.patches(y=5, x=5).extract()
    assert result.y_index.values.tolist() == [2, 7]
    with pytest.raises(PatchError, match="already has a dim, coord or variable 'y_index'"):
        patch.patches(y=5, x=5)[0]


def test_missing_labels_keep_the_attrs_of_their_coord() -> None:
    source = image().assign_coords(y=("y", np.arange(20.0), {"units": "m"}))
    p = source.patches(y=4, x=4, stride=1, padding="same")
    for result in (p[0], p[200], p.extract(label="origin"), p.extract()):
        assert result.y.attrs == {"units": "m"}


def test_later_changes_to_the_source_change_nothing() -> None:
    ds = image().to_dataset()
    p = ds.patches(y=3, x=3)
    before = p[0]
    ds["image"] = ds.image * 0.5
    ds["y_patch"] = 3
    assert p[0].identical(before)
    assert p.extract().image.dtype == before.image.dtype


def test_lazy_coords_without_an_index_stay_so(no_compute: None) -> None:
    source = xr.DataArray(da.zeros((20, 20), chunks=6), dims=("y", "x"))
    coords = xr.Coordinates({"y": ("y", da.arange(20, chunks=6))}, indexes={})
    source = source.assign_coords(coords)
    p = source.patches(y=4, x=4, stride=3, padding="same")
    for result in (p.extract(), p.extract(label="origin"), p[0], p[9]):
        assert dask.is_dask_collection(result.y.data)
        assert "y" not in result.xindexes


def test_flattening_keeps_labels_that_are_not_numpys() -> None:
    days = pd.date_range("2000-01-01", periods=2, tz="Asia/Tokyo")
    flat = image().assign_coords(depth=days).patches(y=3, x=4).extract(flatten="patch")
    assert list(flat.indexes.get("depth", flat.depth.to_index())) == [*days] * 12


def test_the_transform_of_the_image_becomes_that_of_its_patches() -> None:
    crs = xr.Variable((), 0, {"crs_wkt": "...", "GeoTransform": "7 10 0 5 0 -10"})
    source = image().assign_coords(spatial_ref=crs)
    p = source.patches(y=4, x=4, stride=(4), rate={"x": 2}, padding={"x": "same"})

    def transform(obj: xr.DataArray) -> list[float]:
        return [float(number) for number in obj.spatial_ref.attrs["GeoTransform"].split()]

    before = p[0]
    # Rows 0, 4, ... have their middles at 2, 6, ... of pixels, columns from -3 on at 0.5 + 0.5.
    assert p.grid["x"].before == 2
    assert transform(p.extract()) == [7 + 10 * (1.5 - 2.0), 40, 0, 5, 0, -40]
    assert transform(p[1, 1]) == [7 + 10 * (2 - 0.5), 20, 0, 5 - 40, 0, -10]
    assert p[0].identical(before)
    assert source.spatial_ref.attrs == crs.attrs
    for renamed in ({"x": "column", "y": "row"}, {"y": "row"}):
        shown = source.rename(dict(renamed))
        named = shown.patches({renamed.get("x", "x"): 4, "row": 4}).extract().spatial_ref.attrs
        assert ("GeoTransform" in named) == ("x" not in renamed)
    damaged = source.assign_coords(spatial_ref=crs.copy())
    damaged.spatial_ref.attrs["GeoTransform"] = "no numbers"
    assert damaged.patches(y=4)[0].spatial_ref.attrs == {"crs_wkt": "..."}


def test_dims_need_not_be_strings() -> None:
    source = xr.DataArray(np.arange(20).reshape(4, 5), dims=(0, "x"))
    result = source.patches({0: 2, "x": 2}).extract()
    assert result.dims == (0, "x", "0_patch", "x_patch")
    assert source.patches({0: 2, "x": 2})[0].values.tolist() == [[0, 1], [5, 6]]
    assert len(source.rename(x="self").patches(self=5)) == 1


def test_the_link_to_the_crs_is_kept_and_the_packing_is_not() -> None:
    source = image()
    source.encoding = {"grid_mapping": "crs", "scale_factor": 2, "chunks": (1, 1, 1, 1)}
    p = source.patches(y=4, x=4)
    assert p.extract().encoding == p[0].encoding == {"grid_mapping": "crs"}


def test_chunks_of_unknown_length_are_refused() -> None:
    line = da.from_array(np.arange(9), chunks=3)
    source = xr.DataArray(line[line > 3], dims="x")
    with pytest.raises(PatchError, match="the image has chunks of unknown length"):
        source.patches(x=2)


@pytest.mark.parametrize("name", ["y_patch", "y_origin"])
def test_names_that_an_extraction_adds_are_refused(name: str) -> None:
    for source in (image().rename(batch=name), image().assign_coords({name: ("x", np.arange(31))})):
        with pytest.raises(PatchError, match=f"already has a dim, coord or variable '{name}'"):
            source.patches(y=3)
    with pytest.raises(PatchError, match="already has a dim, coord or variable 'patch'"):
        image().rename(batch="patch").patches(y=3).extract(flatten="patch")


def test_the_spec_tells_what_labels_the_patches() -> None:
    p = image().patches(y=3, x=4)
    for label in ("center", "origin"):
        spec = json.loads(p.extract(label=label).attrs["xpatches"])
        assert (spec["label"], spec["flattened"]) == (label, [])


@pytest.mark.filterwarnings("ignore:Duplicate dimension names")
def test_every_dim_must_stand_once() -> None:
    twice = xr.DataArray(np.zeros((4, 4)), dims=("x", "x"))
    with pytest.raises(PatchError, match="the image must have every dim once"):
        twice.patches(x=2)


class OnGPU:
    """An array as cupy's are: not NumPy's, and not turned into one unasked."""

    __cuda_array_interface__: ClassVar[dict[str, Any]] = {}

    def __init__(self, samples: Any) -> None:
        self._samples = samples
        self.shape, self.dtype, self.ndim = samples.shape, samples.dtype, samples.ndim
        self.size, self.nbytes = samples.size, samples.nbytes

    def __array_function__(self, *_: Any) -> Any:
        raise TypeError("not here")

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("not here")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("use .get()")

    def __getitem__(self, key: Any) -> "OnGPU":
        return OnGPU(self._samples[key])


OnGPU.__name__, OnGPU.__module__ = "ndarray", "cupy"
PLAIN = xr.DataArray(np.arange(100.0).reshape(10, 10), dims=("y", "x"), name="image")


def sparse_like(samples: Any) -> Any:
    return pytest.importorskip("sparse").COO.from_numpy(samples)


@pytest.mark.parametrize(
    ("held", "kind"), [(OnGPU, "cupy.ndarray on a GPU"), (sparse_like, "sparse.COO")]
)
def test_what_another_library_holds_is_refused_when_patches_are_described(
    held: Any, kind: str
) -> None:
    foreign = held(PLAIN.values)
    message = rf"must hold NumPy or dask data, got {kind}; convert it first, with .as_numpy\(\)$"
    with pytest.raises(PatchError, match=f"^the image {message}"):
        PLAIN.copy(data=foreign).patches(y=3, x=3)
    with pytest.raises(PatchError, match=f"^'b' {message}"):
        xr.Dataset({"a": PLAIN, "b": (("y", "x"), foreign)}).patches(y=3, x=3)
    with pytest.raises(PatchError, match=f"^coord 'm' {message}"):
        PLAIN.assign_coords(m=(("y", "x"), foreign)).patches(y=3, x=3)
    lazy = dask.array.from_array(foreign, chunks=5, asarray=False)
    with pytest.raises(PatchError, match=f"^the image must hold NumPy chunks, got {kind}; conv"):
        PLAIN.copy(data=lazy).patches(y=3, x=3)
    with pytest.raises(PatchError, match=f"^coord 'm' must hold NumPy chunks, got {kind}; conv"):
        PLAIN.assign_coords(m=(("y", "x"), lazy)).patches(y=3, x=3)
    images, ones = held(np.zeros((1, 10, 10, 1))), [1, 1, 1, 1]
    with pytest.raises(PatchError, match=f"images must be a NumPy or dask array, got {kind}; "):
        xpatches.extract_patches(images, ones, ones, ones, "VALID")


def test_dims_are_named_by_strings() -> None:
    image = PLAIN.rename(y=("y", 1))
    for size in ({("y", 1): 3, "x": 3}, {"x": 3}):
        with pytest.raises(PatchError, match=r"dims of the image must be named by strings, got"):
            image.patches(size)
