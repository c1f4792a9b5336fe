"""The NumPy kernel of a map: samples in, patches through a model, an image out.

Rows of patches are extracted, run in batches and stitched one after the other, so that neither all
patches of a block nor all that is made of them stand in memory.
"""

from collections.abc import Sequence
from itertools import product
from math import prod

import numpy as np

from xpatches.dtypes import Array
from xpatches.extraction.kernel import extract_block
from xpatches.geometry.boxes import Span, split_run
from xpatches.mapping.model import Batch, Model
from xpatches.mapping.plan import MappedSpan, band_of
from xpatches.stitching.kernel import Stitching, stitch_block


def run_patches(
    samples: Array, spans: Sequence[Span], model: Model, numbers: Sequence[range], outputs: Array
) -> None:
    """Run a model on a box of patches, batch by batch.

    Parameters
    ----------
    samples
        A region of the image.
    spans
        Where all patches lie in it, also those far outside, for every spatial dim.
    model
        Makes something of the patches.
    numbers
        Of the patches of the box, for every spatial dim.
    outputs
        C-contiguous; is set to what is made of the patches, one after the other.
    """
    counts = tuple(map(len, numbers))
    outputs = outputs.reshape(prod(counts), *model.output.shape)
    for start in range(0, len(outputs), model.batch_size):
        stop = min(start + model.batch_size, len(outputs))
        parts: list[Array] = []
        indices: list[tuple[int, ...]] = []
        for box in split_run(counts, start, stop):
            chosen = [
                along[part.start : part.stop] for along, part in zip(numbers, box, strict=True)
            ]
            parts.append(_extract(samples, spans, model.fill_value, chosen))
            indices += product(*chosen)
        patches = parts[0] if len(parts) == 1 else np.concatenate(parts)
        outputs[start:stop] = model.run(Batch(patches, indices))


def _extract(
    samples: Array, spans: Sequence[Span], fill_value: Array, numbers: Sequence[range]
) -> Array:
    """Copy a box of patches, one after the other, each with the dims of the image."""
    chosen = [
        Span(span.axis, span.grid, span.first + along.start * span.grid.stride, len(along))
        for span, along in zip(spans, numbers, strict=True)
    ]
    patches = extract_block(samples, sorted(chosen, key=lambda span: span.axis), fill_value)
    numbered = [span.axis for span in spans]
    spatial = sorted(numbered)
    behind, lead = spatial[-1] + 1, len(spatial)
    order = [
        behind + spatial.index(axis) if axis in spatial else axis + (lead if axis >= behind else 0)
        for axis in range(samples.ndim)
    ]
    laid = patches.transpose(*numbered, *order)
    return np.ascontiguousarray(laid).reshape(prod(map(len, numbers)), *laid.shape[lead:])


def map_block(
    samples: Array, mapped: Sequence[MappedSpan], model: Model, stitching: Stitching
) -> Array:
    """Make one block of the image that a model makes.

    Parameters
    ----------
    samples
        The region of the image under the patches over the block.
    mapped
        The patches and the block, along every spatial axis of the image.
    model
        Makes something of the patches.
    stitching
        What to make of that.

    Returns
    -------
    numpy.ndarray
        Of `ModelOutput.dims`, with the block's lengths along the spatial ones.
    """
    output, dims = model.output, model.grid.dims
    by_dim = {model.dims[span.axis]: (span, cover) for span, cover in mapped}
    first, *covers = (by_dim[dim][1] for dim in dims)
    spans = [
        Span(span.axis, span.grid, span.first - cover.first * span.grid.stride, span.grid.count)
        for span, cover in map(by_dim.__getitem__, dims)
    ]
    places = list(map(output.dims.index, dims))
    lead, axes = len(dims), range(len(output.dims))
    pairs = [(number, lead + place) for number, place in enumerate(places)]
    order = [places.index(axis) if axis in places else lead + axis for axis in axes]
    lengths = {dim: cover.length for dim, (_, cover) in by_dim.items()}
    result = np.empty([*(output.sizes | lengths).values()], stitching.dtype)
    columns = [range(cover.first, cover.first + cover.count) for cover in covers]
    band = band_of(first.axis, list(map(len, columns)), model.batch_size)
    begin = first.axis.origin + first.first * first.axis.stride - first.origin
    most = first.axis.most_over(min(band, first.length))
    held = np.empty((most, *map(len, columns), *output.shape), output.dtype)
    rows = range(first.first, first.first)  # that are held
    for start in range(0, max(1, first.length), band):
        stop = min(start + band, first.length)
        block = first.axis.block(begin + start, begin + stop)
        over = range(block.first, block.first + block.count)
        kept = range(over.start, max(over.start, rows.stop))
        held[: len(kept)] = held[over.start - rows.start :][: len(kept)]
        fresh = held[len(kept) : len(over)]
        run_patches(samples, spans, model, [over[len(kept) :], *columns], fresh)
        rows = over
        to = (slice(None),) * places[0] + (slice(start, stop),)
        result[to] = stitch_block(held[: len(over)], [block, *covers], pairs, order, stitching)
    return result
