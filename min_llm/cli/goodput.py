"""`min-llm goodput`: how often to save, and what failures cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from min_llm.plan.goodput import Failing


def goodput(
    mtbf: Annotated[float, typer.Option(help="seconds between failures of the whole run")],
    save: Annotated[float, typer.Option(help="seconds that training stands still for a save")],
    restart: Annotated[float, typer.Option(help="seconds from a failure to the next step")] = 0.0,
    picture: Annotated[Path | None, typer.Option(help="a file to draw goodput by interval into")] = None,
) -> None:
    """Say how much of the time goes into steps that are kept, by the interval between checkpoints."""
    from min_llm.cli.models import say, show
    from min_llm.plan.goodput import Failing, simulate
    from min_llm.reporting import clock

    run = Failing(mtbf, save, restart)
    intervals = [run.best * factor for factor in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)]
    show(("save every", "goodput", "simulated"), [
        (clock(t), f"{run.goodput(t):.2%}", f"{simulate(run, t, 20_000, seed=0):.2%}") for t in intervals
    ], right=(0, 1, 2))  # fmt: skip
    say(f"Best: every {clock(run.best)} (Young's approximation: {clock(run.young)}).")
    if picture is not None:
        draw(run, picture)
        say(f"{picture}")


def draw(run: Failing, path: Path) -> None:
    """Goodput by interval, with the best and Young's."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    along = np.geomspace(run.best / 30, run.best * 30, 300)
    axis.plot(along, [run.goodput(float(t)) for t in along])
    axis.axvline(run.best, color="black", linewidth=1, label="best")
    axis.axvline(run.young, color="black", linewidth=1, linestyle=":", label="Young")
    axis.set(xscale="log", xlabel="seconds of training between saves", ylabel="goodput", ylim=(0, 1))
    axis.legend(frameon=False)
    figure.savefig(path)
