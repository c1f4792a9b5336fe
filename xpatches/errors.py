"""The errors of xpatches."""

from collections.abc import Sequence
from dataclasses import dataclass

from xpatches.credentials import told


class PatchError(ValueError):
    """A request for patches that cannot be met.

    The message names the argument and the dim, what it got, what is required and what to do.

    Examples
    --------
    >>> from xpatches.geometry.grid import AxisGrid
    >>> AxisGrid("x", length=10, size=3, stride=0)
    Traceback (most recent call last):
    ...
    xpatches.errors.PatchError: stride on 'x' must be >= 1, got 0
    """


class PatchIndexError(PatchError, IndexError):
    """The index of a patch lies outside the grid."""


class PatchOverflowError(PatchError, OverflowError):
    """There are more patches than Python's ``len`` can tell."""


class MapError(RuntimeError):
    """The function that was mapped over patches failed, or returned something unexpected.

    The message names the patch, by the source index of its first sample and its labels.
    """

    reason: str = ""
    """What the function raised, without the patch; empty where it raised nothing."""


@dataclass(frozen=True)
class BlockFailure:
    """A block of a patch dataset that could not be written."""

    block: int
    """Its number."""
    region: str
    """Its patches, and the samples that they are cut from."""
    cause: BaseException
    """What was raised, the last time it was tried."""

    def __str__(self) -> str:
        return f"block {self.block}, {self.region}: {told(self.cause)}"


class JobError(RuntimeError):
    """Blocks of a patch dataset could not be written; the others are, and stay.

    A job whose function fails alike in block after block stops at once: then blocks are left that
    were not tried, and `done` says how many are written.
    """

    def __init__(
        self,
        store: str,
        blocks: int,
        failures: Sequence[BlockFailure],
        done: int | None = None,
    ) -> None:
        super().__init__(store, blocks, failures, done)
        self.store, self.blocks, self.done = store, blocks, done
        self.failures = tuple(sorted(failures, key=lambda failure: failure.block))

    def __str__(self) -> str:
        shown = "".join(f"\n  {failure}" for failure in self.failures[:_SHOWN])
        more = len(self.failures) - _SHOWN
        said = (
            f"{len(self.failures)} of {self.blocks} blocks of store {self.store} failed, the "
            f"others are done; resume=True tries them again"
        )
        if self.done is not None:
            said = (
                f"stopped, for func fails alike in block after block; {self.done} of {self.blocks} "
                f"blocks of store {self.store} are done and stay; mend func, resume=True goes on"
            )
        return f"{said}:{shown}" + (
            f"\n  and {more} more, see the attribute failures" if more > 0 else ""
        )


_SHOWN = 20
"""Failures that a message lists."""
