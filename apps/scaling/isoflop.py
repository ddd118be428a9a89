"""The IsoFLOP grid of configs/isoflop.yaml (L3-2.7, 2.8, 2.10): train what is left, fit, keep rows and the figure.

python -m apps.scaling.isoflop
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from apps import results
from bench.results import ROOT, Row, row
from min_llm import config as config_lib
from min_llm.scaling import fits
from min_llm.scaling.figure import draw
from min_llm.scaling.grid import Cell, ScalingConfig, settle
from min_llm.scaling.sweep import results as measured_cells
from min_llm.train import history

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "configs" / "isoflop.yaml"


def load(out: Path) -> ScalingConfig:
    return config_lib.load(ScalingConfig, CONFIG, [f"out={out}"])


def rows_of(cells: Sequence[Cell]) -> list[Row]:
    """A row a cell, a budget's curve, the law, its held-out budget and the change of curvature."""
    runs = measured_cells(cells)
    dtype = history.starts(cells[0].folder)[-1]["runtime"]["dtype"]
    seed = cells[0].run.seed
    rows = [
        row(
            cell.run.name, "val_loss", "nats/char", dtype, run.loss, seed=seed, budget=run.budget,
            parameters=run.parameters, tokens=run.tokens, lr=cell.run.optim.lr,
            train_seconds=history.training_seconds(history.read_rows(cell.folder)[0]),
        )
        for cell, run in zip(cells, runs, strict=True)
    ]  # fmt: skip
    for curve in fits.fit_isoflop(runs):
        rows.append(row(
            f"{curve.budget:.3g} FLOPs", "optimal_tokens", "tokens", dtype, curve.optimum, loss=curve.loss,
            curvature=curve.curvature, measured=list(curve.tokens), interior="yes" if curve.interior else "no",
            diverged=curve.diverged,
        ))  # fmt: skip
    return rows + law_rows(runs, dtype)


def law_rows(runs: Sequence[fits.Measured], dtype: str) -> list[Row]:
    """Of all budgets together."""
    found, held = fits.fit(runs), fits.hold_out_largest(runs)
    return [
        row("D*(C) = A C^a", "exponent", "", dtype, found.law.exponent, spread=found.exponent_interval,
            coefficient=found.law.coefficient, r2=found.law.r2),
        row("curvature ~ C^b", "exponent", "", dtype, found.flattening.exponent, spread=found.flattening_interval),
        row(f"{held.predicted.budget:.3g} FLOPs", "held_out_tokens", "tokens", dtype, held.found,
            predicted=held.predicted.tokens, interval=list(held.predicted.interval), off=held.off,
            inside="yes" if held.inside else "no"),
    ]  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """An SVG that the same results always make anew, byte for byte."""
    with matplotlib.rc_context({"svg.hashsalt": "min_llm", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the sweep")
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    options = parser.parse_args()
    out = options.out.absolute()
    subprocess.run([*results.MIN_LLM, "scaling", "run", str(CONFIG), f"out={out}"], check=True, cwd=ROOT)
    cells = settle(load(out))
    print(f"wrote {results.write('scaling', rows_of(cells), options.into)}")
    runs = measured_cells(cells)
    save(
        draw(runs, fits.fit_isoflop(runs), fits.fit(runs), "State of the Union addresses"),
        HERE / "isoflop.svg",
    )


if __name__ == "__main__":
    main()
