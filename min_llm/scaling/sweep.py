"""The IsoFLOP driver: run what is left of a grid, and read what it has measured.

A cell is finished when its metrics hold the validation of its last step; it is read then and never run again. One that
was stopped or killed goes on from its own checkpoint, as every run does, so a kill costs at most what lies behind that.
One whose loss stopped being finite is finished, too, and the others go on: its loss is measured, and it is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from min_llm.config import UserError
from min_llm.reporting import reporter
from min_llm.scaling.fits import Measured
from min_llm.scaling.grid import Cell
from min_llm.train.config import RunConfig
from min_llm.train.history import column, events, read_rows
from min_llm.train.loop import TrainingStopped


def run_sweep(cells: Sequence[Cell], train: Callable[[RunConfig], bool]) -> bool:
    """Train every cell that is not finished, in order. train: runs or resumes a configuration, False when a signal
    stopped it, which ends the sweep. Whether all cells are finished."""
    for i, cell in enumerate(cells, 1):
        if loss_of(cell) is not None:
            continue
        reporter().info(
            f"Cell {i} of {len(cells)}: {cell.budget:.3g} FLOPs, {cell.parameters:,} parameters, "
            f"{cell.run.train.steps:,} steps, {cell.folder}"
        )
        try:
            if not train(cell.run):
                return False
        except TrainingStopped as error:
            reporter().warn(f"{cell.run.name} diverged. {error}")
        if loss_of(cell) is None:
            raise UserError(
                f"{cell.folder} has trained to its end, but metrics.jsonl has no validation of the last step. Remove "
                "that folder and start the same command again."
            )
    return True


def loss_of(cell: Cell) -> float | None:
    """Validation loss after its last step, over the whole split, in nats per token; infinite where training diverged;
    None before that."""
    rows, kind = read_rows(cell.folder)[0], "final" if cell.run.train.eval_tokens else "val"
    if events(rows, "not finite"):
        return math.inf
    return dict(column(rows, kind, "loss")).get(float(cell.run.train.steps))


def results(cells: Sequence[Cell]) -> list[Measured]:
    """What the grid has measured. Raises UserError while cells are missing: a grid that was fixed is fitted whole."""
    losses = [loss_of(cell) for cell in cells]
    if missing := [cell.run.name for cell, loss in zip(cells, losses, strict=True) if loss is None]:
        raise UserError(
            f"{len(missing)} of {len(cells)} cells are not finished ({', '.join(missing[:5])}). Run "
            "`min-llm scaling run CONFIG` first."
        )
    return [
        Measured(cell.budget, cell.parameters, cell.tokens, loss)
        for cell, loss in zip(cells, losses, strict=True)
        if loss is not None
    ]
