"""A model on every patch of a labelled image."""

import threading
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

from models import CUT, IMAGE, above_least, identity, opened
from reference import Array, same_bits
from stores import CountingStore
from xpatches import PatchError


def test_building_a_map_reads_and_runs_nothing(
    tmp_path: Path, counting_store: type[CountingStore], no_compute: None
) -> None:
    IMAGE.chunk(y=32, x=32).to_dataset().to_zarr(tmp_path, consolidated=False, compute=False)
    image = xr.open_zarr(counting_store(tmp_path), chunks=None, consolidated=False).image
    counting_store.reads.clear()

    def refuse(batch: Any) -> Any:
        raise AssertionError("ran a model")

    made = image.patches(**CUT).map(refuse)
    assert made.shape == IMAGE.shape
    assert not counting_store.chunk_reads("image")


@pytest.mark.parametrize("chunks", [None, {"y": 32}])
def test_keys_are_deterministic_and_tell_maps_apart(tmp_path: Path, chunks: Any) -> None:
    stored = opened(IMAGE.chunk(y=32, x=32), tmp_path / "a")
    image = IMAGE.chunk(chunks) if chunks else stored
    with dask.config.set({"tokenize.ensure-deterministic": bool(chunks)}):
        made = [image.patches(**CUT).map(above_least).data.name for _ in range(2)]
        assert made[0] == made[1]
        others = [
            image.patches(**CUT).map(identity),
            image.patches(**CUT).map(above_least, taper="flat"),
            image.patches(**CUT).map(above_least, labelled=True),
            image.patches(**CUT).map(above_least, batch_size=3),
            image.patches(**CUT).map(above_least, skipna=False),
        ]
    assert len({made[0], *(of.data.name for of in others)}) == 6


def test_a_dataset_is_mapped_variable_by_variable() -> None:
    dataset = xr.Dataset({"a": IMAGE, "b": IMAGE.isel(x=0, drop=True), "c": ("z", [1, 2])})
    made = dataset.chunk(y=32).patches(y=16, x=16, stride=8, padding="same").map(lambda b: 2 * b)
    expected = xr.Dataset({"a": 2 * IMAGE, "b": 2 * IMAGE.isel(x=0, drop=True), "c": dataset.c})
    xr.testing.assert_allclose(made.compute(), expected)


def test_labels_that_overlap_are_not_averaged_unasked() -> None:
    image = IMAGE.rename("classes")
    labels = {"dtype": "int64"}

    def classes(batch: Array) -> Array:
        return np.where(batch > 0, 400, 10)

    p = image.patches(**CUT)
    message = "reduce must be given for int64 of 'classes', for patches overlap, and labels are not"
    with pytest.raises(PatchError, match=message):
        p.map(classes, output=labels)
    with pytest.raises(PatchError, match="reduce must be given for bool"):
        p.map(lambda batch: batch > 0, output={"dtype": bool})
    expected = np.where(image > 0, 400, 10)
    for how in ({"reduce": "vote"}, {"reduce": "first"}, {"taper": "crop"}, {"reduce": "mean"}):
        asked: dict[str, Any] = how
        np.testing.assert_array_equal(p.map(classes, output=labels, **asked), expected)
    halves = p.map(lambda batch: np.indices(batch.shape)[2] // 8, output=labels, taper="flat")
    assert set(np.unique(halves)) <= {0, 1}  # of 0 and 1, rounded half to even
    # Where no sample is in two patches there is nothing to ask.
    apart = image.patches(y=16, x=16)
    np.testing.assert_array_equal(apart.map(classes, output=labels), expected)
    cropped = image.patches(y=16, x=16, stride=8, padding=(4, 4)).map(
        lambda batch: classes(batch[:, 4:-4, 4:-4]), output={**labels, "sizes": {"y": 8, "x": 8}}
    )
    np.testing.assert_array_equal(cropped, expected)
    assert apart.map(lambda batch: batch > 0, output={"dtype": bool}).dtype == bool
    assert p.map(identity).dtype == image.dtype  # floats are averaged


def test_means_are_tapered_by_hann_unless_another_is_given() -> None:
    p = IMAGE.patches(**CUT)
    made = p.map(above_least)
    for asked in ({"reduce": "mean"}, {"taper": "hann"}, {"reduce": "mean", "taper": "hann"}):
        how: dict[str, Any] = asked
        assert same_bits(p.map(above_least, **how).values, made.values)
    assert not same_bits(p.map(above_least, taper="flat").values, made.values)
    with pytest.raises(PatchError, match="taper is for reduce='mean', got reduce='max'"):
        p.map(above_least, reduce="max", taper="hann")


def test_sources_with_a_lock_are_read_one_at_a_time() -> None:
    lock, image = threading.Lock(), np.ones((64, 64))
    array = dask.array.from_array(image, chunks=8, lock=lock)
    made = xr.DataArray(array, dims=("y", "x")).patches(y=16, x=16).map(identity)
    with lock, dask.config.set(scheduler="threads"):
        done = threading.Thread(target=made.compute, daemon=True)
        done.start()
        done.join(0.3)
        assert done.is_alive()
    done.join(30)
    assert not done.is_alive()
