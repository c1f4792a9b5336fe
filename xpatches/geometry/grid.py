"""Where patches lie: integers only, global indices, one dim at a time.

Per dim, with ``n`` the length of the image, ``k`` the size, ``s`` the stride and ``r`` the rate::

    effective size   eff = k + (k - 1) * (r - 1)
    valid            count = 0 if n < eff else (n - eff) // s + 1 ;  before = 0
    same             count = ceil(n / s) ;  total = max(0, (count - 1) * s + eff - n)
                     before = total // 2 ;  after = total - before
    explicit (b, a)  valid on a line of length b + n + a ;  before = b
    source index of sample j of patch i = i * s + j * r - before

The formulas of "valid" and "same" are those of TensorFlow's ``GetWindowedOutputSizeVerbose``
(tensorflow/core/util/padding.h), with the pad of "same" never below zero.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any, Literal, TypeAlias

from xpatches.arguments import as_choice, as_integer, by_dim, shown
from xpatches.errors import PatchError, PatchIndexError

Padding: TypeAlias = Literal["valid", "same"] | tuple[int, int]


@dataclass(frozen=True, slots=True)
class AxisGrid:
    """The patches along one dim of an image.

    Parameters
    ----------
    dim
        Name of the dim, for error messages and labels.
    length
        Samples of the image along the dim (>= 0).
    size, stride, rate
        Samples per patch, distance between consecutive patches, distance between the samples of
        a patch (all >= 1).
    padding
        ``"valid"``, ``"same"`` or ``(before, after)`` in samples (both >= 0).

    Raises
    ------
    PatchError
        If a number is not an integer or is too small, or if padding is none of the above.

    Examples
    --------
    The seed example of TensorFlow's documentation: 3 samples at stride 5 on a line of 10.

    >>> axis = AxisGrid("x", length=10, size=3, stride=5)
    >>> axis.count, list(axis.origins), list(axis.offsets)
    (2, [0, 5], [0, 1, 2])
    >>> AxisGrid("x", length=10, size=3, stride=5, rate=2, padding="same").origins
    range(0, 10, 5)
    """

    dim: Hashable
    length: int
    size: int
    stride: int
    rate: int = 1
    padding: Padding = "valid"

    def __post_init__(self) -> None:
        for name, least in (("length", 0), ("size", 1), ("stride", 1), ("rate", 1)):
            value = as_integer(f"{name} on {shown(self.dim)}", getattr(self, name), least)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "padding", _as_padding(self.dim, self.padding))

    @property
    def effective_size(self) -> int:
        """Footprint of a patch in samples of the image, ``k + (k - 1) * (r - 1)``."""
        return self.size + (self.size - 1) * (self.rate - 1)

    @property
    def count(self) -> int:
        """Number of patches along the dim."""
        if self.padding == "same":
            return -(-self.length // self.stride)
        before, after = (0, 0) if self.padding == "valid" else self.padding
        room = before + self.length + after - self.effective_size
        return 0 if room < 0 else room // self.stride + 1

    @property
    def pads(self) -> tuple[int, int]:
        """Samples of padding ``(before, after)`` the image."""
        if self.padding == "valid":
            return 0, 0
        if self.padding == "same":
            end = (self.count - 1) * self.stride + self.effective_size
            total = max(0, end - self.length)
            return total // 2, total - total // 2
        return self.padding

    @property
    def before(self) -> int:
        """Samples of padding before the image; patch 0 has its origin at ``-before``."""
        return self.pads[0]

    @property
    def origins(self) -> range:
        """Source index of the first sample of every patch, ``i * s - before``; may be negative."""
        return self._every_patch(-self.before)

    @property
    def centers(self) -> range:
        """``origin + (eff - 1) // 2`` of every patch; inside the image under valid and same."""
        return self._every_patch((self.effective_size - 1) // 2 - self.before)

    @property
    def offsets(self) -> range:
        """Position ``j * r`` of every sample inside a patch."""
        return range(0, self.effective_size, self.rate)

    @property
    def halo(self) -> tuple[int, int]:
        """Samples ``(before, eff - 1 - before)`` a block at any edge may need from its neighbours.

        It suffices for every block under valid and same, whatever the edges of the blocks.
        """
        return self.before, max(0, self.effective_size - 1 - self.before)

    def anchor(self, patch: int) -> int:
        """Source index that decides which block owns the patch: ``i * s``, inside the image.

        Explicit padding can put ``i * s`` behind the image; the anchor is the last sample then.
        """
        return min(patch * self.stride, self.length - 1)

    def samples(self, patch: int) -> range:
        """Source index of every sample of one patch; outside ``[0, length)`` is padding."""
        origin = patch * self.stride - self.before
        return range(origin, origin + self.effective_size, self.rate)

    def owned(self, start: int, stop: int) -> range:
        """Patches whose anchor lies in the block ``[start, stop)``.

        Over blocks that tile ``[0, length)`` every patch is owned exactly once.

        Examples
        --------
        >>> axis = AxisGrid("x", length=10, size=3, stride=4, padding="same")
        >>> [list(axis.owned(*block)) for block in ((0, 5), (5, 8), (8, 10))]
        [[0, 1], [], [2]]
        """
        last = self.count
        first = min(-(-start // self.stride), last)
        return range(first, last if stop >= self.length else min(-(-stop // self.stride), last))

    def region(self, first: int, count: int) -> tuple[int, int, int]:
        """Find the samples under a run of patches: start, stop, and the first origin behind start.

        They are clipped to the image; where all of them are padding, start equals stop.

        Examples
        --------
        >>> AxisGrid("x", length=10, size=3, stride=2, padding="same").region(first=4, count=1)
        (8, 10, 0)
        >>> AxisGrid("x", length=10, size=3, stride=1, padding="same").region(first=0, count=2)
        (0, 3, -1)
        """
        return next(self.regions([count], first))

    def regions(self, counts: Iterable[int], first: int = 0) -> Iterator[tuple[int, int, int]]:
        """Find the samples under runs of so many patches, one after the other, as `region` does."""
        stride, length, size = self.stride, self.length, self.effective_size
        origin = first * stride - self.before
        for count in counts:
            end = origin + max(0, count - 1) * stride + size
            start = min(max(0, origin), length)
            yield start, max(start, min(end, length)), origin - start
            origin += count * stride

    def coverage(self, sample: int) -> int:
        """Count the patches that hold one sample of the image."""
        hits = 0
        for offset in self.offsets:
            patch, rest = divmod(sample + self.before - offset, self.stride)
            hits += rest == 0 and 0 <= patch < self.count
        return hits

    def _every_patch(self, start: int) -> range:
        return range(start, start + self.count * self.stride, self.stride)


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """The patches of an image: one `AxisGrid` per spatial dim, in the order of numbering.

    Examples
    --------
    >>> grid = PatchGrid((AxisGrid("y", 10, 3, 5), AxisGrid("x", 10, 3, 5)))
    >>> grid.counts, grid.total
    ({'y': 2, 'x': 2}, 4)
    >>> grid.unravel(2)
    (1, 0)
    >>> grid["x"].origins
    range(0, 10, 5)
    """

    axes: tuple[AxisGrid, ...]

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Names of the spatial dims."""
        return tuple(axis.dim for axis in self.axes)

    @property
    def counts(self) -> dict[Hashable, int]:
        """Number of patches per dim."""
        return {axis.dim: axis.count for axis in self.axes}

    @property
    def sizes(self) -> dict[Hashable, int]:
        """Samples per patch per dim."""
        return {axis.dim: axis.size for axis in self.axes}

    @property
    def total(self) -> int:
        """Number of patches of the grid."""
        return prod(axis.count for axis in self.axes)

    def __getitem__(self, dim: Hashable) -> AxisGrid:
        for axis in self.axes:
            if axis.dim == dim:
                return axis
        raise PatchError(f"the grid has the dims {self.dims}, got {shown(dim)}; name one of those")

    def __iter__(self) -> Iterator[AxisGrid]:
        return iter(self.axes)

    def restrict(self, dims: tuple[Hashable, ...]) -> "PatchGrid":
        """Keep the axes that are among `dims`, in the grid's order: that of the numbers."""
        return PatchGrid(tuple(axis for axis in self.axes if axis.dim in dims))

    def arrange(self, dims: tuple[Hashable, ...]) -> "PatchGrid":
        """Keep the axes that are among `dims`, in the order of `dims`: that of an array's axes."""
        return PatchGrid(tuple(self[dim] for dim in dims if dim in self.dims))

    def index(self, position: Mapping[Hashable, object]) -> tuple[int, ...]:
        """Check the index of one patch; a negative one counts from the end, as in a sequence.

        Raises
        ------
        PatchError
            If an index is not an integer.
        PatchIndexError
            If an index lies outside the grid.
        """
        return tuple(
            _as_index(f"index on {axis.dim!r}", position[axis.dim], axis.count)
            for axis in self.axes
        )

    def unravel(self, number: object) -> tuple[int, ...]:
        """Turn the number of a patch, the last dim running fastest, into an index per dim.

        Raises
        ------
        PatchError, PatchIndexError
            As `index`.
        """
        rest = _as_index("number of the patch", number, self.total)
        index = []
        for axis in reversed(self.axes):
            rest, i = divmod(rest, axis.count)
            index.append(i)
        return tuple(reversed(index))


def grid_of(
    lengths: Mapping[Hashable, int],
    arrays: Iterable[Sequence[Hashable]],
    size: Mapping[Hashable, int],
    stride: Any,
    rate: Any,
    padding: Any,
) -> PatchGrid:
    """Normalise the arguments of the accessor.

    Parameters
    ----------
    lengths
        Length of every dim of the image.
    arrays
        Dims of every array that is cut. The axes are in the order on which these agree; where two
        of them differ, or none has both of two dims, in that in which `size` names them.
    size
        Samples per patch per dim.
    stride, rate, padding
        One value for every dim of `size`, or a mapping from dim to value. A dim that a mapping
        leaves out has stride = size, rate 1 and padding "valid".

    Raises
    ------
    PatchError
        If a dim is unknown, a number is out of range, or no patch fits on the image.

    Examples
    --------
    >>> lengths, size = {"y": 10, "x": 12}, {"x": 3, "y": 3}
    >>> grid_of(lengths, [("y", "x")], size, {"x": 5}, 1, "valid").counts
    {'y': 3, 'x': 2}
    >>> grid_of(lengths, [("y", "x"), ("x", "y")], size, {"x": 5}, 1, "valid").counts
    {'x': 2, 'y': 3}
    """
    if not size:
        raise PatchError(
            f"size must name at least one dim, got none; the dims are {tuple(lengths)}, "
            "write for example size={'y': 256, 'x': 256} or y=256, x=256"
        )
    strides = {**size, **by_dim("stride", stride, size)}
    rates = {**dict.fromkeys(size, 1), **by_dim("rate", rate, size)}
    paddings = {**dict.fromkeys(size, "valid"), **by_dim("padding", padding, size)}
    grid = PatchGrid(
        tuple(
            AxisGrid(dim, lengths[dim], size[dim], strides[dim], rates[dim], paddings[dim])
            for dim in _in_order([*size], [*arrays])
        )
    )
    for axis in grid.axes:
        _check_not_empty(axis)
    return grid


def _in_order(named: list[Hashable], arrays: list[Sequence[Hashable]]) -> list[Hashable]:
    """Sort dims as the arrays that have them do; as they are named where these do not agree."""
    ordered: list[Hashable] = []
    while left := [dim for dim in named if dim not in ordered]:
        rests = [[dim for dim in dims if dim in left] for dims in arrays]
        firsts = [dim for dim in left if not any(dim in rest[1:] for rest in rests)]
        if not firsts:
            return named
        ordered.append(firsts[0])
    return ordered


def _check_not_empty(axis: AxisGrid) -> None:
    if axis.length == 0:
        raise PatchError(f"dim {axis.dim!r} of the image has length 0; there is nothing to extract")
    if axis.count == 0:
        room = axis.length + sum(axis.pads)
        raise PatchError(
            f"size on {axis.dim!r} is too large: its effective size {axis.effective_size} must be "
            f"<= {room}, the image with its padding; use a smaller size or rate, or padding='same'"
        )


def walk(ranges: Sequence[range]) -> Iterator[tuple[int, ...]]:
    """Go through the product of ranges, the last one fastest; itertools would list each of them.

    Examples
    --------
    >>> next(walk([range(10**18), range(4, 10**18)]))
    (0, 4)
    """
    if not ranges:
        yield ()
        return
    for first in ranges[0]:
        for rest in walk(ranges[1:]):
            yield first, *rest


def _as_padding(dim: Hashable, padding: object) -> Padding:
    if isinstance(padding, tuple | list) and len(padding) == 2:
        before, after = padding
        return (
            as_integer(f"padding before {shown(dim)}", before, 0),
            as_integer(f"padding after {shown(dim)}", after, 0),
        )
    word = as_choice(f"padding on {shown(dim)}", padding, ("valid", "same"), "(before, after)")
    return "valid" if word == "valid" else "same"


def _as_index(what: str, value: object, count: int) -> int:
    number = as_integer(what, value, most=inf)
    if not -count <= number < count:
        raise PatchIndexError(f"{what} must lie in [{-count}, {count}), got {shown(number)}")
    return number % count
