"""The figures of the paper's section 3.2.1: IsoFLOP curves with their minima and the optimum by budget (its figures 2
and 3), and the two stages from FLOPs to accuracy (its figure 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from min_llm.scaling.downstream import HeldOut, Scored, TwoStage
from min_llm.scaling.fits import IsoFlop, Measured, Parabola


def draw(runs: Sequence[Measured], curves: Sequence[Parabola], found: IsoFlop | None, title: str) -> Figure:
    """found: None draws the curves alone, where no law could be fitted."""
    figure = Figure(figsize=(11 if found else 6, 4.5), layout="constrained")
    figure.suptitle(title)
    left, *right = figure.subplots(1, 2 if found else 1, squeeze=False)[0]
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
    for curve, colour in zip(curves, colours, strict=True):
        mine = [run for run in runs if run.budget == curve.budget]
        left.plot([r.tokens for r in mine], [r.loss for r in mine], "o", color=colour, markersize=4)
        along = np.geomspace(*curve.tokens, 100)
        left.plot(along, curve(along), color=colour, label=f"{curve.budget:.3g}")
        if curve.interior:
            left.plot(curve.optimum, curve.loss, "x", color="black")
    left.set(xscale="log", xlabel="training tokens", ylabel="validation loss, nats per token")
    _ticks(left.xaxis)
    left.legend(title="FLOPs", fontsize=8)
    if found:
        _law(right[0], found)
    return figure


def _law(axis: Axes, found: IsoFlop) -> None:
    budgets = np.array([c.budget for c in found.curves])
    along = np.geomspace(budgets.min(), 10 * budgets.max(), 50)
    predicted = [found.predict(float(b)) for b in along]
    low, high = np.array([p.interval for p in predicted]).T
    axis.fill_between(along, low, high, alpha=0.2, label="95 % interval")
    name = f"{found.law.coefficient:.3g} C^{found.law.exponent:.3f}"
    axis.plot(along, [p.tokens for p in predicted], label=name)
    axis.plot(budgets, [c.optimum for c in found.curves], "x", color="black", label="minima")
    axis.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="optimal training tokens")
    _ticks(axis.xaxis)
    _ticks(axis.yaxis)
    axis.legend(fontsize=8)


def draw_two_stage(
    models: Sequence[Scored], others: Sequence[Scored], fitted: TwoStage, held: HeldOut, title: str
) -> Figure:
    """models: of the first stage, the largest of them held out; others: of the second stage alone; fitted: to all but
    the held-out one."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    *smaller, largest = sorted(models, key=lambda m: m.flops)
    left.plot([m.flops for m in smaller], [m.nll for m in smaller], "o", label="fitted")
    left.plot(largest.flops, largest.nll, "D", color="#b0203a", label="held out")
    along = np.geomspace(smaller[0].flops, largest.flops, 50)
    left.plot(along, [fitted.line(float(c)) for c in along], color="black", linewidth=1)
    left.set(xscale="log", xlabel="training FLOPs", ylabel="right answer, nats per character")
    _ticks(left.xaxis)
    for some, style, label in ((smaller, "o", "fitted"), (others, ".", "fitted, other sizes")):
        right.plot([m.nll for m in some], [m.accuracy.value for m in some], style, label=label)
    low, high = held.measured.interval
    right.errorbar(
        largest.nll, held.measured.value, [[held.measured.value - low], [high - held.measured.value]], fmt="D",
        color="#b0203a", label="held out, 95 %",
    )  # fmt: skip
    right.plot(fitted.line(largest.flops), held.predicted, "x", color="black", label="predicted")
    nlls = [m.nll for m in (*models, *others)]
    along = np.linspace(min(nlls), max(nlls), 100)
    right.plot(along, [fitted.sigmoid(float(x)) for x in along], color="black", linewidth=1)
    right.axhline(fitted.sigmoid.chance, color="grey", linestyle=":", label="guessing")
    right.set(xlabel="right answer, nats per character", ylabel="accuracy")
    for axis in (left, right):
        axis.legend(fontsize=8)
    return figure


def _ticks(axis: Axis) -> None:
    """1, 2 and 5 of each power of ten: matplotlib's own labels of less than a decade lie on top of each other."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_locator(NullLocator())
