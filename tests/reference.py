"""The oracle: patches by counting and by four loops, sharing no formula with the library."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def starts_on_line(length: int, size: int, stride: int, rate: int) -> list[int]:
    """Every multiple of the stride at which a whole patch fits on a line."""
    return [
        start
        for start in range(0, length, stride)
        if all(start + j * rate < length for j in range(size))
    ]


def pads_of(n: int, size: int, stride: int, rate: int, padding: Any) -> tuple[int, int]:
    """Pads by search: "same" is the least padding with which a patch starts at every stride."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        wanted, total = len(range(0, n, stride)), 0
        while len(starts_on_line(n + total, size, stride, rate)) < wanted:
            total += 1
        return total // 2, total - total // 2
    before, after = padding
    return before, after


def four_loops(image: Array, axes: Mapping[int, tuple[int, int, int, Any]], fill: Any) -> Array:
    """Extract patches sample by sample; `axes` maps an axis to (size, stride, rate, padding)."""
    spatial = sorted(axes)
    pads = {axis: pads_of(image.shape[axis], *axes[axis]) for axis in spatial}
    padded_shape = [n + sum(pads.get(axis, (0, 0))) for axis, n in enumerate(image.shape)]
    padded = np.full(padded_shape, fill, image.dtype)
    padded[
        tuple(
            slice(pads.get(axis, (0, 0))[0], pads.get(axis, (0, 0))[0] + n)
            for axis, n in enumerate(image.shape)
        )
    ] = image
    starts = {
        axis: starts_on_line(padded_shape[axis], *axes[axis][:3])
        if axes[axis][3] != "same"
        else [i * axes[axis][1] for i in range(len(range(0, image.shape[axis], axes[axis][1])))]
        for axis in spatial
    }
    behind = spatial[-1] + 1
    sizes = [axes[axis][0] for axis in spatial]
    shape = [len(starts[axis]) if axis in axes else n for axis, n in enumerate(image.shape)]
    out = np.empty([*shape[:behind], *sizes, *shape[behind:]], image.dtype)
    for patch in np.ndindex(*(len(starts[axis]) for axis in spatial)):
        for sample in np.ndindex(*sizes):
            source: list[Any] = [slice(None)] * image.ndim
            target: list[Any] = [slice(None)] * image.ndim
            for axis, i, j in zip(spatial, patch, sample, strict=True):
                source[axis] = starts[axis][i] + j * axes[axis][2]
                target[axis] = i
            out[(*target[:behind], *sample, *target[behind:])] = padded[tuple(source)]
    return out


def terms_over(
    patches: Array, axes: Mapping[int, tuple[int, int, int, Any]], shape: tuple[int, ...]
) -> dict[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...], Any]]]:
    """List, for every sample of an image, what patches hold there: patch, sample of it, value.

    `patches` are as `four_loops` gives them; the patches are in the order of their numbers.
    """
    spatial = sorted(axes)
    behind = spatial[-1] + 1
    found: dict[tuple[int, ...], list[Any]] = {index: [] for index in np.ndindex(*shape)}
    pads = {axis: pads_of(shape[axis], *axes[axis]) for axis in spatial}
    for index in np.ndindex(*patches.shape):
        place = [*index[:behind], *index[behind + len(spatial) :]]
        patch, taps = [], []
        for number, axis in enumerate(spatial):
            _, stride, rate, _ = axes[axis]
            i, j = index[axis], index[behind + number]
            place[axis] = i * stride + j * rate - pads[axis][0]
            patch.append(i)
            taps.append(j)
        if all(0 <= at < n for at, n in zip(place, shape, strict=True)):
            found[tuple(place)].append((tuple(patch), tuple(taps), patches[index]))
    return {place: sorted(terms, key=lambda term: term[0]) for place, terms in found.items()}


def same_bits(a: Array, b: Array) -> bool:
    """Equal dtype, shape and bytes: NaN equals NaN, and -0.0 differs from 0.0."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
