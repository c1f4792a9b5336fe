"""What is measured: kernels on arrays in memory."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

import xpatches

DTYPES = ("uint8", "uint16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Case:
    """Patches of images in memory: batch, spatial dims, depth."""

    shape: tuple[int, ...]
    size: int
    stride: int
    rate: int

    def __str__(self) -> str:
        lengths = "x".join(map(str, self.shape))
        return f"{lengths} / {self.size} / {self.stride} / {self.rate}"

    @property
    def spatial(self) -> int:
        """Number of spatial dims."""
        return len(self.shape) - 2

    @property
    def samples(self) -> int:
        """Samples of all patches."""
        reach = (self.size - 1) * self.rate + 1
        counts = [(length - reach) // self.stride + 1 for length in self.shape[1:-1]]
        return prod([*counts, *[self.size] * self.spatial, self.shape[0], self.shape[-1]])

    def images(self, dtype: str) -> Any:
        """Random images."""
        rng = np.random.default_rng(0)
        return rng.integers(0, 250, self.shape, "uint8").astype(dtype, copy=False)

    def extract(self, images: Any) -> Any:
        """Extract the patches with this library."""
        sizes, strides, rates = (
            [1, *[n] * self.spatial, 1] for n in (self.size, self.stride, self.rate)
        )
        return xpatches.extract_patches(images, sizes, strides, rates, "VALID")


LISTED = [
    Case((1, 2048, 2048, 1), 3, 1, 1),
    Case((1, 2048, 2048, 3), 3, 1, 1),
    Case((1, 2048, 2048, 1), 5, 1, 2),
    Case((1, 2048, 2048, 3), 16, 8, 1),
    Case((1, 4096, 4096, 3), 256, 128, 1),
    Case((1, 4096, 4096, 1), 256, 256, 1),
    Case((1, 2048, 2048, 1), 7, 2, 3),
    Case((8, 512, 512, 16), 3, 1, 1),
    Case((1, 64, 256, 256, 1), 5, 2, 1),
    Case((1, 1000000, 1), 64, 16, 1),
]
OTHERS = [
    Case((1, 2048, 2048, 1), 2, 2, 1),
    Case((1, 2048, 2048, 4), 3, 1, 2),
    Case((1, 2048, 2048, 1), 9, 4, 1),
    Case((1, 2048, 2048, 2), 5, 3, 2),
    Case((1, 1500, 1500, 1), 7, 1, 1),
    Case((1, 64, 256, 256, 2), 3, 1, 2),
    Case((1, 3000000, 1), 3, 1, 1),
    Case((1, 1024, 1024, 13), 2, 1, 1),
    Case((1, 2048, 2048, 1), 32, 32, 1),
    Case((4, 300, 300, 5), 4, 3, 3),
    Case((1, 10000000, 1), 16, 7, 5),
    Case((1, 3000, 30, 1), 7, 1, 1),
    Case((1, 65, 65, 65, 65, 1), 3, 2, 1),
]
SMALL = [Case((1, 60, 70, 1), 3, 1, 1), Case((1, 60, 70, 3), 16, 8, 1), Case((1, 900, 1), 7, 2, 3)]
