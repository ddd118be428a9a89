"""The ablation as bars: each variant's difference from the base, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from bench.results import Row

COLOURS = {"better": "#2a7f62", "worse": "#b5533c", "within seeds": "#9a9a9a"}


def draw(rows: Sequence[Row]) -> Figure:
    """A bar for each row but the base's, best at the top; a line from the lowest to the highest seed. rows: as
    `run.compared` makes them."""
    shown = sorted((r for r in rows if r["verdict"] in COLOURS), key=lambda r: r["difference"], reverse=True)
    middle = [r["difference"] for r in shown]
    low, high = zip(*(r["seed_differences"] for r in shown), strict=True)
    figure = Figure(figsize=(7, 0.35 * len(shown) + 1), layout="constrained")
    axis = figure.subplots()
    axis.barh(
        [r["case"] for r in shown],
        middle,
        color=[COLOURS[r["verdict"]] for r in shown],
        xerr=[
            [m - x for m, x in zip(middle, low, strict=True)],
            [x - m for m, x in zip(middle, high, strict=True)],
        ],
        error_kw={"linewidth": 1},
    )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlabel="validation loss minus the base's, nats a token (grey: within the seeds' spread)")
    axis.spines[["top", "right", "left"]].set_visible(False)
    return figure
