"""Samples beyond the image: what they are, and blocks that hold some."""

from collections.abc import Mapping, Sequence

import numpy as np

from xpatches.dtypes import Array
from xpatches.geometry.boxes import Span, clip


def region_of(
    block: Array, spans: Sequence[Span], fill_value: Array
) -> tuple[Array, dict[int, tuple[int, int]]]:
    """Give the samples under the patches, a view or a padded copy, and the pads by axis."""
    region, pads = block, {}
    for span in spans:
        before, inside, after = clip(span.reach, block.shape[span.axis])
        region = region[(slice(None),) * span.axis + (inside,)]
        if before or after:
            pads[span.axis] = before, after
    return (pad_block(region, pads, fill_value) if pads else region), pads


def pad_block(block: Array, pads: Mapping[int, tuple[int, int]], fill_value: Array) -> Array:
    """Copy a block, with `fill_value` before and after it along the axes of `pads`.

    Examples
    --------
    >>> pad_block(np.array([1, 2]), {0: (2, 1)}, np.array(0))
    array([0, 0, 1, 2, 0])
    """
    shape = list(block.shape)
    inside = [slice(None)] * block.ndim
    for axis, (before, after) in pads.items():
        inside[axis] = slice(before, before + shape[axis])
        shape[axis] += before + after
    padded = np.full(shape, fill_value, block.dtype)
    padded[tuple(inside)] = block
    return padded
