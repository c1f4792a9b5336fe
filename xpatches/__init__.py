"""Patches of images too large for memory: labelled, lazy and exact.

Importing xpatches registers the accessor ``.patches`` on xarray's DataArray and Dataset.
"""

from xpatches.accessor import Patches
from xpatches.errors import PatchError, PatchIndexError
from xpatches.parity import extract_patches

__all__ = ["PatchError", "PatchIndexError", "Patches", "extract_patches"]
