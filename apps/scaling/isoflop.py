"""The IsoFLOP grid of configs/isoflop.yaml (L3-2.7, 2.8, 2.10): train what is left, fit, keep rows and the figure.

    python -m apps.scaling.isoflop

The grid was fixed before its runs. Its largest size turned out to be the best of the largest budget, so a larger one
was trained afterwards (LARGER): the law is published of the grid alone, with that size, and of the five largest sizes.
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
from min_llm.config import UserError
from min_llm.scaling import fits
from min_llm.scaling.figure import draw
from min_llm.scaling.grid import Cell, ScalingConfig, settle
from min_llm.scaling.sweep import results as measured
from min_llm.train import history

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "configs" / "isoflop.yaml"
LARGER = ("name=isoflop-larger", "sizes=[{dim: 64, n_heads: 4, n_kv_heads: 4}]", "lrs=[2.0e-3]")


def load(out: Path, changes: Sequence[str] = ()) -> ScalingConfig:
    return config_lib.load(ScalingConfig, CONFIG, [f"out={out}", *changes])


def name_of(cell: Cell) -> str:
    return f"dim {cell.run.model.dim}, {cell.budget:.3g} FLOPs"


def cell_row(cell: Cell, run: fits.Measured) -> Row:
    return row(
        name_of(cell), "val_loss", "nats/char", cell.run.runtime.dtype, run.loss,
        seed=cell.run.seed, budget=run.budget, parameters=run.parameters, tokens=run.tokens, lr=cell.run.optim.lr,
        train_seconds=history.training_seconds(history.read_rows(cell.folder)[0]),
    )  # fmt: skip


def sets(runs: Sequence[fits.Measured]) -> dict[str, list[fits.Measured]]:
    """Which cells a law is fitted to, by its name in the tables."""
    sizes = sorted({run.parameters for run in runs})
    return {
        "the grid": [run for run in runs if run.parameters != sizes[-1]],
        "and dim 64": list(runs),
        "dims 16 to 64": [run for run in runs if run.parameters != sizes[0]],
    }


def fit_rows(name: str, runs: Sequence[fits.Measured], dtype: str) -> list[Row]:
    """Of one set of cells: each budget's curve and the law, the held-out budget and the change of curvature; the law
    alone where noise leaves it without an interval."""
    rows, curves = [], fits.fit_isoflop(runs)
    for curve in curves:
        lowest = min((run for run in runs if run.budget == curve.budget), key=lambda run: run.loss)
        rows.append(row(
            f"{name}, {curve.budget:.3g} FLOPs", "optimal_tokens", "tokens", dtype, curve.optimum, loss=curve.loss,
            curvature=curve.curvature, measured=list(curve.tokens), interior="yes" if curve.interior else "no",
            lowest_run=round(lowest.tokens), diverged=curve.diverged,
        ))  # fmt: skip
    try:
        found, held = fits.fit(runs), fits.hold_out_largest(runs)
    except UserError as error:
        print(f"{name}: {error}")
        law = fits.fit_law(curves)
        rows.append(
            row(
                f"{name}, tokens", "exponent", "", dtype, law.exponent, coefficient=law.coefficient, r2=law.r2
            )
        )
        return rows
    return [
        *rows,
        row(f"{name}, tokens", "exponent", "", dtype, found.law.exponent, spread=found.exponent_interval,
            coefficient=found.law.coefficient, r2=found.law.r2),
        row(f"{name}, curvature", "exponent", "", dtype, found.flattening.exponent, spread=found.flattening_interval,
            r2=found.flattening.r2),
        row(f"{name}, {held.predicted.budget:.3g} FLOPs", "held_out_tokens", "tokens", dtype, held.found,
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
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the sweeps")
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    options = parser.parse_args()
    out, cells = options.out.absolute(), []
    for changes in ((), LARGER):
        command = [*results.MIN_LLM, "scaling", "run", str(CONFIG), f"out={out}", *changes]
        subprocess.run(command, check=True, cwd=ROOT)
        cells += settle(load(out, changes))
    runs = measured(cells)
    rows = [cell_row(cell, run) for cell, run in zip(cells, runs, strict=True)]
    for name, some in sets(runs).items():
        rows += fit_rows(name, some, cells[0].run.runtime.dtype)
    seconds = sum(found["train_seconds"] for found in rows if found["metric"] == "val_loss")
    rows.append(row("all cells", "train_seconds", "s", cells[0].run.runtime.dtype, seconds))
    print(f"wrote {results.write('scaling', rows, options.into)}")
    grid = sets(runs)["the grid"]
    figure = draw(grid, fits.fit_isoflop(grid), fits.fit(grid), "State of the Union addresses, characters")
    save(figure, HERE / "isoflop.svg")


if __name__ == "__main__":
    main()
