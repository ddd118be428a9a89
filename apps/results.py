"""Learning results: train a configuration as the command line does, and keep rows in apps/<app>/results.json.

Rows have the shape of the benchmarks' (bench/results.py), with the seeds. Every training is a process of its own,
`min-llm train CONFIG key=value ...`, and starts from scratch: what an earlier one left in its folder is removed.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import results
from min_llm import models, spec
from min_llm.platform import write_atomic
from min_llm.train import history
from min_llm.train.run import load_config
from scripts.evidence import commit

APPS = Path(__file__).resolve().parent
MIN_LLM = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'min-llm'; from min_llm.cli.main import main; main()",
]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a finished run folder says.

    losses: nats per token of each validation, the last one over the whole split. seconds: in training steps,
    without compilation, validation, samples and checkpoints. flops: of training, by the formula that MFU uses.
    """

    folder: Path
    seed: int
    dtype: str
    losses: list[float]
    bits_per_byte: float
    seconds: float
    steps: int
    tokens: int
    parameters: int
    flops: float
    tokens_per_second: float
    machine: str

    @property
    def loss(self) -> float:
        return self.losses[-1]


def train(config: Path, changes: Mapping[str, Any], out: Path) -> Trained:
    """Train a configuration with some settings changed, in OUT/NAME, and read the result. Raises
    CalledProcessError when training fails; its own output has said why."""
    folder = out / changes["name"]
    shutil.rmtree(folder, ignore_errors=True)
    settings = [f"{key}={value}" for key, value in {**changes, "out": out}.items()]
    subprocess.run([*MIN_LLM, "train", str(config), *settings], check=True, cwd=results.ROOT)
    return read(folder)


def read(folder: Path) -> Trained:
    """The result of a finished run."""
    cfg = load_config(folder)
    rows, _ = history.read_rows(folder)
    start = history.starts(folder)[-1]
    last = [row for row in rows if row["kind"] == "train"][-1]
    if last["step"] != cfg.train.steps:
        raise ValueError(
            f"{folder} stopped after step {last['step']} of {cfg.train.steps}; a result needs them all"
        )
    scored = [row for row in rows if row["kind"] in ("val", "final") and "loss" in row]
    seconds = history.training_seconds(rows)
    return Trained(
        folder=folder,
        seed=cfg.seed,
        dtype=start["runtime"]["dtype"],
        losses=[row["loss"] for row in scored],
        bits_per_byte=scored[-1]["bits_per_byte"],
        seconds=seconds,
        steps=cfg.train.steps,
        tokens=last["tokens"],
        parameters=spec.count(models.spec(cfg.model)),
        flops=last["tokens"] * start["flops_per_token"],
        tokens_per_second=last["tokens"] / seconds,
        machine=results.machine_name(None if start["platform"] == "cpu" else start["device"]),
    )


def over_seeds(
    case: str,
    metric: str,
    unit: str,
    runs: Sequence[Trained],
    value: Callable[[Trained], float],
    **extra: Any,
) -> results.Row:
    """A row with the mean of `value` over the runs; its spread is the lowest and the highest."""
    values = [value(run) for run in runs]
    first = runs[0]
    return results.row(
        case,
        metric,
        unit,
        first.dtype,
        statistics.mean(values),
        runs=len(runs),
        spread=[min(values), max(values)],
        seed=[run.seed for run in runs],
        parameters=first.parameters,
        steps=first.steps,
        tokens=first.tokens,
        flops=first.flops,
        train_seconds=statistics.mean(run.seconds for run in runs),
        machine=first.machine,
        **extra,
    )


def _place(field: str) -> int:
    """The fields that every row has come first, in their order."""
    return results.FIELDS.index(field) if field in results.FIELDS else len(results.FIELDS)


def write(app: str, rows: Sequence[results.Row], into: Path | None = None) -> Path:
    """Complete the rows and put them into apps/<app>/results.json (or `into`); rows of other ids stay. A row's own
    machine, commit, command or date stands."""
    common = {
        "bench": app,
        "machine": results.machine_name(),
        "versions": results.own_versions(),
        "commit": commit(),
        "command": results.command(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    file = into or APPS / app / "results.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    kept = {row["id"]: row for row in known}
    for row in rows:
        full = {"id": results.identity(app, row), **common, **row}
        kept[full["id"]] = {name: full[name] for name in sorted(full, key=_place)}
    write_atomic(file, json.dumps(list(kept.values()), indent=1, ensure_ascii=False) + "\n")
    return file
