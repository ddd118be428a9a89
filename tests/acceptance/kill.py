"""A run killed with kill -9 at 20 random moments ends bit-identical to one that never was (about 8 minutes).

In float32 and in bfloat16, with a cold compilation cache (emptied before every start) and with a warm one. Of the 20
kills six fall anywhere in the process's start (imports, data, restoring, compiling) and fourteen in training, where a
checkpoint is being written most of the time. Compared are all rows of metrics.jsonl without their "perf", the samples,
and every array of the last checkpoint: step, parameters, optimizer.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.evidence import Claim, claim
from tests.train import runs

KILLS, IN_START = 20, 6
SEED = 20
LIMIT = 300  # seconds that one process may take

SETTINGS = {
    "train.steps": 240,
    "train.log_every": 3,
    "train.eval_every": 80,
    "train.spike_z": 1.0,
    "checkpoint.every": 5,
    "sample.max_tokens": 8,
    "model.n_layers": 1,
    "model.dim": 32,
}


class Case:
    """One dtype and one kind of cache: a folder with a configuration, a $MIN_LLM_HOME and runs."""

    def __init__(self, folder: Path, dtype: str, cold: bool) -> None:
        self.folder, self.cold = folder, cold
        folder.mkdir()
        self.home = folder / "home"
        self.config = runs.write_config(folder, **{**SETTINGS, "runtime.dtype": dtype})
        self.output = folder / "output.txt"

    def start(self, name: str) -> subprocess.Popen:
        """Start or resume a run in a process of its own."""
        if self.cold:
            shutil.rmtree(self.home / "xla", ignore_errors=True)
        with self.output.open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-c", runs.MAIN, "train", str(self.config), f"name={name}"],
                cwd=runs.ROOT,
                env={**os.environ, "MIN_LLM_HOME": str(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def finish(self, name: str) -> tuple[float, float]:
        """Run to the end; seconds until the step was compiled, and from there."""
        began = time.monotonic()
        child = self.start(name)
        self.wait_for_training(child, name, self.compiled(name))
        started = time.monotonic()
        if child.wait(LIMIT):
            raise RuntimeError(f"exit status {child.returncode}: {self.output.read_text()[-2000:]}")
        return started - began, time.monotonic() - started

    def compiled(self, name: str) -> int:
        """How many processes of this run have got to their first step."""
        log = self.folder / "runs" / name / "log.txt"
        return log.read_text(errors="replace").count("Compiled the step") if log.exists() else 0

    def wait_for_training(self, child: subprocess.Popen, name: str, before: int) -> None:
        """Return when the process has compiled its step, or ended."""
        deadline = time.monotonic() + LIMIT
        while child.poll() is None and self.compiled(name) == before:
            if time.monotonic() > deadline:
                child.kill()
                raise RuntimeError(f"no step within {LIMIT} s: {self.output.read_text()[-2000:]}")
            time.sleep(0.01)

    def kill(self, name: str, in_start: bool, seconds: float) -> int:
        """Start the run, kill it so many seconds into its start or into its training; how the process ended."""
        before = self.compiled(name)
        child = self.start(name)
        if not in_start:
            self.wait_for_training(child, name, before)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        return child.wait(LIMIT)


def measure(case: Case, kills: int, draw: random.Random) -> Iterator[tuple[str, object, str, bool, str]]:
    """Claims of one case, without its name."""
    case.finish(
        "first"
    )  # compiles the kernels and measures the machine's peaks: no later start takes that long
    start, training = case.finish("whole")
    in_start = round(kills * IN_START / KILLS)
    moments = [True] * in_start + [False] * (kills - in_start)
    draw.shuffle(moments)
    # on average three quarters of the training are left after the last kill, so that a machine which speeds up
    # meanwhile does not finish the run before all kills are made
    span = 0.5 * training / max(kills - in_start, 1)
    ended, half = [], 0
    for early in moments:
        ended.append(case.kill("killed", early, draw.uniform(0, start if early else span)))
        half += bool(list((case.folder / "runs/killed").glob("checkpoints/.*.saving")))
    killed = ended.count(-signal.SIGKILL)
    said = (
        "" if set(ended) == {-signal.SIGKILL} else f"exit statuses {ended}: {case.output.read_text()[-1500:]}"
    )
    yield "processes killed with kill -9" + said, killed, str(kills), killed == kills, ""
    yield "kills that left a half-written checkpoint", half, "reported", True, ""

    case.finish("killed")
    found = runs.differences(case.folder / "runs/killed", case.folder / "runs/whole")
    rows = len(runs.comparable(case.folder / "runs/whole"))
    arrays = len(runs.weights(case.folder / "runs/whole"))
    text = f"of {rows} rows and {arrays} arrays those that differ after {killed} kills"
    yield text, "; ".join(found) or 0, "0", not found, ""


def run(kills: int = KILLS, dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> Iterator[Claim]:
    with tempfile.TemporaryDirectory(prefix="min_llm-kill-") as folder:
        finished: dict[tuple[str, bool], Path] = {}
        for dtype in dtypes:
            for cold in (True, False):
                name = f"{dtype}, {'cold' if cold else 'warm'} cache"
                case = Case(Path(folder) / name.replace(", ", "-").replace(" ", "-"), dtype, cold)
                for text, *rest in measure(case, kills, random.Random(f"{SEED} {name}")):
                    yield claim(f"{name}: {text}", *rest)
                finished[dtype, cold] = case.folder / "runs/whole"
            found = runs.differences(finished[dtype, True], finished[dtype, False])
            yield claim(
                f"{dtype}: cold against warm cache, rows and arrays that differ", len(found), "0", not found
            )
