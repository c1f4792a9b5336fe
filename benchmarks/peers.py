"""The same patches from other libraries, where they can be imported."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.cases import Case

Way = Callable[[], Any]


def bound(case: Case, images: Any) -> Way:
    """Write as many bytes of fresh memory: nothing that makes them can be faster."""

    def write() -> Any:
        made = np.empty(case.samples, images.dtype)
        made.fill(1)
        return made

    return write


def ours(case: Case, images: Any) -> Way:
    """Extract with this library."""
    return lambda: case.extract(images)


def naive(case: Case, images: Any) -> Way:
    """Copy NumPy's strided view."""
    axes = tuple(range(1, case.spatial + 1))
    reach = (case.size - 1) * case.rate + 1
    thin = [slice(None)] * (images.ndim + case.spatial)
    for axis in axes:
        thin[axis] = slice(None, None, case.stride)
        thin[images.ndim + axis - 1] = slice(None, None, case.rate)

    def copy() -> Any:
        view = np.lib.stride_tricks.sliding_window_view(images, (reach,) * len(axes), axes)
        return np.moveaxis(view[tuple(thin)], images.ndim - 1, -1).copy()

    return copy


def tensorflow(case: Case, images: Any) -> Way | None:
    """``tf.image.extract_patches``: two dims; its own tensors, not counting the copy to them."""
    if case.spatial != 2 or not find_spec("tensorflow"):
        return None
    import tensorflow as tf

    tensor = tf.constant(images)
    around = ([1, n, n, 1] for n in (case.size, case.stride, case.rate))
    sizes, strides, rates = around
    return lambda: tf.image.extract_patches(tensor, sizes, strides, rates, "VALID").numpy()


def torch(case: Case, images: Any) -> Way | None:
    """``torch.nn.functional.unfold``: two dims, floats; its own tensors and layout."""
    if case.spatial != 2 or images.dtype.kind != "f" or not find_spec("torch"):
        return None
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    unfold = torch.nn.functional.unfold
    return lambda: unfold(tensor, case.size, case.rate, 0, case.stride)


def one_by_one(image: Any, size: int, stride: int) -> dict[str, Way]:
    """Ways to get the labelled patches of an image (y, x) into memory, all or one after another."""
    p = image.patches(y=size, x=size, stride=stride)
    ways: dict[str, Way] = {
        "p.extract()": lambda: p.extract().compute().size,
        "for patch in p": lambda: sum(1 for patch in p if patch.load().size),
    }
    sizes, overlap = {"y": size, "x": size}, {"y": size - stride, "x": size - stride}
    if find_spec("xbatcher"):
        import xbatcher

        generate = xbatcher.BatchGenerator
        ways["xbatcher"] = lambda: sum(1 for _ in generate(image, sizes, overlap))
    if find_spec("xrpatcher"):
        from xrpatcher import XRDAPatcher

        strides = {"y": stride, "x": stride}
        ways["xrpatcher"] = lambda: sum(
            1 for patch in XRDAPatcher(image, sizes, strides) if patch.load().size
        )
    return ways


WAYS: dict[str, Callable[[Case, Any], Way | None]] = {
    "bound": bound,
    "xpatches": ours,
    "naive": naive,
    "tensorflow": tensorflow,
    "torch": torch,
}
