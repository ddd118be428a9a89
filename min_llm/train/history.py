"""What a run folder tells about its run: rows, state, starts, samples, probes. Reads anything a killed process leaves.

`run.read_rows` is strict, because training builds on it; a report must also show a damaged run, and say so.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

Point = tuple[float, float]
Row = dict[str, Any]
State = Literal["finished", "running", "stopped", "failed", "empty"]

_SAMPLE = re.compile(r"^## Step (\d+)\n(.*?)(?=^## Step \d+\n|\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```text\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def read_rows(folder: Path) -> tuple[list[Row], int]:
    """Rows of metrics.jsonl in order of their steps, and how many lines were torn. Of two rows of one kind and step
    (a process that died after its last checkpoint, and the one that took over) the later one counts."""
    rows: dict[tuple[str, int, str], Row] = {}
    torn = 0
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
            key = (str(row["kind"]), int(row["step"]), str(row.get("event", "")))
        except (ValueError, KeyError, TypeError):
            torn += 1
            continue
        rows[key] = row
    return sorted(rows.values(), key=lambda row: int(row["step"])), torn


def column(rows: Iterable[Row], kind: str, name: str) -> list[Point]:
    """(step, value) of a number of one kind of rows, looked for in the row and in its "perf"; NaN where it is no
    number."""
    points = []
    for row in rows:
        if row["kind"] == kind:
            value = row.get(name, (row.get("perf") or {}).get(name))
            if value is not None:
                points.append((float(row["step"]), _number(value)))
    return points


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def events(rows: Iterable[Row], event: str) -> list[Row]:
    return [row for row in rows if row["kind"] == "event" and row.get("event") == event]


def state(rows: list[Row], steps: int, running: bool, saved: int | None = None) -> tuple[State, str, int]:
    """(state, a sentence, steps done). steps: the length of the run, 0 where it is unknown; saved: the step of the
    latest checkpoint."""
    train = [int(row["step"]) for row in rows if row["kind"] == "train"]
    done = max([*train[-1:], saved or 0])
    of = f" of {steps:,}" if steps else ""
    if (bad := events(rows, "not finite")) and int(bad[-1]["step"]) >= done:
        at, loss, norm = bad[-1]["step"], bad[-1].get("loss"), bad[-1].get("grad_norm")
        return "failed", f"failed at step {at:,}{of}: loss {loss}, gradient norm {norm}", done
    if steps and done >= steps:
        return "finished", f"finished {steps:,} steps", done
    if running:
        return "running", f"running, step {done:,}{of}", done
    if not done:
        return "empty", "not a row of metrics yet", 0
    return "stopped", f"stopped after step {done:,}{of}; its command goes on after step {saved or 0:,}", done


def is_running(folder: Path) -> bool:
    """Whether a process holds the run's lock (run.py)."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing is locked
        return False
    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file: nothing ever ran here
        return False
    return False


def training_seconds(rows: list[Row]) -> float:
    """Time in steps over all processes, without compilation, validation, samples and checkpoints."""
    elapsed = dict(column(rows, "train", "elapsed"))
    ends = [before for before, _ in resumes(rows)] + list(elapsed)[-1:]
    return sum(elapsed[step] for step in ends if math.isfinite(elapsed.get(step, math.nan)))


def goodput(rows: list[Row], starts: list[dict[str, Any]]) -> float | None:
    """The share of the time from the first start to the last row that went into steps whose result is kept: the rest is
    starts, compilation, validation, checkpoints, pauses, and steps that a kill has lost (L3-3.10). None where the rows
    say no time."""
    last = column(rows, "train", "time")
    if not last or not starts:
        return None
    began = datetime.datetime.fromisoformat(starts[0]["time"]).timestamp()
    passed = last[-1][1] - began
    return training_seconds(rows) / passed if passed > 0 else None


def resumes(rows: list[Row]) -> list[tuple[float, float]]:
    """(step, step) of two rows between which another process took over: its clock starts again at 0, so that less
    time has passed than the steps took."""
    train = [row for row in rows if row["kind"] == "train"]
    found = []
    for before, after in itertools.pairwise(train):
        perf = after.get("perf") or {}
        took = _number(perf.get("step_seconds")) * (after["step"] - before["step"])
        passed = _number(perf.get("elapsed")) - _number((before.get("perf") or {}).get("elapsed"))
        if passed < took / 2:
            found.append((float(before["step"]), float(after["step"])))
    return found


def samples(folder: Path) -> list[tuple[int, list[str]]]:
    """(step, texts) of samples.md, in order; of a step written twice the later one."""
    try:
        text = (folder / "samples.md").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = {int(step): _BLOCK.findall(body) for step, body in _SAMPLE.findall(text)}
    return [(step, texts) for step, texts in sorted(found.items()) if texts]


def read_json(path: Path) -> Any:
    """A small JSON file; None when it is absent or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def starts(folder: Path) -> list[dict[str, Any]]:
    """environment.json: one entry for each process that worked on the run."""
    found = read_json(folder / "environment.json")
    entries = found.get("starts") if isinstance(found, dict) else None
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


@dataclasses.dataclass(frozen=True)
class Probes:
    """The probe rows of a run as matrices. `tables` maps a name such as "residual/rms", "grad/wq/rms" or
    "attention_entropy/mean" to [layers, steps]; what no layer owns ("grad/embed/rms") has one row."""

    steps: np.ndarray  # [steps]
    tables: dict[str, np.ndarray]

    def group(self, kind: str) -> dict[str, np.ndarray]:
        """Tables of "activation", "grad", "param" or "entropy", by the rest of their name."""
        return {
            name.removeprefix(kind + "/").replace("attention_entropy/", "attention entropy, "): table
            for name, table in self.tables.items()
            if _kind(name) == kind
        }


def _kind(name: str) -> str:
    if name.startswith(("grad/", "param/")):
        return name.split("/")[0]
    return "entropy" if name.startswith("attention_entropy/") else "activation"


def probes(rows: Iterable[Row]) -> Probes | None:
    """The probe rows, stacks of layers joined in their order; None when there are none."""
    found = [row for row in rows if row["kind"] == "probe"]
    if not found:
        return None
    columns = [_joined({k: v for k, v in row.items() if k not in ("step", "kind", "perf")}) for row in found]
    names = dict.fromkeys(name for column in columns for name in column)
    tables = {}
    for name in names:
        height = max(len(c[name]) for c in columns if name in c)
        absent = [math.nan] * height
        cells = [(c.get(name, absent) + absent)[:height] for c in columns]
        tables[name] = np.asarray(cells, dtype=np.float64).T
    return Probes(np.asarray([int(row["step"]) for row in found]), tables)


def _joined(row: dict[str, Any]) -> dict[str, list[float]]:
    """One probe row with "grad/layers.0.wq/rms", "grad/layers.1.wq/rms" … joined into "grad/wq/rms"."""
    joined: dict[str, list[float]] = {}
    stacks: dict[tuple[str, str], dict[int, list[float]]] = {}
    for name, value in row.items():
        values = [_number(v) for v in value] if isinstance(value, list) else [_number(value)]
        if match := re.fullmatch(r"(grad|param)/layers\.(\d+)\.(.+)", name):
            stacks.setdefault((match[1], match[3]), {})[int(match[2])] = values
        else:
            joined[name] = values
    heights: dict[int, int] = {}
    for parts in stacks.values():
        for stack, values in parts.items():
            heights[stack] = max(heights.get(stack, 0), len(values))
    for (kind, leaf), parts in stacks.items():  # a stack without this leaf leaves its layers empty
        joined[f"{kind}/{leaf}"] = [
            v for stack in sorted(heights) for v in parts.get(stack, [math.nan] * heights[stack])
        ]
    return joined
