"""What is told of stores and images, as lines or as JSON."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click
import zarr

from xpatches.cli.opening import open_image
from xpatches.credentials import redacted
from xpatches.datasets.open import dataset_state, undamaged
from xpatches.display.text import readable
from xpatches.geometry.grid import AxisGrid
from xpatches.images.spec import SPEC_ATTR, read_spec
from xpatches.jobs.folder import Folder
from xpatches.jobs.lock import writer_of
from xpatches.jobs.state import StoredDataset

_HOLDS = {
    "image": "an image that was mapped",
    "runs": "what a model made of patches",
    "reduced": "reductions of patches",
}
"""What a dataset is, by layout; the others hold patches."""


def about(folder: Folder, store: str, source: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe what lies in a store; of what the options say, where it is an image."""
    dataset = StoredDataset(folder)
    if any(value is not None for value in (source or {}).values()) or not dataset.exists():
        if dataset.state() == "begun":  # and killed before anything could be said of it
            return {"store": redacted(store), "holds": "patches", "state": "incomplete"}
        image = open_image(store, **(source or {}))
        return {
            "store": redacted(store),
            "holds": "image",
            "variables": {
                str(name): {
                    "dtype": str(variable.dtype),
                    "dims": {str(dim): n for dim, n in variable.sizes.items()},
                    "chunks": variable.encoding.get("chunks"),
                    "shards": variable.encoding.get("shards"),
                }
                for name, variable in image.data_vars.items()
            },
        }
    state = dataset_state(folder)
    job = state.pop("job")
    arrays = {}
    for name in job["blocks"]:
        with undamaged(folder):
            stored: Any = zarr.open_array(folder.store, path=folder.key(name), mode="r")
        axes = read_spec(stored.attrs).grid.axes if SPEC_ATTR in stored.attrs else ()
        arrays[name] = {
            "dtype": str(stored.dtype),
            "dims": dict(zip(stored.metadata.dimension_names, stored.shape, strict=True)),
            "chunks": stored.chunks,
            "shards": stored.shards,
            "patches": {axis.dim: _numbers(axis) for axis in axes},
            "bytes": stored.nbytes,
        }
    return {
        "store": redacted(store),
        "holds": _HOLDS.get(job["layout"], "patches"),
        **state,
        "writer": writer_of(folder),
        "layout": job["layout"],
        "variables": arrays,
    }


def _numbers(axis: AxisGrid) -> dict[str, Any]:
    """Give the numbers of an axis, but for its name."""
    return {key: value for key, value in asdict(axis).items() if key != "dim"}


def tell(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print facts, as JSON or as indented lines."""

    def lines(facts: Mapping[str, Any], indent: str) -> Iterator[str]:
        for key, value in facts.items():
            if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
                yield f"{indent}{key}:"
                yield from lines(value, indent + "  ")
            elif isinstance(value, Mapping):
                if value:
                    pairs = (f"{k} {_short(k, v)}" for k, v in value.items())
                    yield f"{indent}{key}: {', '.join(pairs)}"
            elif value is not None:
                yield f"{indent}{key}: {_short(key, value)}"

    click.echo(json.dumps(facts) if as_json else "\n".join(map(printable, lines(facts, ""))))


def printable(text: str) -> str:
    """Escape what would steer a terminal: names may come from a store."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _short(key: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return (":" if key == "padding" else " x ").join(map(str, value))
    if "bytes" in key:
        return readable(value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)
