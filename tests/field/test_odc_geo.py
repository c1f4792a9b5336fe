"""Geoboxes of odc-geo: where every result lies, right afterwards."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import xpatches

odc = pytest.importorskip("odc.geo.xr")
geobox = pytest.importorskip("odc.geo.geobox")


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
@pytest.mark.parametrize("stack", [False, True])
def test_results_lie_where_odc_geo_would_put_them(crs: str, stack: bool) -> None:
    step = 10 if crs == "EPSG:32633" else 0.25
    box = geobox.GeoBox.from_bbox((0, 0, 64 * step, 48 * step), crs, resolution=step)
    image = odc.wrap_xr(np.arange(48 * 64).reshape(48, 64).astype("uint16"), box, nodata=7)
    source: Any = xr.Dataset({"red": image, "nir": image + 1}) if stack else image
    y, x = image.dims
    p = source.patches({y: 8, x: 8}, stride=4, padding="same")
    zoomed = box.zoom_out(4)

    def half(batch: Any) -> Any:
        return batch.astype("float32") / 2

    where = {
        "extract": (p.extract(), zoomed),
        "reduce": (p.reduce("max"), zoomed),
        "grid": (p.to_zarr(MemoryStore(), progress=False), zoomed),
        "map": (p.map(half, output={"dtype": "float32"}), box),
        "job": (
            p.map_to_zarr(MemoryStore(), half, output={"dtype": "float32"}, progress=False),
            box,
        ),
        "patch": (p[17], box[2:10, 2:10]),
        "padded": (p[0], box.pad(2)[:8, :8]),
        "stitch": (xpatches.stitch(p.extract(), like=source, reduce="first"), box),
    }
    for verb, (result, expected) in where.items():
        array = result["red"] if stack else result
        assert array.odc.geobox.crs == box.crs, verb
        assert array.odc.geobox.shape == expected.shape, verb
        np.testing.assert_allclose(
            tuple(array.odc.geobox.transform), tuple(expected.transform), err_msg=verb, atol=1e-9
        )
    assert p[0][x].values[0] == image[x].values[0] - 2 * step
    assert "(nodata)" in repr(p)


def test_a_rotated_raster_labelled_by_its_pixels_stays_where_it_is() -> None:
    affine = pytest.importorskip("affine").Affine
    turned = affine.translation(5e5, 5e6) @ affine.rotation(30) @ affine.scale(10, -10)
    image = odc.wrap_xr(np.zeros((20, 30), "i2"), geobox.GeoBox((20, 30), turned, "EPSG:32633"))
    patch = image.patches(y=4, x=4)[1, 2]
    expected = turned @ affine.translation(8, 4)
    np.testing.assert_allclose(tuple(patch.odc.geobox.affine), tuple(expected))
    reduced = image.patches(y=4, x=4).reduce("mean")
    expected = turned @ affine.scale(4)
    np.testing.assert_allclose(tuple(reduced.odc.geobox.affine), tuple(expected))
