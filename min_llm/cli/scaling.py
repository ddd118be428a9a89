"""`min-llm scaling plan|run|fit`: which model a budget should train, from a grid of small runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from min_llm.cli.models import Json, print_json, quantity, say, show

if TYPE_CHECKING:
    from min_llm.scaling.fits import HeldOut, IsoFlop, Parabola
    from min_llm.scaling.grid import ScalingConfig

app = typer.Typer(help="IsoFLOP sweeps: plan, run, fit.", no_args_is_help=True)

Settings = Annotated[list[str], typer.Argument(metavar="CONFIG.yaml [key=value ...]", show_default=False)]


@app.command()
def plan(settings: Settings) -> None:
    """Fix the grid of CONFIG in OUT/NAME/plan.json and show it. Later commands keep to that file.

    CONFIG: budgets (FLOPs), sizes (a list of 'model' settings), run (settings of `min-llm train` for all), and what
    differs by size or budget: lrs, batch_sizes; also warmup (a share), flops (6ND, full, causal, lingua), name, out.
    """
    from min_llm.scaling.grid import settle
    from min_llm.scaling.sweep import loss_of

    cfg = load(settings)
    cells = settle(cfg)
    show(("cell", "parameters", "steps", "batch", "tokens", "tokens a parameter", "FLOPs", "peak rate", "loss"), [
        (c.run.name, f"{c.parameters:,}", f"{c.run.train.steps:,}", f"{c.run.train.batch_size} x {c.run.train.seq_len}",
         f"{c.tokens:,}", f"{c.tokens / c.parameters:.3g}", f"{c.flops:.3g}", f"{c.run.optim.lr:g}",
         "" if (loss := loss_of(c)) is None else f"{loss:.4f}") for c in cells
    ], right=(1, 2, 3, 4, 5, 6, 7, 8))  # fmt: skip
    say(
        f"{len(cells)} cells, {quantity(sum(c.flops for c in cells))}FLOPs in all: {cfg.folder / 'plan.json'}"
    )


@app.command()
def run(settings: Settings) -> None:
    """Train every cell that is not finished. SIGTERM and Ctrl-C save a checkpoint first (exit status 143)."""
    from min_llm import platform
    from min_llm.cli import train
    from min_llm.parallel import processes
    from min_llm.reporting import reporter
    from min_llm.scaling.grid import settle
    from min_llm.scaling.sweep import run_sweep

    cfg = load(settings)
    platform.run_in_turn()
    with processes.joined():
        platform.use_compilation_cache()
        if not run_sweep(settle(cfg), lambda cell: train.run(cell)[0]):
            sys.exit(143)
    reporter().info(f"Done. Fit: min-llm scaling fit {' '.join(settings)}")


@app.command()
def fit(
    settings: Settings,
    budget: Annotated[float, typer.Option(help="FLOPs to predict for; 0: ten times the largest")] = 0.0,
    as_json: Json = False,
) -> None:
    """The curves, the law and its intervals; OUT/NAME/isoflop.png shows them."""
    from min_llm.config import UserError
    from min_llm.scaling import fits
    from min_llm.scaling.figure import draw
    from min_llm.scaling.grid import settle
    from min_llm.scaling.sweep import results

    if budget < 0:
        raise UserError(f"--budget is {budget:g}; training FLOPs are above 0.")
    cfg = load(settings)
    runs = results(settle(cfg))
    curves = fits.fit_isoflop(runs)
    if not as_json:
        show_curves(curves)
    path = cfg.folder / "isoflop.png"
    try:
        found = fits.fit(runs)
    except UserError:  # the curves show why
        draw(runs, curves, None, cfg.name).savefig(path, dpi=130)
        raise
    draw(runs, curves, found, cfg.name).savefig(path, dpi=130)
    held = fits.hold_out_largest(runs) if len(curves) > 2 else None
    prediction = found.predict(budget or 10 * curves[-1].budget)
    if as_json:
        return print_json(facts(found, held, prediction, path))
    low, high = found.exponent_interval
    say(f"D*(C) = A C^a: a = {found.law.exponent:.4f} [{low:.4f}, {high:.4f}], A = {found.law.coefficient:.4g}, "
        f"R² = {'unknown of two budgets' if found.law.r2 is None else format(found.law.r2, '.4f')}")  # fmt: skip
    low, high = found.flattening_interval
    say(f"Curvature ~ C^{found.flattening.exponent:.3f} [{low:.3f}, {high:.3f}]")
    if held:
        say(f"Held out {held.predicted.budget:.3g}: predicted {words(held.predicted)}, found {held.found:.3g} "
            f"({held.off:+.1%}, {'inside' if held.inside else 'outside'} the interval)")  # fmt: skip
    say(
        f"{prediction.budget:.3g} FLOPs: {words(prediction)} for {prediction.parameters:.3g} parameters. {path}"
    )


def load(settings: list[str]) -> ScalingConfig:
    from min_llm import config as config_lib
    from min_llm.config import UserError
    from min_llm.scaling.grid import ScalingConfig

    paths = [s for s in settings if "=" not in s]
    if len(paths) != 1:
        raise UserError(f"Give one configuration file; given: {', '.join(paths) or 'none'}.")
    return config_lib.load(ScalingConfig, paths[0], [s for s in settings if "=" in s])


def show_curves(curves: tuple[Parabola, ...]) -> None:
    show(("FLOPs", "optimal tokens", "measured", "loss", "curvature", "minimum"), [
        (f"{c.budget:.3g}", f"{c.optimum:.3g}", f"{c.tokens[0]:.3g} to {c.tokens[1]:.3g}", f"{c.loss:.4f}",
         f"{c.curvature:.4f}", "interior" if c.interior else "NOT interior") for c in curves
    ], right=(0, 1, 2, 3, 4))  # fmt: skip
    for c in curves:
        if c.diverged:
            say(f"{c.budget:.3g} FLOPs: {c.diverged} runs diverged; the curve leaves them out.")


def words(prediction: Any) -> str:
    low, high = prediction.interval
    return f"{prediction.tokens:.3g} tokens [{low:.3g}, {high:.3g}]"


def facts(found: IsoFlop, held: HeldOut | None, prediction: Any, path: Path) -> dict[str, Any]:
    import dataclasses

    def plain(p: Any) -> dict[str, Any]:
        return dataclasses.asdict(p) | {"parameters": p.parameters}

    return {
        "curves": [dataclasses.asdict(c) | {"interior": c.interior} for c in found.curves],
        "law": dataclasses.asdict(found.law) | {"exponent_interval": found.exponent_interval},
        "curvature": dataclasses.asdict(found.flattening) | {"exponent_interval": found.flattening_interval},
        "held_out": held and {
            "predicted": plain(held.predicted), "found": held.found, "off": held.off, "inside": held.inside
        },
        "prediction": plain(prediction),
        "figure": str(path),
    }  # fmt: skip
