"""The IsoFLOP driver: run what is left of a grid, and read what it has measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from min_llm.config import UserError
from min_llm.scaling.fits import Measured
from min_llm.scaling.grid import Cell
from min_llm.train.config import RunConfig
from min_llm.train.series import last_loss, run_series


def run_sweep(cells: Sequence[Cell], train: Callable[[RunConfig], bool]) -> bool:
    """Train every cell that is not finished, as `run_series` does. Whether all cells are finished."""
    return run_series([(_about(cell), cell.run) for cell in cells], train)


def _about(cell: Cell) -> str:
    return f"{cell.budget:.3g} FLOPs, {cell.parameters:,} parameters, {cell.run.train.steps:,} steps"


def loss_of(cell: Cell) -> float | None:
    """Validation loss after its last step, over the whole split, in nats per token; infinite where training diverged;
    None before that."""
    return last_loss(cell.run)


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
