"""What a plan says of the blocks of a result."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from xpatches.dtypes import Array

Engine: TypeAlias = Literal["map_overlap", "region"]


Form: TypeAlias = Literal["grid", "flat", "reduced"]


SCRATCH = 1 << 18
"""Bytes that a task may take for itself, beyond what the plan counts."""


Kernel: TypeAlias = Callable[[Array, Sequence[Any]], Array]
"""Makes a chunk of a result from a block and what to take of it along its spatial axes."""


class Blocks(Protocol):
    """What a plan says of the blocks of a result."""

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Chunk lengths of the source, along each of its axes."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of chunks of the result, along each of these axes."""

    @property
    def regions(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """What every block reads, ``[start, stop)``, along each of these axes."""

    @property
    def takes(self) -> tuple[list[list[tuple[int, Any]]], ...]:
        """Along each axis, for every block: the chunks of the result, and what they take of it.

        That is a slice of the region, or what the kernel is told instead.
        """

    @property
    def out_chunks(self) -> tuple[tuple[int, ...], ...]:
        """Chunk lengths of the result."""

    def out_index(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Index of a chunk of the result, from its number along every axis of the source."""
