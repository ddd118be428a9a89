"""A line drawn with braille characters: two dots across and four down in every cell of a terminal."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

Point = tuple[float, float]

# Bit of each dot in a braille cell, [row][column] (Unicode 13, block 2800).
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def draw(points: Sequence[Point], width: int, height: int, lo: float, hi: float) -> list[str]:
    """`height` rows of `width` braille cells with a line through `points` (x ascending), which spans the width.

    lo, hi: the values of the bottom and the top row of dots. Points that are not finite leave a gap.
    """
    columns, levels = 2 * width, 4 * height
    cells = [[0] * width for _ in range(height)]
    before: int | None = None
    for column, value in enumerate(columns_of(points, columns)):
        if value is None:
            before = None
            continue
        share = (hi - value) / (hi - lo) if hi > lo else 0.5
        level = min(max(round(share * (levels - 1)), 0), levels - 1)
        # Fill the jump from the column before, up to but without its own dot.
        start = level if before is None else before + (level > before) - (level < before)
        for dot in range(min(start, level), max(start, level) + 1):
            cells[dot // 4][column // 2] |= DOTS[dot % 4][column % 2]
        before = level
    return ["".join(chr(0x2800 + c) for c in row) for row in cells]


def columns_of(points: Sequence[Point], n: int) -> list[float | None]:
    """The line's value at each of n columns: the mean of the points that fall into it, else on the straight line
    between its neighbours. None beside a point that is not finite."""
    if not points:
        return [None] * n
    first, last = points[0][0], points[-1][0]
    scale = (n - 1) / (last - first) if last > first else 0.0
    bins: dict[int, list[float]] = {}
    for x, y in points:
        bins.setdefault(round((x - first) * scale), []).append(y)
    means = {column: sum(ys) / len(ys) for column, ys in bins.items()}
    known = sorted(means)
    values: list[float | None] = []
    for column in range(n):
        right = bisect.bisect_left(known, column)
        if right == len(known):  # a single point: nothing to its right
            values.append(None)
            continue
        b = known[right]
        a = b if b == column or right == 0 else known[right - 1]
        y = means[b] if a == b else means[a] + (means[b] - means[a]) * (column - a) / (b - a)
        values.append(y if math.isfinite(y) else None)
    return values


def place(x: float, points: Sequence[Point], width: int) -> int:
    """The cell, counted from the left, at which `draw` puts an x."""
    first, last = points[0][0], points[-1][0]
    if last <= first:
        return 0
    share = min(max((x - first) / (last - first), 0.0), 1.0)
    return round(share * (2 * width - 1)) // 2
