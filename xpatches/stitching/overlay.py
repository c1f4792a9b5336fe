"""How patches are laid over a block: steps, groups, tiles.

All patches are laid over a block in as many steps as a patch has groups
(`xpatches.geometry.coverage`): the samples of a patch that lie in its first, second, ... tile. A
step lays, of all patches at once, one rectangle of each on the tiles that it falls on. The steps
go in a fixed order, patches with low numbers first, so that a sample is made of the same terms in
the same order whatever the block.

The work is done for a few rows of tiles at a time, which stay in cache until they are finished.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import pairwise, product
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xpatches.dtypes import Array
from xpatches.geometry.coverage import Cover

_PARTS = 32
"""Parts of a step, at most, in which patches are the heaviest, up to which they are listed."""

_Index: TypeAlias = tuple[Any, ...]


class Step(NamedTuple):
    """Along one dim: some samples of some patches, and those of tiles that they are laid on."""

    patches: slice
    samples: slice
    tiles: slice
    places: slice

    def part(self, rows: slice, columns: slice) -> "Step":
        """Take some of the patches and tiles, and some of the samples and places."""
        cuts = zip(self, (rows, columns, rows, columns), strict=True)
        parts = (range(along.start, along.stop, along.step or 1)[cut] for along, cut in cuts)
        return Step(*(slice(part.start, part.stop, part.step) for part in parts))


def _steps(cover: Cover) -> list[Step]:
    """List the steps that lay all patches over a block, those with low numbers first."""
    shift = (cover.origin + cover.margin) // cover.axis.stride
    steps = []
    for tile, samples, places in reversed(cover.axis.groups):
        before = shift + tile  # tiles of the block, or as many missing ones
        patches = slice(max(0, -before), min(cover.count, cover.tiles - before))
        if patches.start < patches.stop:
            tiles = slice(patches.start + before, patches.stop + before)
            steps.append(Step(patches, samples, tiles, places))
    return steps


class Layer(NamedTuple):
    """What a step lays on the tiles along all dims."""

    samples: Array
    """Of patches: any other dims, then which patch and which of its samples for every dim."""
    place: _Index
    """Where they lie: the index of which tile and which of its samples for every dim."""
    weight: Array
    """Of the samples, with dims of length 1 for the patches."""
    counts: Any
    """Which samples count, as an array of as many dims; True for all."""

    def counted(self, values: Array) -> Array:
        """Put zero where samples do not count."""
        if self.counts is True:
            return values
        return np.where(self.counts, values, values.dtype.type(0))


@dataclass(frozen=True, eq=False)
class Overlay:
    """A few rows of tiles, and the patches over them.

    Samples count if their patch is there, they have a weight, and they are known.
    """

    patches: Array
    """Any other dims, then for every spatial dim which patch and which of its samples."""
    covers: tuple[Cover, ...]
    """The rows, along every spatial dim."""
    weights: tuple[Array, ...] | None
    """Of a patch's samples, along every spatial dim; None for ones."""
    present: Array | None
    """Which patches there are, bool, along the spatial dims; None for all."""
    known: Callable[[_Index], Array] | None = None
    """Tells of an index of `patches` which samples are known; None for all."""
    combine: Callable[[Array, Array], Array] = np.multiply.outer
    """Makes a weight of those along two dims."""

    @cached_property
    def _spatial(self) -> tuple[int, ...]:
        return tuple(n for cover in self.covers for n in (cover.tiles, cover.axis.stride))

    @property
    def shape(self) -> tuple[int, ...]:
        """Any other dims, then for every spatial dim which tile and which of its samples."""
        return (*self.patches.shape[: -len(self._spatial)], *self._spatial)

    @cached_property
    def _steps(self) -> list[list[Step]]:
        """Along every spatial dim."""
        return [_steps(cover) for cover in self.covers]

    @cached_property
    def _along(self) -> tuple[Array, ...]:
        """Weights along every spatial dim, or ones."""
        return self.weights or tuple(np.ones(cover.axis.size) for cover in self.covers)

    @property
    def all_count(self) -> bool:
        """Whether all samples of patches that have a weight do."""
        return self.present is None and self.known is None

    def full(self, value: Any, dtype: Any) -> Array:
        """Make samples that are all the same."""
        return np.full(self.shape, value, dtype)

    def inside(self, tiles: Array) -> Array:
        """Join tiles, and take what of them lies in the rows."""
        lengths = [cover.tiles * cover.axis.stride for cover in self.covers]
        joined = tiles.reshape(*tiles.shape[: -len(self._spatial)], *lengths)
        rows = (slice(cover.margin, cover.margin + cover.length) for cover in self.covers)
        inside: _Index = (..., *rows)
        return joined[inside]

    def _zeros(self) -> Array:
        """Make zeros, float64, without the other dims if the same samples count along them."""
        return np.zeros(self.shape if self.known else self._spatial)

    def layers(self, steps: Sequence[Sequence[Step]] | None = None) -> Iterator[Layer]:
        """Lay patches in steps, in the order of these along every dim; all of them by default."""
        for step in product(*(steps or self._steps)):
            taken: _Index = (..., *(part for along in step for part in along[:2]))
            place: _Index = (..., *(part for along in step for part in along[2:]))
            weight, counts = np.ones(()), []
            if self.weights is not None:
                parts = [
                    w[None, along.samples] for w, along in zip(self.weights, step, strict=True)
                ]
                weight = reduce(self.combine, parts)
                counts += [] if weight.all() else [weight > 0]
            if self.present is not None:
                patches: _Index = sum(((along.patches, None) for along in step), ())
                counts.append(self.present[patches])
            if self.known is not None:
                counts.append(self.known(taken))
            which = reduce(np.logical_and, counts) if counts else True
            yield Layer(self.patches[taken], place, weight, which)

    def heaviest(self, dtype: np.dtype[Any]) -> Array:
        """Give what the patch of the greatest weight holds over every sample, the first of several.

        It is found along every dim by itself, if that leaves large parts: weights, products or
        sums, are the greatest where those along every dim are.
        """
        held = np.zeros(self.shape, dtype)
        if self.all_count:
            parts = [self._heaviest_parts(number) for number in range(len(self.covers))]
            if math.prod(map(len, parts)) <= _PARTS * math.prod(map(len, self._steps)):
                for layer in self.layers(parts):
                    held[layer.place] = layer.samples
                return held
        if self.weights is None:
            for layer in self.layers([steps[::-1] for steps in self._steps]):
                np.copyto(held[layer.place], layer.samples, where=layer.counts)
            return held
        best = self._zeros()
        for layer in self.layers():
            heavier = layer.counted(layer.weight > best[layer.place])
            np.copyto(held[layer.place], layer.samples, where=heavier)
            np.copyto(best[layer.place], layer.weight, where=heavier)
        return held

    def _heaviest_parts(self, number: int) -> list[Step]:
        """List the parts of the steps along a dim in which patches are the heaviest."""
        steps = self._steps[number]
        best = np.zeros(self._spatial[2 * number :][:2])
        winner = np.full(best.shape, -1)
        for at, step in enumerate(steps):
            weight = self._along[number][step.samples]
            heavier = weight > best[step[2:]]
            np.copyto(best[step[2:]], weight, where=heavier)
            winner[step[2:]][heavier] = at
        parts = []
        for at, step in enumerate(steps):
            wins = winner[step[2:]] == at
            changes = np.flatnonzero((wins[1:] != wins[:-1]).any(1)) + 1
            for first, stop in pairwise([0, *changes, len(wins)]):  # all but the outer tiles alike
                edges = np.flatnonzero(np.diff(wins[first], prepend=False, append=False))
                columns = (slice(*pair) for pair in edges.reshape(-1, 2).tolist())
                parts += [step.part(slice(first, stop), part) for part in columns]
        return parts

    @cached_property
    def _totals(self) -> list[Array]:
        """One array a dim, of which the sums of weights are the outer product, or those sums."""
        if not self.all_count:
            total = self._zeros()
            for layer in self.layers():
                total[layer.place] += layer.counted(layer.weight)
            return [total]
        totals = []
        for number, (steps, weights) in enumerate(zip(self._steps, self._along, strict=True)):
            total = np.zeros(self._spatial[2 * number :][:2])
            for step in steps:
                total[step[2:]] += weights[step.samples]
            totals.append(total)
        return totals

    def totals(self, dtype: Any) -> Array:
        """Sum the weights over every sample, to divide by: 1 where the sum is 0."""
        total: Array = reduce(np.multiply.outer, [along.astype(dtype) for along in self._totals])
        np.copyto(total, 1, where=total == 0)
        return total

    def bare(self) -> Array | None:
        """Tell which samples nothing counts over; None if there are none."""
        bare = [along == 0 for along in self._totals]
        return reduce(np.logical_or.outer, bare) if any(along.any() for along in bare) else None
