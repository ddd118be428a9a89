"""The picture of a needle-in-a-haystack grid: recall by length and depth, a cell each."""

from __future__ import annotations

from matplotlib.figure import Figure

from min_llm.evals.needles import Grid


def draw(grid: Grid, title: str) -> Figure:
    """Lengths to the right, depths downwards as one reads; each cell says its percentage."""
    size = (2.2 + 0.8 * len(grid.lengths), 1.8 + 0.45 * len(grid.depths))
    figure = Figure(figsize=(max(size[0], 4.5), size[1]), layout="constrained")
    axis = figure.subplots()
    values = [[row[j].value for row in grid.recall] for j in range(len(grid.depths))]
    image = axis.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    for j, row in enumerate(values):
        for i, value in enumerate(row):
            colour = "black" if 0.15 < value < 0.85 else "white"  # the ends of the scale are dark
            axis.text(i, j, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(grid.lengths)), [f"{length:,}" for length in grid.lengths])
    axis.set_yticks(range(len(grid.depths)), [f"{100 * depth:.0f}" for depth in grid.depths])
    axis.set(xlabel="tokens of the text", ylabel="depth of the needle, %")
    axis.set_title(title, fontsize=10)
    figure.colorbar(image, label="share of answers that are right")
    return figure
