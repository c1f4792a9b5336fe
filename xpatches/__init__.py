"""Patches of images too large for memory: labelled, lazy and exact.

Importing xpatches registers the accessor ``.patches`` on xarray's DataArray and Dataset.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import xpatches.accessor  # noqa: F401  registers it
from xpatches.errors import BlockFailure, JobError, MapError, PatchError, PatchIndexError
from xpatches.geometry.grid import AxisGrid, PatchGrid
from xpatches.patches import Patches
from xpatches.stitching.labelled import stitch
from xpatches.tensorflow import extract_patches

if TYPE_CHECKING:
    from xpatches.datasets.open import open_patches
    from xpatches.datasets.verification import verify

__all__ = [
    "AxisGrid",
    "BlockFailure",
    "JobError",
    "MapError",
    "PatchError",
    "PatchGrid",
    "PatchIndexError",
    "Patches",
    "extract_patches",
    "open_patches",
    "stitch",
    "verify",
]


def __dir__() -> list[str]:
    return [*__all__]


def __getattr__(name: str) -> Any:
    module = {"open_patches": "datasets.open", "verify": "datasets.verification"}.get(name)
    if module is None:
        raise AttributeError(f"module 'xpatches' has no attribute {name!r}")
    return getattr(import_module(f"xpatches.{module}"), name)  # zarr and dask are loaded for these
