"""The errors of xpatches."""


class PatchError(ValueError):
    """A request for patches that cannot be met.

    The message names the argument and the dim, what it got, what is required and what to do.

    Examples
    --------
    >>> from xpatches.geometry import AxisGrid
    >>> AxisGrid("x", length=10, size=3, stride=0)
    Traceback (most recent call last):
    ...
    xpatches.errors.PatchError: stride on 'x' must be >= 1, got 0
    """


class PatchIndexError(PatchError, IndexError):
    """The index of a patch lies outside the grid."""
