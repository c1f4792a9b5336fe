"""Options of jobs: one set for all verbs, told of once, and refused by name."""

import inspect
from typing import Any, Unpack

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

from xpatches import PatchError, Patches
from xpatches.jobs import options
from xpatches.jobs.options import JobOptions

IMAGE = xr.DataArray(np.arange(64.0).reshape(8, 8), dims=("y", "x"), name="image")
P = IMAGE.patches(y=4, x=4)
VERBS: dict[str, Any] = {
    "to_zarr": P.to_zarr,
    "map_to_zarr": lambda store, **job: P.map_to_zarr(store, np.copy, **job),
    "reduce_to_zarr": lambda store, **job: P.reduce_to_zarr(store, "mean", **job),
}


def test_every_option_is_told_of_and_made_canonical() -> None:
    assert [*JobOptions.__annotations__] == [*options._OPTIONS]
    words = {word.strip(" ,") for line in inspect.getdoc(JobOptions).split("\n")  # type: ignore[union-attr]
             if not line.startswith(" ") for word in line.split()}  # fmt: skip
    assert {*options._OPTIONS} <= words


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_writes_takes_the_same_options(verb: str) -> None:
    job = inspect.signature(getattr(Patches, verb)).parameters["job"]
    assert job.annotation == Unpack[JobOptions]
    made = VERBS[verb](
        MemoryStore(), chunks={"y": 1}, shards=False, encoding={"image": {"fill_value": 3}},
        checksums=False, resume=True, overwrite=False, retries=0, lock=False, fsync=False,
        progress=False,
    )  # fmt: skip
    assert made.encoding["chunks"][0] == 1
    for name in ("overwite", "Resume", "store_", "materialise"):
        with pytest.raises(
            PatchError, match=rf"^{verb} has no argument '{name}', but store, .*"
        ) as caught:
            VERBS[verb](MemoryStore(), **{name: True})
        assert all(f" {option}" in str(caught.value) for option in options._OPTIONS)


@pytest.mark.parametrize("verb", ["extract", "map", "reduce", *VERBS])
def test_a_plan_of_every_verb_has_the_words_that_all_have(verb: str) -> None:
    for image in (IMAGE, IMAGE.chunk(y=4), IMAGE.to_dataset()):
        plan = image.patches(y=4, x=4).plan(verb, **({"how": "max"} if "reduce" in verb else {}))
        plan = plan.get("image", plan)
        assert {"patches", "dims", "bytes", "chunks", "bytes_per_task"} <= plan.keys()
        assert ("shards" in plan) == verb.endswith("to_zarr")
        assert ("runs" in plan) == verb.startswith("map")
        assert plan["patches"] == 4


def test_a_plan_takes_what_the_verb_takes_and_refuses_the_rest() -> None:
    how: dict[str, Any] = {"func": np.copy, "taper": "flat", "batch_size": 2}
    P.map_to_zarr(MemoryStore(), **how, chunks={"y": 4}, progress=False)
    plan = P.plan("map_to_zarr", store="nowhere", **how, chunks={"y": 4}, progress=False)
    assert plan["chunks"] == (4, 8)
    with pytest.raises(
        PatchError, match="map_to_zarr has no argument 'layout', but store, func, b"
    ):
        P.plan("map_to_zarr", layout="grid")
    with pytest.raises(PatchError, match="extract has no argument 'resume', but flatten, label, e"):
        P.plan(resume=True)
    with pytest.raises(PatchError, match="plan is for maps without materialize"):
        P.plan("map_to_zarr", materialize="runs.zarr")
    with pytest.raises(
        PatchError, match="verb must be 'extract', 'to_zarr', 'map', 'map_to_zarr',"
    ):
        P.plan("stitch")
    with pytest.raises(PatchError, match="retries must be >= 0, got -1"):
        P.plan("to_zarr", retries=-1)
