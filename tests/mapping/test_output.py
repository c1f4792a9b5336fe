"""What a model is declared to return, and where it is laid."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from models import CUT, IMAGE, identity
from reference import Array
from xpatches import PatchError

OUTPUTS: dict[str, tuple[dict[str, Any], Callable[[Array], Array], Callable[[Any], Any]]] = {
    "new dim": (
        {"dims": ("of", "y", "x"), "sizes": {"of": 2}},
        lambda batch: np.stack([batch, batch + 1], axis=1),
        lambda image: xr.concat([image, image + 1], "of"),
    ),
    "order of dims": (
        {"dims": ("x", "y")},
        lambda batch: batch.transpose(0, 2, 1),
        lambda image: image.transpose("x", "y"),
    ),
    "dtype": (
        {"dtype": "int16"},
        lambda batch: (batch * 100).astype("i2"),
        lambda image: (image * 100).astype("i2"),
    ),
    "same kind": (
        {"dtype": "float32"},
        lambda batch: batch,
        lambda image: image.astype("f4"),
    ),
    "cropped": (
        {"sizes": {"y": 12, "x": 10}},
        lambda batch: batch[:, 2:-2, 3:-3],
        lambda image: image,
    ),
    "finer": (
        {"scale": {"y": 2, "x": 3}},
        lambda batch: batch.repeat(2, axis=1).repeat(3, axis=2),
        lambda image: image.data.repeat(2, axis=0).repeat(3, axis=1),
    ),
    "coarser": (
        {"scale": 1 / 4},
        lambda batch: batch.reshape(-1, 4, 4, 4, 4).mean(axis=(2, 4)),
        lambda image: image.coarsen(y=4, x=4).mean(),
    ),
    "coarser and cropped": (
        {"scale": Fraction(1, 2), "sizes": {"y": 4, "x": 6}},
        lambda batch: batch.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4))[:, 2:-2, 1:-1],
        lambda image: image.coarsen(y=2, x=2).mean(),
    ),
}


@pytest.mark.parametrize("what", OUTPUTS)
@pytest.mark.parametrize("lazy", [False, True])
def test_what_a_model_returns_is_laid_where_it_belongs(what: str, lazy: bool) -> None:
    output, func, expected_of = OUTPUTS[what]
    image = IMAGE.chunk(y=40, x=56) if lazy else IMAGE
    p = image.patches(y=16, x=16, stride=8, padding=(8, 8))
    made = p.map(func, output=output, taper="flat", max_bytes=150_000).compute()
    expected = expected_of(IMAGE)
    np.testing.assert_array_max_ulp(made.to_numpy(), np.asarray(expected), 2)
    dims = output.get("dims", ("y", "x"))
    assert made.dims == dims
    assert made.dtype == output.get("dtype", "f8")
    if isinstance(expected, xr.DataArray):
        for dim in "yx":
            np.testing.assert_allclose(made[dim], expected[dim])
    else:  # the middle of the samples that one was made into is its label
        np.testing.assert_allclose(made.y.values.reshape(-1, 2).mean(1), IMAGE.y)
        np.testing.assert_allclose(made.x.values[1::3], IMAGE.x)


def test_dims_of_the_image_may_be_dropped_and_others_pass() -> None:
    image = IMAGE.expand_dims(band=["r", "g", "b"], axis=2).assign_coords(
        lat=(("y", "x"), np.ones(IMAGE.shape)), time=3, wave=("band", [1, 2, 3])
    )
    made = image.patches(**CUT).map(lambda batch: batch.mean(axis=3), output={"dims": ("y", "x")})
    assert set(made.coords) == {"y", "x", "lat", "time"}
    np.testing.assert_allclose(made, IMAGE)


@pytest.mark.parametrize(
    ("dataset", "given", "message"),
    [
        ({"a": IMAGE, "b": IMAGE[:, 0]}, {"materialize": "m"}, "needs variables with all of the"),
        ({"a": IMAGE.expand_dims(sample=2)}, {"materialize": "m"}, "already has a dim.* 'sample'"),
        ({"a": IMAGE.expand_dims(sample=2)}, {"labelled": True}, "already has a dim.* 'sample'"),
        (
            {"a": IMAGE, "b": ("class", [1, 2, 3])},
            {"output": {"dims": ("class", "y", "x"), "sizes": {"class": 2}}},
            "all variables must have the same length along 'class', got 2 and 3",
        ),
        (
            {"a": IMAGE.assign_coords(time=3)},
            {"output": {"dims": ("time", "y", "x"), "sizes": {"time": 2}}},
            "output dims names 'time', which is taken",
        ),
        ({"a": IMAGE}, {"output": {"scale": {"Y": 2}}}, "output scale names 'Y'"),
        ({"a": IMAGE}, {"output": {"dims": 5}}, "output dims must be several dims"),
        ({"a": IMAGE}, {"output": {"sizes": 5}}, "output sizes must be a mapping"),
        ({"a": IMAGE}, {"output": {"scale": 10**30}}, "output scale on 'y' must be an integer or"),
        ({"a": IMAGE}, {"chunks": {"y": 3}}, "chunks, shards and encoding are for store"),
        ({"a": IMAGE[:0].pad(y=(9, 9)).expand_dims(b=0)}, {"store": "s"}, "must have samples"),
    ],
)
def test_bad_input_is_refused_before_anything_is_run(
    tmp_path: Path, dataset: Any, given: dict[str, Any], message: str
) -> None:
    how = {**given, **{k: tmp_path / v for k, v in given.items() if k in ("materialize", "store")}}
    ran: list[Array] = []

    def model(batch: Array) -> Array:
        ran.append(batch)
        return batch

    p = xr.Dataset(dataset).patches(y=8, x=8, padding="same")
    verb: Any = p.map
    if not how.keys().isdisjoint(("store", "materialize", "chunks")):
        verb, how = p.map_to_zarr, {"store": None, **how, "progress": False}
    with pytest.raises(PatchError, match=message):
        verb(func=model, **how)
    assert not ran
    assert not any(tmp_path.iterdir())


def test_dims_of_no_length_are_mapped() -> None:
    image = xr.DataArray(np.zeros((0, 8, 8)), dims=("b", "y", "x"))
    assert image.patches(y=4, x=4).map(identity).shape == (0, 8, 8)
