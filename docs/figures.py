"""Draw the documentation's figures: ``python docs/figures.py FOLDER``.

Every number in them is computed by xpatches. The unit of length is one sample; y runs downwards.
"""

import sys
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from xpatches.extraction.plan import AxisPlan, plan_blocks
from xpatches.geometry.grid import AxisGrid, Padding
from xpatches.stitching.tapers import weights_of

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
TINT = {BLUE: "#a6cfe8", ORANGE: "#f7dca0", GREEN: "#a3dccb"}
INK, GREY, PALE, WHITE = "#222222", "#666666", "#c4c4c4", "#ffffff"


def draw(folder: Path) -> None:
    """Write every figure into a folder as SVG; the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(
        {"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "xpatches"}
    ):
        for figure in (anatomy, paddings, ownership, ten_by_ten, layout, tapers):
            path, nameless = folder / f"{figure.__name__}.svg", {"Date": None, "Creator": None}
            figure().figure.savefig(path, format="svg", metadata=nameless)


class Sheet:
    """A white figure, `inch` inches per sample, and what can be drawn on it."""

    def __init__(self, left: float, right: float, top: float, bottom: float, inch: float) -> None:
        size = (right - left) * inch, (bottom - top) * inch
        self.figure = Figure(figsize=size, facecolor=WHITE)
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(left, right), ylim=(bottom, top))
        self.ax.set_axis_off()

    def note(self, x: float, y: float, text: object, ha: str = "left", **look: Any) -> None:
        """Write text right of, left of or around a point."""
        self.ax.text(x, y, str(text), ha=ha, va="center", **{"color": INK, "fontsize": 9, **look})

    def title(self, x: float, y: float, text: str) -> None:
        """Write a heading."""
        self.note(x, y, text, fontsize=10.5, weight="bold")

    def box(self, x: float, y: float, width: float, height: float, **look: Any) -> None:
        """Draw a rectangle."""
        look = {"facecolor": WHITE, "edgecolor": GREY, "linewidth": 0.8, **look}
        self.ax.add_patch(Rectangle((x, y), width, height, **look))

    def cell(self, x: float, y: float, text: object, fill: str = WHITE, edge: str = GREY) -> None:
        """Draw one sample of an image."""
        self.box(x, y, 1, 1, facecolor=fill, edgecolor=edge)
        self.note(x + 0.5, y + 0.5, text, "center", color=_on(fill), fontsize=8)

    def padding(self, x: float, y: float, width: float = 1, height: float = 1) -> None:
        """Draw one sample outside the image."""
        self.box(x, y, width, height, hatch="/////")

    def line(self, grid: AxisGrid, left: float = 0, top: float = 0) -> None:
        """Draw the samples of an image of one dim, and its padding."""
        for x in range(-grid.pads[0], grid.length + grid.pads[1]):
            if 0 <= x < grid.length:
                self.cell(left + x, top, x)
            else:
                self.padding(left + x, top)

    def mark(self, x: float, y: float, marker: object, size: float, color: str) -> None:
        """Draw a symbol: triangles filled, the others as lines."""
        face = color if marker == "v" else "none"
        self.ax.plot(x, y, marker=marker, ls="", color=color, ms=size, mfc=face, mew=1.8)

    def arrow(self, start: float, stop: float, y: float, style: str = "->") -> None:
        """Draw an arrow from one x to another."""
        look = {"arrowstyle": style, "color": INK, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.2}
        self.ax.annotate("", (stop, y), (start, y), arrowprops=look)


def _on(fill: str) -> str:
    return WHITE if fill in (BLUE, GREEN, RED) else INK


def anatomy() -> Sheet:
    """Draw size, stride, rate, effective size, anchor, origin, center and offset on one dim."""
    grid = AxisGrid("x", 11, size=3, stride=4, rate=2, padding="same")
    left, right = -grid.before, grid.length + grid.pads[1]
    tops = [2.6 + 2.7 * patch for patch in range(grid.count)]
    sheet = Sheet(left - 3.2, right + 4.4, -2.5, tops[-1] + 7.3, inch=0.41)
    values = f"size {grid.size}, stride {grid.stride}, rate {grid.rate}"
    sheet.title(left - 2.9, -2, f'{values}, padding "{grid.padding}"')
    sheet.line(grid)
    sheet.note(left - 0.4, 0.5, f"image\nn = {grid.length}", "right")
    sheet.note(right + 0.4, 0.5, f"padding\nbefore {grid.pads[0]}, after {grid.pads[1]}")
    for patch, top in enumerate(tops):
        _anatomy_patch(sheet, grid, patch, top)
    (first, second), end = grid.samples(0)[:2], grid.origins[0] + grid.effective_size
    sheet.arrow(first + 0.5, second + 0.5, tops[0] - 0.45)
    sheet.note(second + 0.8, tops[0] - 0.45, f"rate {grid.rate}: from one sample to the next")
    sheet.note(end + 0.4, tops[0] + 0.5, f"size {grid.size}: samples in a patch (filled)")
    sheet.arrow(grid.origins[0] + 0.5, grid.origins[1] + 0.5, tops[1] - 0.5)
    text = f"stride {grid.stride}: from one patch to the next"
    sheet.note(grid.origins[1] + 0.8, tops[1] - 0.5, text)
    last, below = grid.origins[-1], tops[-1] + 2.1
    sheet.arrow(last, last + grid.effective_size, below, "|-|, widthA=.3, widthB=.3")
    terms = f"{grid.size} + ({grid.size} - 1) * ({grid.rate} - 1)"
    sheet.note(last - 0.3, below, f"effective size {grid.effective_size} = {terms}", "right")
    _anatomy_legend(sheet, left - 2.6, below + 1.1)
    return sheet


def _anatomy_patch(sheet: Sheet, grid: AxisGrid, patch: int, top: float) -> None:
    samples, anchor = grid.samples(patch), grid.anchor(patch)
    origin, center = grid.origins[patch], grid.centers[patch]
    sheet.mark(anchor + 0.5, -0.25, "v", 7, RED)
    sheet.note(anchor + 0.5, -0.85, f"anchor of patch {patch}", "center", color=RED)
    for x in range(origin, origin + grid.effective_size):
        if 0 <= x < grid.length:
            sheet.cell(x, top, x if x in samples else "", BLUE if x in samples else WHITE, PALE)
        else:
            sheet.padding(x, top)
            spot = {"boxstyle": "square", "facecolor": WHITE, "linewidth": 0}
            sheet.note(x + 0.5, top + 0.5, 0 if x in samples else "", "center", bbox=spot)
    sheet.box(origin - 0.06, top - 0.15, 0.12, 1.3, facecolor=GREEN, linewidth=0)
    sheet.mark(center + 0.5, top + 0.5, "o", 19, ORANGE)
    for x, offset in zip(samples, grid.offsets, strict=True):
        sheet.note(x + 0.5, top + 1.35, offset, "center", color=GREY, fontsize=8)
    left, right = -grid.before - 0.4, grid.length + grid.pads[1] + 0.4
    sheet.note(left, top + 0.5, f"patch {patch}", "right")
    sheet.note(left, top + 1.35, "offset", "right", color=GREY, fontsize=8)
    sheet.note(right, top + 0.5, f"anchor {anchor}\norigin {origin}\ncenter {center}")


def _anatomy_legend(sheet: Sheet, x: float, top: float) -> None:
    texts = (
        "anchor = patch * stride: always inside the image; decides which block owns the patch",
        "origin = patch * stride - before: the first sample; may lie in the padding",
        "center = origin + (effective size - 1) // 2: labels the patch by default",
        "offset: from the origin to a sample, a multiple of the rate",
        "padding: outside the image; a sample that lies there gets the fill value, here 0",
    )
    for row, text in enumerate(texts):
        sheet.note(x + 0.8, top + 0.8 * row, text)
    sheet.mark(x, top, "v", 7, RED)
    sheet.box(x - 0.06, top + 0.5, 0.12, 0.6, facecolor=GREEN, linewidth=0)
    sheet.mark(x, top + 1.6, "o", 11, ORANGE)
    sheet.note(x, top + 2.4, 0, "center", color=GREY, fontsize=8)
    sheet.padding(x - 0.3, top + 2.9, 0.6, 0.6)


def paddings() -> Sheet:
    """Draw two short lines under each kind of padding: patches, padding, what is dropped."""
    kinds: tuple[Padding, ...] = ("valid", "same", (1, 2))
    bottom = 0.2 + 4.8 * len(kinds)
    sheet = Sheet(-4.7, 27.5, -1.8, bottom + 1.1, inch=0.3)
    for (row, padding), (left, length) in product(enumerate(kinds), ((0, 10), (16, 9))):
        grid, top = AxisGrid("x", length, size=4, stride=3, padding=padding), 0.2 + 4.8 * row
        _padding_panel(sheet, grid, left, top)
        if row == 0:
            sheet.title(left, -1.1, f"n = {length}, size {grid.size}, stride {grid.stride}")
        if left == 0:
            text = f'"{padding}"' if isinstance(padding, str) else str(padding)
            sheet.title(-4.4, top + 0.5, text)
    sheet.padding(0, bottom, height=0.8)
    sheet.note(1.4, bottom + 0.4, "padding: a sample there gets the fill value")
    sheet.mark(16.5, bottom + 0.4, "x", 8, RED)
    sheet.note(17.4, bottom + 0.4, "dropped: in no patch")
    return sheet


def _padding_panel(sheet: Sheet, grid: AxisGrid, left: float, top: float) -> None:
    before, after = grid.pads
    sheet.line(grid, left, top)
    dropped = [x for x in range(-before, grid.length + after) if not grid.coverage(x)]
    for sample in dropped:
        sheet.mark(left + sample + 0.5, top + 1.55, "x", 8, RED)
    for patch, origin in enumerate(grid.origins):
        x, y, width = left + origin, top + 1.2 + 0.85 * (patch % 2), grid.effective_size
        sheet.box(x + 0.1, y, width - 0.2, 0.7, facecolor=BLUE, linewidth=0)
        sheet.note(x + width / 2, y + 0.35, f"patch {patch}", "center", color=WHITE, fontsize=8)
    text = f"{grid.count} patches; padding {before} before, {after} after"
    sheet.note(left, top + 3.3, f"{text}; {len(dropped) or 'none'} dropped", color=GREY)


def ownership() -> Sheet:
    """Draw the blocks of a line, the patches that each one owns, and the halo that it reads."""
    chunks = (5, 5, 6)
    grid = AxisGrid("x", sum(chunks), size=5, stride=1, padding="same")
    (plan,) = plan_blocks("map_overlap", {0: grid}, (chunks,), itemsize=1, max_bytes=100).axes
    blocks = list(pairwise([0, *accumulate(chunks)]))
    left, right = -grid.before, grid.length + grid.pads[1]
    tops = list(accumulate((0.5 * count + 2.1 for count in plan.chunks), initial=2.2))
    sheet = Sheet(left - 3.4, right + 7, -2.7, tops[-1] + 2.4, inch=0.34)
    values = f'size {grid.size}, stride {grid.stride}, padding "{grid.padding}", chunks {chunks}'
    sheet.title(left - 3, -2.1, f"{values}: halo {plan.halo}, result's chunks {plan.chunks}")
    sheet.line(grid)
    sheet.note(left - 0.4, 0.5, "image", "right")
    for block, color in enumerate(TINT):
        start, stop = blocks[block]
        sheet.ax.vlines([start, stop], 1, tops[-1] - 0.6, INK, ":", linewidth=1, zorder=0)
        sheet.note((start + stop) / 2, -0.6, f"block {block}", "center")
        for x in range(start, stop):
            sheet.cell(x, 0, x, color, WHITE)
        _owner(sheet, plan, block, blocks[block], tops[block])
    _ownership_legend(sheet, left - 2.7, tops[-1] + 0.1)
    return sheet


def _ownership_legend(sheet: Sheet, x: float, y: float) -> None:
    sheet.box(x - 0.3, y - 0.3, 0.6, 0.6, facecolor=BLUE, linewidth=0)
    sheet.mark(x, y, "v", 3, WHITE)
    sheet.note(x + 0.8, y, "anchor: lies in one block, so every patch is computed exactly once")
    sheet.box(x - 0.3, y + 0.5, 0.6, 0.6, facecolor=TINT[BLUE], linewidth=0)
    sheet.note(x + 0.8, y + 0.8, "halo: all that a block reads beyond its own samples")
    sheet.padding(x - 0.3, y + 1.3, 0.6, 0.6)
    sheet.note(x + 0.8, y + 1.6, "padding: gets the fill value, nothing is read")


def _owner(sheet: Sheet, plan: AxisPlan, block: int, edges: tuple[int, int], top: float) -> None:
    grid, color, (start, stop) = plan.grid, list(TINT)[block], edges
    owned, (first, end) = grid.owned(start, stop), plan.regions[block]
    for x in range(first, end):
        sheet.cell(x, top, x, color if start <= x < stop else TINT[color], WHITE)
    for row, patch in enumerate(owned):
        y, anchor = top + 1.2 + 0.5 * row, grid.anchor(patch)
        for x in grid.samples(patch):
            if 0 <= x < grid.length:
                fill = color if x == anchor else WHITE
                sheet.box(x, y, 1, 0.36, facecolor=fill, edgecolor=color)
            else:
                sheet.padding(x, y, height=0.36)
        sheet.mark(anchor + 0.5, y + 0.18, "v", 3, _on(color))
    left, right = -grid.before - 0.4, grid.length + grid.pads[1] + 0.5
    sheet.note(left, top + 0.5, f"block {block}", "right")
    text = f"reads {first} to {end - 1}: halo {start - first, end - stop}"
    sheet.note(right, top + 0.8, f"{text}\nowns patches {owned[0]} to {owned[-1]}")


def ten_by_ten() -> Sheet:
    """Draw TensorFlow's picture: a symbol per patch replaces the numbers, at rate 1 and rate 2."""
    sheet = Sheet(-0.6, 22.6, -2.3, 12.1, inch=0.34)
    for left, rate in ((0, 1), (12, 2)):
        y, x = (AxisGrid(dim, 10, size=3, stride=5, rate=rate) for dim in "yx")
        sheet.title(left, -1.6, f"size {x.size}, stride {x.stride}, rate {rate}")
        sheet.note(left, -0.7, f'padding "{x.padding}", effective size {x.effective_size}')
        for row, column in product(range(y.length), range(x.length)):
            covered = y.coverage(row) and x.coverage(column)
            number = "" if covered else row * x.length + column + 1
            sheet.cell(left + column, row, number, edge=PALE)
        _symbols(sheet, y, x, left)
    return sheet


def _symbols(sheet: Sheet, y: AxisGrid, x: AxisGrid, left: float) -> None:
    marks = (((6, 2, 0), BLUE), ("x", RED), ("+", GREEN), ("o", ORANGE))
    patches = product(range(y.count), range(x.count))
    for (i, j), (marker, color) in zip(patches, marks, strict=True):
        for row, column in product(y.samples(i), x.samples(j)):
            sheet.cell(left + column, row, "", color, PALE)
            sheet.mark(left + column + 0.5, row + 0.5, marker, 10, _on(color))
        corner = left + x.origins[j] + 0.05, y.origins[i] + 0.05
        width, height = x.effective_size - 0.1, y.effective_size - 0.1
        sheet.box(*corner, width, height, fill=False, edgecolor=color, linewidth=2.5)
        key_x, key_y = left + 5 * j, 10.5 + 0.9 * i
        sheet.box(key_x, key_y, 0.7, 0.7, facecolor=color, linewidth=0)
        sheet.mark(key_x + 0.35, key_y + 0.35, marker, 7, _on(color))
        sheet.note(key_x + 1, key_y + 0.35, f"patch [{i}, {j}]")


def layout() -> Sheet:
    """Draw an image and its result: a position in the grid picks a patch, patch dims a sample."""
    y, x = AxisGrid("y", 6, size=2, stride=2), AxisGrid("x", 12, size=3, stride=3)
    right, (i, j), (v, u) = x.length + 4.5, (1, 2), (1, 0)
    sheet = Sheet(-0.8, right + 3.8 * x.count - 0.2, -2.6, 16.2, inch=0.3)

    def cells(index: tuple[int, int], left: float, top: float) -> None:
        for row, column in product(range(y.size), range(x.size)):
            number = y.samples(index[0])[row] * x.length + x.samples(index[1])[column]
            fill = WHITE if index != (i, j) else ORANGE if (row, column) == (v, u) else BLUE
            sheet.cell(left + column, top + row, number, fill, PALE)
        sheet.box(left, top, x.size, y.size, fill=False, edgecolor=INK, linewidth=1.5)

    dims = f"y: {y.count}, x: {x.count}"
    sheet.title(0, -2, f"image (y: {y.length}, x: {x.length})")
    sheet.note(0, y.length + 0.8, f"size and stride y: {y.size}, x: {x.size}", color=GREY)
    sheet.arrow(x.length + 0.4, x.length + 1.8, y.length / 2)
    sheet.title(right, -2, f"result ({dims}, y_patch: {y.size}, x_patch: {x.size})")
    for row, column in product(range(y.count), range(x.count)):
        left, top = right + column * (x.size + 0.8), row * (y.size + 0.8)
        cells((row, column), x.origins[column], y.origins[row])
        cells((row, column), left, top)
        if row == 0:
            sheet.note(left + x.size / 2, -0.6, f"x = {x.centers[column]}", "center")
        if column == 0:
            sheet.note(right - 0.3, top + y.size / 2, f"y = {y.centers[row]}", "right")
    sheet.note(right, 8.5, "y, x: the image's labels at the patch's center", color=GREY)

    left, top, position = 3, 12, v * x.size + u
    sheet.title(0, top - 1.7, f"result[{i}, {j}]: the position in the grid picks a patch")
    cells((i, j), left, top)
    for row, offset in enumerate(y.offsets):
        sheet.note(left - 0.3, top + row + 0.5, f"y_patch = {offset}", "right", fontsize=8)
    for column, offset in enumerate(x.offsets):
        sheet.note(left + column + 0.5, top - 0.5, offset, "center", fontsize=8)
    source = f"y = {y.origins[i]} + {y.offsets[v]}, x = {x.origins[j]} + {x.offsets[u]}"
    sheet.title(0, top + 2.8, f"result[{i}, {j}, {v}, {u}]: the patch dims pick a sample")
    sheet.note(0, top + 3.6, f"origin + offset: {source} in the image", color=GREY)

    sheet.title(right, top - 1.7, f'with flatten="patch" ({dims}, patch: {y.size * x.size})')
    for number, (row, column) in enumerate(product(y.samples(i), x.samples(j))):
        fill = ORANGE if number == position else BLUE
        sheet.cell(right + number, top, row * x.length + column, fill, PALE)
        sheet.note(right + number + 0.5, top - 0.5, number, "center", fontsize=8)
    for name, place in (("x_patch", left), ("patch", right)):
        sheet.note(place - 0.3, top - 0.5, f"{name} =", "right", fontsize=8)
    sheet.title(right, top + 2.8, f"result[{i}, {j}, {position}]: the same sample")
    return sheet


def tapers() -> Sheet:
    """Draw the weights of three patches along a dim, and what a patch counts after division."""
    size, stride, length = 64, 32, 128
    sheet = Sheet(-2, 3 * (length + 14), -8, 78, inch=0.021)
    colors = (BLUE, ORANGE, GREEN)
    for panel, name in enumerate(("hann", "triangular", "gaussian")):
        left = panel * (length + 14)
        sheet.title(left, -3, f'"{name}"')
        weights = weights_of(name, {"x": size})
        assert weights is not None
        patches = [stride * i for i in range(3)]
        total = [0.0] * length
        for start in patches:
            for j, weight in enumerate(weights["x"]):
                total[start + j] += weight
        for row, (title, divided) in enumerate(
            (("weights", False), ("divided by their sum", True))
        ):
            base = 32 + 38 * row
            sheet.note(left, base - 27, title, color=GREY)
            sheet.ax.plot([left, left + length], [base, base], color=PALE, linewidth=0.8)
            for start, color in zip(patches, colors, strict=True):
                xs = [left + start + j + 0.5 for j in range(size)]
                ys = [
                    base - 22 * weight / (total[start + j] if divided else 1)
                    for j, weight in enumerate(weights["x"])
                ]
                sheet.ax.plot(xs, ys, color=color, linewidth=1.6)
    return sheet


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
