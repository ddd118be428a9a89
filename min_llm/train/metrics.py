"""Where measurements go: metrics.jsonl always; TensorBoard and Weights & Biases when asked.

A row is {"step", "kind": train | mix | val | probe | event, values …, "perf": {…}}. Everything that a second run of the
same configuration would not reproduce (times, throughput, memory) is under "perf"; the rest is bit-identical.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

from min_llm.config import UserError, dump
from min_llm.parallel import processes
from min_llm.train.config import RunConfig


def open_metrics(folder: Path, cfg: RunConfig, first_step: int) -> Metrics | Nowhere:
    """Where this process's measurements go: the primary's into the run folder, those of the others nowhere."""
    return Metrics(folder, cfg, first_step) if processes.primary() else Nowhere()


class Nowhere:
    """Measurements that another process writes down."""

    def write(self, step: int, kind: str, values: dict[str, Any], perf: dict[str, Any] | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class Metrics:
    """Sinks of one run, opened for appending."""

    def __init__(self, folder: Path, cfg: RunConfig, first_step: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.file = self.path.open("a", encoding="utf-8")
        self.tensorboard = _tensorboard(folder, first_step) if cfg.log.tensorboard else None
        self.wandb = _wandb(folder, cfg) if cfg.log.wandb else None

    def write(self, step: int, kind: str, values: dict[str, Any], perf: dict[str, Any] | None = None) -> None:
        row = {"step": step, "kind": kind, **values, **({"perf": perf} if perf else {})}
        try:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}. Make room, then start the same command again; "
                "it resumes from the last checkpoint."
            ) from error
        scalars = {
            f"{kind}/{k}": v for k, v in {**values, **(perf or {})}.items() if isinstance(v, (int, float))
        }
        if self.tensorboard is not None:
            for name, value in scalars.items():
                self.tensorboard.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(scalars, step=step)

    def close(self) -> None:
        with contextlib.suppress(
            OSError
        ):  # every row was flushed: what is left is the one whose error was raised
            self.file.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


def _tensorboard(folder: Path, first_step: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None, flush_secs=30)


def _wandb(folder: Path, cfg: RunConfig) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("log.wandb=true needs Weights & Biases: pip install 'min_llm[wandb]'.") from error
    return wandb.init(
        project="min_llm", name=cfg.name, id=cfg.name, dir=str(folder), config=dump(cfg), resume="allow"
    )


def memory() -> dict[str, float]:
    """Peak memory in bytes: of the process, and of the first device where it counts its own."""
    import jax

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_memory": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        peak["device_memory"] = float(stats["peak_bytes_in_use"])
    return peak
