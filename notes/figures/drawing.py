"""What the scripts of the chapters' figures share: colours, numbers in words, tables in a chapter, SVG files.

A figure is drawn from plain data, and the SVG carries that data, so that a test sees when it is stale (`stored`).
The same data give the same bytes.
"""

from __future__ import annotations

import html
import json
import pathlib
import re

FOLDER = pathlib.Path(__file__).parent
INK, MUTED, GRID, IDLE = "#222222", "#777777", "#dddddd", "#eeeeee"
BLUE, ORANGE, GREEN, RED = "#2f6db3", "#d97706", "#3f9a5f", "#b3432f"
PALE_BLUE, PALE_ORANGE, PALE_GREEN, PALE_RED = "#9cc3ea", "#f6c98f", "#a5d6b4", "#e5a79b"
STYLE = {
    "svg.hashsalt": "min_llm",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # one name: the SVG repeats the list in each of its many texts
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def new_figure(width, height, rows=1, columns=1, **kwargs):
    """matplotlib's figure and axes, in the style of all figures."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **kwargs)


def boxes(ax, corners, face, edge="white", linewidth=0.6, zorder=2):
    """Boxes (left, top, right, bottom) of one look as one path, which keeps the file small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    paths = [Path([(a, t), (b, t), (b, u), (a, u), (a, t)], closed=True) for a, t, b, u in corners]
    if paths:
        path = Path.make_compound_path(*paths)
        ax.add_patch(PathPatch(path, facecolor=face, edgecolor=edge, linewidth=linewidth, zorder=zorder))


def save(figure, path, data):
    """An SVG without date and version, ids from a fixed salt, with the data that it shows."""
    import matplotlib.pyplot as plt

    description = json.dumps(data, separators=(",", ":"))
    metadata = {"Date": None, "Creator": None, "Description": description}
    figure.savefig(path, metadata=metadata, facecolor="white")
    plt.close(figure)


def stored(path):
    """The data that an SVG of `save` carries."""
    text = re.search(r"<dc:description>(.*?)</dc:description>", path.read_text(), flags=re.DOTALL)[1]
    return json.loads(html.unescape(text))


def write_tables(chapter, tables):
    """Each table (name -> function that returns Markdown) between its markers in a chapter."""
    text = chapter.read_text()
    for name, table in tables.items():
        block = f"<!-- table {name} -->\n{table()}\n<!-- end -->"
        text, n = re.subn(
            f"<!-- table {name} -->.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL
        )
        if n != 1:
            raise ValueError(f"{chapter} has {n} blocks '<!-- table {name} -->'; it needs one")
    chapter.write_text(text)


def size(n_bytes):
    """12 -> "12 B", 8 * 2**30 -> "8 GiB": three digits and a unit."""
    value, unit = float(n_bytes), 0
    while value >= 1024 and unit < 4:
        value, unit = value / 1024, unit + 1
    digits = f"{value:,.0f}" if value >= 99.95 or value == int(value) else f"{value:.3g}"
    return f"{digits} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def share(x):
    """0.1875 -> "18.75 %"."""
    return f"{100 * x:.4g} %"
