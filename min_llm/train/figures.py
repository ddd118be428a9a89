"""Figures of a web page without a plotting library: curves, heat maps and bars as small pieces of HTML and SVG.

A curve's SVG stretches to any width while its lines keep their thickness and its labels, which are HTML, their size;
so one figure serves a phone and a desk. Colours are CSS variables of the page, hence dark and light. Each figure
carries its numbers in `data-chart` for the page's script, which reads them out under the pointer.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

Point = tuple[float, float]
Format = Callable[[float], str]

SPAN = 1000  # the viewBox of a curve, both ways
MOST_POINTS = 800
# Viridis (Smith and van der Walt, matplotlib), at eighths.
VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")


@dataclasses.dataclass(frozen=True)
class Series:
    """A line. colour: a CSS variable of the page without its dashes. faint: drawn behind, not in the legend;
    dots: its points are marked."""

    name: str
    points: Sequence[Point]
    colour: str = "a"
    faint: bool = False
    dots: bool = False


@dataclasses.dataclass(frozen=True)
class Mark:
    """Something that happened at a step: a vertical line (at y None) or a ringed point."""

    x: float
    text: str
    y: float | None = None
    colour: str = "muted"


def number(value: float) -> str:
    """Three significant digits, thousands as k, M, G, T: 12.3k."""
    if not math.isfinite(value):
        return str(value)
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{suffix}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3g}".split("e") if abs(value) < 1e-4 else (f"{value:.3g}", "")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:.3g}"


def quantity(value: float, unit: str) -> str:
    """12.3 GFLOP/s."""
    text = number(value)
    return f"{text[:-1]} {text[-1]}{unit}" if text[-1] in "kMGT" else f"{text} {unit}"


def percent(value: float) -> str:
    return f"{100 * value:.3g} %" if math.isfinite(value) else str(value)


def smooth(points: Sequence[Point], share: float = 0.025) -> list[Point]:
    """The mean of each point and `share` of all points on either side, fewer towards the ends so that none is
    shifted; points that are not finite are left out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    sums = [0.0, *itertools.accumulate(y for _, y in finite)]
    n = len(finite)
    reach = max(min(2, n // 10), round(share * n))
    averaged = []
    for i, (x, _) in enumerate(finite):
        r = min(reach, i, n - 1 - i)
        averaged.append((x, (sums[i + r + 1] - sums[i - r]) / (2 * r + 1)))
    return averaged


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points: of every bucket the lowest and the highest, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept = []
    for i in range(0, len(points), size):
        bucket = range(i, min(i + size, len(points)))
        finite = [j for j in bucket if math.isfinite(points[j][1])] or [i]
        ends = {min(finite, key=lambda j: points[j][1]), max(finite, key=lambda j: points[j][1])}
        kept += [points[j] for j in sorted(ends)]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def ticks(lo: float, hi: float, about: int = 5) -> list[float]:
    """Round numbers within [lo, hi]: multiples of 1, 2 or 5 times a power of ten."""
    if not hi > lo:
        return [lo]
    raw = (hi - lo) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(lo: float, hi: float) -> list[float]:
    """Powers of ten within [lo, hi], with their 2 and 5 where there are few."""
    powers = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    multiples = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [m * 10.0**p for p in powers for m in multiples if lo * 0.999 <= m * 10.0**p <= hi * 1.001]


class Axis:
    """Values to places in 0 … SPAN."""

    def __init__(self, lo: float, hi: float, log: bool = False) -> None:
        self.lo, self.hi, self.log = lo, hi, log

    def at(self, value: float) -> float:
        f = math.log10 if self.log else float
        lo, hi = f(self.lo), f(self.hi)
        return SPAN * (f(max(value, self.lo) if self.log else value) - lo) / (hi - lo)

    def ticks(self, about: int) -> list[float]:
        return log_ticks(self.lo, self.hi) if self.log else ticks(self.lo, self.hi, about)


def curve(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    fmt: Format = number,
    marks: Sequence[Mark] = (),
    log: bool = False,
    zero: bool = False,
    tall: bool = False,
    over: str = "step",
) -> str:
    """A figure of lines over steps, or what else `over` names. log: logarithmic values; zero: the scale starts at 0.
    Points that are not finite are gaps. An empty string when nothing can be drawn."""
    finite = [(x, y) for s in series for x, y in s.points if math.isfinite(y) and (y > 0 or not log)]
    if not finite:
        return ""
    xs, ys = [x for x, _ in finite] + [m.x for m in marks], [y for _, y in finite]
    x_axis = Axis(min(xs), max(max(xs), min(xs) + 1))
    y_axis = _value_axis(min(ys), max(ys), log, zero)
    lines = "".join(_line(s, x_axis, y_axis) for s in sorted(series, key=lambda s: not s.faint))
    x_ticks, y_ticks = x_axis.ticks(5), y_axis.ticks(5 if tall else 4)
    grid = "".join(f"M0 {SPAN - y_axis.at(t):.1f}H{SPAN}" for t in y_ticks)
    x_labels = "".join(
        f'<span style="left:{x_axis.at(t) / SPAN:.2%}">{escape(number(t))}</span>' for t in x_ticks
    )
    y_labels = "".join(
        f'<span style="bottom:{y_axis.at(t) / SPAN:.2%}">{escape(fmt(t))}</span>' for t in y_ticks
    )
    shown = [s for s in series if not s.faint]
    legend = "".join(
        f'<span class="key"><i style="background:var(--{s.colour})"></i>{escape(s.name)}</span>'
        for s in shown
    )
    data = {
        "x": [x_axis.lo, x_axis.hi],
        "over": over,
        "series": [
            {"name": s.name, "colour": s.colour, "points": [[x, fmt(y)] for x, y in thin(s.points)]}
            for s in series
            if s.faint or not any(o.faint and o.name == s.name for o in series)
        ],
        "marks": [[m.x, m.text] for m in marks],
    }
    return (
        f'<figure class="chart{" tall" if tall else ""}" data-chart="{escape(json.dumps(data))}">'
        f"<figcaption><span><b>{escape(title)}</b> <small>{escape(unit)}</small></span>"
        f"{legend if len(shown) > 1 else ''}</figcaption>"
        f'<div class="plot"><div class="y">{y_labels}</div><div class="area">'
        f'<svg viewBox="0 0 {SPAN} {SPAN}" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f'<path class="grid" d="{grid}"/>{_vertical(marks, x_axis)}{lines}{_rings(marks, x_axis, y_axis)}</svg>'
        f'</div></div><div class="x">{x_labels}</div></figure>'
    )


def _value_axis(lo: float, hi: float, log: bool, zero: bool) -> Axis:
    if log:
        return Axis(lo / 1.1, hi * 1.1, True)
    if zero:
        lo = min(lo, 0.0)
    margin = 0.05 * (hi - lo) or 0.05 * abs(hi) or 1.0
    return Axis(lo if zero and lo == 0 else lo - margin, hi + margin)


def _line(s: Series, x_axis: Axis, y_axis: Axis) -> str:
    path, pen, dots = [], "M", []
    for x, y in thin(s.points):
        if not math.isfinite(y) or (y_axis.log and y <= 0):
            pen = "M"
            continue
        place = f"{x_axis.at(x):.1f} {SPAN - y_axis.at(y):.1f}"
        path.append(pen + place)
        dots.append(f"M{place}h0")
        pen = "L"
    stroke = f'style="stroke:var(--{s.colour})"'
    only = len(path) == 1  # a single point would be an invisible line
    marked = f'<path class="dot" {stroke} d="{"".join(dots)}"/>' if s.dots or only else ""
    return f'<path class="{"faint" if s.faint else "line"}" {stroke} d="{"".join(path)}"/>{marked}'


def _vertical(marks: Sequence[Mark], x_axis: Axis) -> str:
    return "".join(
        f'<path class="event" style="stroke:var(--{m.colour})" d="M{x_axis.at(m.x):.1f} 0V{SPAN}"/>'
        for m in marks
        if m.y is None
    )


def _rings(marks: Sequence[Mark], x_axis: Axis, y_axis: Axis) -> str:
    """A point of each mark with a value, at the frame where its value lies outside."""
    rings = ""
    for m in marks:
        if m.y is not None:
            x, y = (min(max(v, 0), SPAN) for v in (x_axis.at(m.x), SPAN - y_axis.at(m.y)))
            rings += f'<path class="ring" style="stroke:var(--{m.colour})" d="M{x:.1f} {y:.1f}h0"/>'
    return rings


def heat_map(title: str, table: np.ndarray, steps: Sequence[int], columns: int = 240) -> str:
    """Layers (downwards, layer 0 first) by steps. A table of positive numbers that span more than a decade is coloured
    by their logarithm; cells that are not finite stay empty."""
    chosen = np.unique(np.linspace(0, table.shape[1] - 1, min(columns, table.shape[1])).round().astype(int))
    values, log = colour_scale(table[:, chosen])
    if not np.isfinite(values).any():
        return ""
    lo, hi = float(np.nanmin(table[np.isfinite(table)])), float(np.nanmax(table[np.isfinite(table)]))
    picture = base64.b64encode(png(colours(values))).decode()
    layers, last = table.shape[0], f"{int(steps[-1]):,}"
    rows = f"<span>0</span><span>{layers - 1}</span>" if layers > 1 else "<span></span>"
    height = min(max(layers * 14, 28), 240)
    return (
        f'<figure class="heat"><figcaption><b>{escape(title)}</b><small>{escape(number(lo))} '
        f'<i class="scale"></i> {escape(number(hi))}{" (log)" if log else ""}</small></figcaption>'
        f'<div class="plot" style="height:{height}px"><div class="y">{rows}</div><div class="area">'
        f'<svg viewBox="0 0 {len(chosen)} {layers}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}, layers by steps"><image width="{len(chosen)}" height="{layers}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{picture}"/></svg></div></div>'
        f'<div class="x ends"><span>{int(steps[0]):,}</span><span>{last}</span></div></figure>'
    )


def colour_scale(table: np.ndarray) -> tuple[np.ndarray, bool]:
    """The table as it is coloured, and whether that is its log10."""
    finite = table[np.isfinite(table)]
    if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(table > 0, np.log10(table), np.nan), True
    return np.where(np.isfinite(table), table, np.nan), False


def colours(values: np.ndarray) -> np.ndarray:
    """[rows, columns] numbers as [rows, columns, 4] bytes, red green blue alpha, from the lowest to the highest."""
    known = np.isfinite(values)
    lo, hi = np.nanmin(values), np.nanmax(values)
    share = np.where(known, (values - lo) / (hi - lo) if hi > lo else 0.5, 0.0)
    stops = np.array([list(bytes.fromhex(c)) for c in VIRIDIS], dtype=np.float64)
    places = np.linspace(0, 1, len(stops))
    rgb = np.stack([np.interp(share, places, stops[:, k]) for k in range(3)], axis=-1)
    return np.concatenate([rgb, np.where(known, 255, 0)[..., None]], axis=-1).round().astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """[height, width, 4] bytes as a PNG file (ISO 15948: 8 bits, RGBA, no filter)."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )


def bars(rows: Sequence[tuple[str, float, bool]], unit: str) -> str:
    """Horizontal bars from 0, the shortest first: (name, value, whether it is ours)."""
    longest = max(value for _, value, _ in rows)
    cells = "".join(
        f'<div class="row{" ours" if ours else ""}"><span>{escape(name)}</span><div class="bar">'
        f'<i style="width:{value / longest:.1%}"></i></div><b>{value:.3f}</b></div>'
        for name, value, ours in sorted(rows, key=lambda row: row[1])
    )
    return f'<div class="bars" role="img" aria-label="{escape(unit)}">{cells}</div>'
