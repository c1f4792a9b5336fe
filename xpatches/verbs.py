"""What is done to all patches of an image: arguments made canonical, then variable by variable.

Every verb, lazily or as a job, and what is told of it before. They are given all arguments of the
method of `Patches` by name, the options of jobs made canonical. dask is loaded for lazy images and
jobs only, zarr for jobs.
"""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from math import prod
from typing import Any, TypeAlias, cast

import numpy as np
import xarray as xr

from xpatches.arguments import (
    as_choice,
    as_flag,
    as_function,
    as_integer,
    shown,
)
from xpatches.errors import PatchError
from xpatches.extraction.labelled import extract_variable, plan_variable
from xpatches.geometry.blocks import Form
from xpatches.images import labels
from xpatches.images.image import Image, T
from xpatches.images.packing import NODATA, kept_encoding
from xpatches.images.samples import as_budget
from xpatches.jobs.options import all_arguments, report_of
from xpatches.mapping.labelled import MapOptions, Mapped, as_mapped, mapped_coords
from xpatches.mapping.model import Function
from xpatches.mapping.output import OutputPlan, as_output, as_output_plan, plan_map
from xpatches.reduction.kernel import SEPARABLE
from xpatches.reduction.labelled import Reducer, reduce_variable, reducer_of
from xpatches.stitching.choose import as_reduce

Arguments: TypeAlias = Mapping[str, Any]
Plans: TypeAlias = Mapping[Hashable, dict[str, Any]]
"""What is told of every variable that is cut."""


def extract(image: Image[T], **arguments: Any) -> T:
    """Extract all patches, as `Patches.extract` documents."""
    joined, label, how = _joined(image, arguments), _label(arguments), _reading(arguments)
    patches = {
        name: extract_variable(variable, image.grid, fill, label, joined, image.lines, how)
        for name, variable, fill in image.variables()
    }
    coords = image.coords(label)
    coords = labels.flatten_coords(coords, joined) if joined else coords
    return image.with_variables(patches, coords)


def _plan_extract(image: Image[Any], arguments: Arguments) -> Plans:
    form: Form = "flat" if _joined(image, arguments) else "grid"
    how = _reading(arguments)
    return {
        name: _sized(plan_variable(variable, image.grid, form, how), variable.dtype)
        for name, variable, _ in image.variables()
    }


def to_zarr(image: Image[T], **arguments: Any) -> T:
    """Extract all patches as a job, as `Patches.to_zarr` documents."""
    return cast(T, _write(_cut(image, arguments), arguments))


def _plan_to_zarr(image: Image[Any], arguments: Arguments) -> Plans:
    from xpatches.datasets.patches import plan_patches

    return plan_patches(_cut(image, arguments))


def reduce(image: Image[T], **arguments: Any) -> T:
    """Reduce all patches, as `Patches.reduce` documents."""
    label, how, reducers = _label(arguments), _reading(arguments), _reducers(image, arguments)
    reduced = {
        name: reduce_variable(variable, image.grid, reducers[name], how)
        for name, variable, _ in image.variables()
    }
    return image.with_variables(reduced, image.coords_of_reduced(label))


def _plan_reduce(image: Image[Any], arguments: Arguments) -> Plans:
    how, reducers = _reading(arguments), _reducers(image, arguments)
    plans = {}
    for name, variable, _ in image.variables():
        reducer = reducers[name]
        plan = plan_variable(variable, image.grid, "reduced", how, reducer.patch_bytes)
        plans[name] = _sized(plan, reducer.dtype)
    return plans


def reduce_to_zarr(image: Image[T], **arguments: Any) -> T:
    """Reduce all patches as a job, as `Patches.reduce_to_zarr` documents."""
    return cast(T, _write(_reduced(image, arguments), arguments))


def _plan_reduce_to_zarr(image: Image[Any], arguments: Arguments) -> Plans:
    from xpatches.datasets.reduced import plan_reduced

    return plan_reduced(_reduced(image, arguments))


def map_patches(image: Image[T], **arguments: Any) -> T:
    """Run a model on all patches, as `Patches.map` documents."""
    budget, plans = as_budget(arguments["max_bytes"]), _output_plans(image, arguments)
    for plan in plans.values():
        plan.check_size(budget)
    mapped = _mapped(image, plans, arguments)
    coords = mapped_coords(image.dataset, mapped)
    data = {name: variable.compute(budget) for name, variable in mapped.items()}
    return _result(image, mapped, data, coords)


def _plan_map(image: Image[Any], arguments: Arguments) -> Plans:
    budget = as_budget(arguments["max_bytes"])
    return {
        name: {
            "patches": plan.grid.total,
            **_sized(plan_map(plan, budget), plan.dtype),
        }
        for name, plan in _output_plans(image, arguments).items()
    }


def map_to_zarr(image: Image[T], **arguments: Any) -> T:
    """Run a model on all patches as a job, as `Patches.map_to_zarr` documents."""
    from xpatches.datasets.image import write_map
    from xpatches.jobs.open import open_folder

    store, materialize = arguments["store"], arguments["materialize"]
    stored = {name: arguments[name] for name in ("chunks", "shards", "encoding")}
    if store is None and any(value is not None for value in stored.values()):
        raise PatchError("chunks, shards and encoding are for store; give one, or leave them")
    if store is None and materialize is None:
        raise PatchError(
            "store must be where to write, or None beside materialize, got None for both; options "
            "such as resume and overwrite are for store or materialize; give one"
        )
    budget, plans = as_budget(arguments["max_bytes"]), _output_plans(image, arguments)
    mapped = _mapped(image, plans, arguments)
    coords = mapped_coords(image.dataset, mapped)
    (name, *_) = (variable.answer.name for variable in mapped.values())
    written: Any = write_map(
        image.named(name),
        mapped,
        coords,
        store=None if store is None else open_folder(store),
        materialize=None if materialize is None else open_folder(materialize, what="materialize"),
        max_bytes=budget,
        report=partial(report_of, arguments["progress"]),
        **stored,
        **{name: arguments[name] for name in _WRITING},
    )
    return _result(image, mapped, written, coords) if store is None else cast(T, written)


def _plan_map_to_zarr(image: Image[Any], arguments: Arguments) -> Plans:
    from xpatches.datasets.image import plan_written_map

    if arguments["materialize"] is not None:
        raise PatchError("plan is for maps without materialize, got one; leave it out")
    budget, plans = as_budget(arguments["max_bytes"]), _output_plans(image, arguments)
    return plan_written_map(image, plans, budget, arguments["chunks"], arguments["shards"])


def plan(image: Image[Any], methods: type, verb: object, arguments: Arguments) -> dict[Any, Any]:
    """Say how a verb will work, as `Patches.plan` documents.

    Parameters
    ----------
    image, verb, arguments
        As there.
    methods
        The class whose methods the verbs are.
    """
    verb = as_choice("verb", verb, (*_PLANS,))
    return image.by_variable(_PLANS[verb](image, all_arguments(getattr(methods, verb), arguments)))


_PLANS: dict[str, Callable[[Image[Any], Arguments], Plans]] = {
    "extract": _plan_extract,
    "to_zarr": _plan_to_zarr,
    "map": _plan_map,
    "map_to_zarr": _plan_map_to_zarr,
    "reduce": _plan_reduce,
    "reduce_to_zarr": _plan_reduce_to_zarr,
}
_LABELS = ("center", "origin")
"""What of a patch may label it."""
_WRITING = ("checksums", "resume", "overwrite", "retries", "lock", "fsync")
"""Options of jobs that say how blocks are written, whatever they hold."""


def _label(arguments: Arguments) -> str:
    return as_choice("label", arguments["label"], _LABELS)


def _reading(arguments: Arguments) -> dict[str, Any]:
    """Normalise how an image is read that is not in memory."""
    engine = as_choice("engine", arguments["engine"], ("auto", "map_overlap", "region"))
    return {"engine": engine, "max_bytes": as_budget(arguments["max_bytes"])}


def _joined(image: Image[Any], arguments: Arguments) -> dict[Hashable, int]:
    """Give the dims that are flattened into one, with their lengths."""
    flatten = as_choice("flatten", arguments["flatten"], (None, labels.FLAT_DIM))
    return image.joined_dims() if flatten else {}


def _sized(plan: Mapping[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Add what all of a result makes."""
    dims = {dim: sum(lengths) for dim, lengths in plan["chunks"].items()}
    return {**plan, "dims": dims, "bytes": dtype.itemsize * prod(dims.values())}


def _write(dataset: Any, arguments: Arguments) -> Any:
    from xpatches.datasets.write import write_dataset

    report, job = report_of(arguments["progress"]), {name: arguments[name] for name in _WRITING}
    return write_dataset(dataset, arguments["store"], arguments["encoding"], report, **job)


def _cut(image: Image[Any], arguments: Arguments) -> Any:
    from xpatches.datasets.patches import PatchDataset

    layout = as_choice("layout", arguments["layout"], ("grid", "samples"))
    return PatchDataset(image, layout, arguments["chunks"], arguments["shards"], _label(arguments))


def _reduced(image: Image[Any], arguments: Arguments) -> Any:
    from xpatches.datasets.reduced import ReducedDataset

    words = (_label(arguments), as_budget(arguments["max_bytes"]))
    reducers = _reducers(image, arguments)
    return ReducedDataset(image, reducers, *words, arguments["chunks"], arguments["shards"])


def _reducers(image: Image[Any], arguments: Arguments) -> dict[Hashable, Reducer]:
    """Choose how every variable is reduced."""
    how, min_count = arguments.get("how"), arguments["min_count"]
    if not callable(how):
        how = as_choice("how", how, (*SEPARABLE, "median"), "a function")
    skipna = as_flag("skipna", arguments["skipna"], None)
    if min_count is not None:
        min_count = as_integer("min_count", min_count, 0)
    ignores = as_flag("ignore_padding", arguments["ignore_padding"], None)
    reducers = {}
    for name, variable, fill in image.variables():
        nodata = not callable(how) and image.fill_reasons[name] in NODATA
        options = {
            "skipna": skipna,
            "min_count": min_count,
            "ignore_padding": nodata if ignores is None else ignores,
        }
        reducers[name] = reducer_of(variable, image.grid, fill, how, options)
    return reducers


def _output_plans(image: Image[Any], arguments: Arguments) -> dict[Hashable, OutputPlan]:
    """Normalise what a model is given and returns, by variable."""
    batch_size = as_integer("batch_size", arguments["batch_size"], 1)
    (reduce, _), output = as_reduce(arguments["reduce"]), as_output(arguments["output"])
    if "name" in output and not image.is_array:
        raise PatchError(
            f"output name is for a DataArray, got {shown(output['name'])} for a Dataset, whose "
            "variables keep their names; rename them afterwards"
        )
    words = (image.dataset.coords, output, batch_size, reduce)
    return {
        name: as_output_plan(variable, image.grid.restrict(variable.dims), *words)
        for name, variable, _ in image.variables()
    }


def _mapped(
    image: Image[Any], plans: Mapping[Hashable, OutputPlan], arguments: Arguments
) -> dict[Hashable, Mapped]:
    reduce, taper = as_reduce(arguments["reduce"], arguments["taper"])
    func = as_function("func", arguments["func"], "of a batch of patches")
    options = MapOptions(
        Function(func, as_flag("factory", arguments["factory"])),
        as_flag("labelled", arguments["labelled"]),
        taper,
        reduce,
        arguments["fill_value"],
        as_flag("skipna", arguments["skipna"], None),
    )
    if options.labelled:
        labels.check_names(image.dataset, [labels.SAMPLE_DIM])
    coords, fills = image.dataset.coords, image.fill_values
    return {
        name: as_mapped(image.name_of(name), plan, coords, fills[name], options)
        for name, plan in plans.items()
    }


def _result(
    image: Image[T],
    mapped: Mapping[Hashable, Mapped],
    data: Mapping[Hashable, Any],
    coords: xr.Coordinates,
) -> T:
    """Label what a model made of every variable."""
    variables = {
        name: xr.Variable(made.dims, data[name], made.attrs, kept_encoding(made.variable))
        for name, made in mapped.items()
    }
    (name, *_) = (variable.answer.name for variable in mapped.values())
    named: Image[T] = image.named(name)
    return named.with_variables(variables, coords)
