"""What a run will do over its tokens (`min-llm plan --schedule`): a sketch in the terminal and a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from min_llm.cli.models import quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from min_llm.train.config import RunConfig

WIDTH, HEIGHT = 60, 4  # of a sketch, in cells
PANELS = {
    "lr": "learning rate",
    "weight_decay": "weight decay of a step",
    "batch_tokens": "tokens of a batch",
    "seq_len": "tokens of a row",
}


def sketch(columns: dict[str, np.ndarray]) -> list[str]:
    """The four curves over tokens, drawn in braille, each from 0 to its largest value."""
    from min_llm.reporting.chart import draw

    tokens, lines = columns["tokens"], []
    for name, title in PANELS.items():
        top = float(columns[name].max())
        points = list(zip(map(float, tokens), map(float, columns[name]), strict=True))
        lines += ["", f"{title}, at most {amount(name, top)}"]
        lines += [f"  {row}" for row in draw(points, WIDTH, HEIGHT, 0.0, top)]
    return [*lines, "  0" + of_tokens(float(tokens[-1] + columns["batch_tokens"][-1])).rjust(WIDTH - 1)]


def of_tokens(count: float) -> str:
    """15.6e12 -> "15.6 T tokens"."""
    return f"{quantity(count).strip()} tokens"


def amount(name: str, value: float) -> str:
    return f"{value:,.0f}" if name in ("batch_tokens", "seq_len") else f"{value:.3g}"


def draw_figure(columns: dict[str, np.ndarray], run: RunConfig) -> Figure:
    """The same as a figure with a panel each; batches and rows change at once, so their lines are steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 7), layout="constrained")
    figure.suptitle(f"{run.name}: {run.optim.schedule} over {run.train.steps:,} steps")
    for axis, (name, title) in zip(figure.subplots(len(PANELS), 1, sharex=True), PANELS.items(), strict=True):
        style = "steps-post" if name in ("batch_tokens", "seq_len") else "default"
        axis.plot(columns["tokens"], columns[name], drawstyle=style)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.set_xlabel("tokens seen")
    return figure
