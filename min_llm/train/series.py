"""Several runs, one after the other: what is finished is read, what is not is run.

A run is finished when its metrics hold the validation of its last step, and its checkpoint is of that step. One that
was stopped or killed goes on from its own checkpoint, as every run does, so a kill costs at most what lies behind that.
One whose loss stopped being finite is finished, too, and the others go on: its loss is measured, and it is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from min_llm.config import UserError
from min_llm.reporting import reporter
from min_llm.train.checkpoints import Checkpoints
from min_llm.train.config import RunConfig
from min_llm.train.history import column, events, read_rows
from min_llm.train.loop import TrainingStopped
from min_llm.train.run import check_same


def run_series(runs: Sequence[tuple[str, RunConfig]], train: Callable[[RunConfig], bool]) -> bool:
    """Train every run that is not finished, in order. runs: what each is, for people, and its configuration. train:
    runs or resumes a configuration, False when a signal stopped it, which ends the series. Whether all are finished."""
    for i, (about, cfg) in enumerate(runs, 1):
        if finished(cfg):
            continue
        folder = Path(cfg.out) / cfg.name
        reporter().info(f"Run {i} of {len(runs)}: {about}, {folder}")
        try:
            if not train(cfg):
                return False
        except TrainingStopped as error:
            reporter().warn(f"{cfg.name} diverged. {error}")
        if last_loss(cfg) is None:
            raise UserError(
                f"{folder} has trained to its end, but metrics.jsonl has no validation of the last step. Remove "
                "that folder and start the same command again."
            )
    return True


def finished(cfg: RunConfig) -> bool:
    """Whether nothing of a run is left to do. A kill between its last row and its last checkpoint leaves some; whoever
    removed the folder of its checkpoints, to make room, has a finished run still."""
    loss, checkpoints = last_loss(cfg), Checkpoints(Path(cfg.out) / cfg.name / "checkpoints")
    if loss is None or math.isinf(loss) or not checkpoints.folder.is_dir():
        return loss is not None
    return checkpoints.latest() == cfg.train.steps


def last_loss(cfg: RunConfig, name: str = "loss") -> float | None:
    """Validation loss after a run's last step, over the whole split, in nats per token: infinite where training
    diverged, None before its end. name: another number of that row, as loss/NAME. Raises UserError where the folder
    holds a run with other settings."""
    folder = Path(cfg.out) / cfg.name
    check_same(folder, cfg)
    rows, kind = read_rows(folder)[0], "final" if cfg.train.eval_tokens else "val"
    if events(rows, "not finite"):
        return math.inf
    return dict(column(rows, kind, name)).get(float(cfg.train.steps))
