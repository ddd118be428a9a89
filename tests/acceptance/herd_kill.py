"""herd_mini's ci preset, killed with kill -9 in every step and at every boundary, ends as if not (10 minutes).

Compared are the facts of every step without their seconds, the curated text, the tokenizer, the made documents, every
row of metrics and every array of the last checkpoint of every run, and the files of the final model. A file that a
killed process was writing stays beside it under a name of its own, with a dot; it counts for nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.evidence import Claim, claim
from tests.train import runs

SEED = 5
LIMIT = 600  # seconds that one process may take
FILES = ("curated/[0-9]*", "text/[!.]*", "tokenizer.json", "model/[!.]*")


class Recipe:
    """A folder with recipes of one configuration."""

    def __init__(self, folder: Path, settings: tuple[str, ...]) -> None:
        self.folder, self.settings = folder, settings
        self.output = folder / "output.txt"

    def start(self, name: str) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "apps.herd_mini.run",
            "preset=ci",
            f"name={name}",
            f"out={self.folder}",
        ]
        with self.output.open("a") as output:
            return subprocess.Popen(
                [*command, *self.settings],
                cwd=runs.ROOT,
                env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def finish(self, name: str) -> None:
        if self.start(name).wait(LIMIT):
            raise RuntimeError(self.output.read_text(errors="replace")[-2000:])

    def begun(self) -> int:
        """Lines that say that a step begins."""
        return self.output.read_text(errors="replace").count(" — ") if self.output.exists() else 0

    def facts(self, name: str) -> dict[str, dict]:
        """Of every finished step, without its seconds, in the order in which they ended."""
        found = {}
        for path in sorted((self.folder / name / "steps").glob("*.json"), key=lambda p: p.stat().st_mtime_ns):
            found[path.stem] = json.loads(path.read_text())
        return found

    def kill(self, name: str, seconds: float) -> tuple[int, int]:
        """Kill so many seconds after the next step has begun; kill -9's exit status, and the steps done before."""
        before, done = self.begun(), len(self.facts(name))
        child = self.start(name)
        deadline = time.monotonic() + LIMIT
        while child.poll() is None and self.begun() == before and time.monotonic() < deadline:
            time.sleep(0.01)
        self.wait_for_facts(child, name, done, seconds)
        child.send_signal(signal.SIGKILL)
        return child.wait(LIMIT), done

    def wait_for_facts(self, child: subprocess.Popen, name: str, done: int, seconds: float) -> None:
        """Return after so many seconds, or at once when the step's facts are on the disk: at the boundary."""
        deadline = time.monotonic() + seconds
        while child.poll() is None and len(self.facts(name)) == done and time.monotonic() < deadline:
            time.sleep(0.002)

    def differences(self, one: str, other: str) -> list[str]:
        found = []
        left, right = self.facts(one), self.facts(other)
        for step in sorted(left.keys() | right.keys()):
            pair = [{k: v for k, v in side.get(step, {}).items() if k != "seconds"} for side in (left, right)]
            if pair[0] != pair[1]:
                found.append(f"steps/{step}.json")
        a, b = self.folder / one, self.folder / other
        for pattern in FILES:
            for path in sorted(a.glob(pattern)):
                if path.is_file() and path.read_bytes() != (b / path.relative_to(a)).read_bytes():
                    found.append(str(path.relative_to(a)))
        for run in sorted([*a.glob("runs/*"), *a.glob("sweep/cells/*")]):
            place = run.relative_to(a)
            found += [f"{place}: {text}" for text in runs.differences(run, b / place)]
        return found


def run(settings: tuple[str, ...] = ()) -> Iterator[Claim]:
    with tempfile.TemporaryDirectory(prefix="min_llm-herd-") as folder:
        recipe = Recipe(Path(folder), settings)
        recipe.finish("first")  # downloads, kernels, compilation cache: no later start takes that long
        recipe.finish("whole")
        steps = recipe.facts("whole")
        draw = random.Random(SEED)
        kills: list[str] = []
        for name, facts in steps.items():
            # inside the step, and at its end (the next start then begins with the step after it)
            for seconds in (draw.uniform(0, facts["seconds"]), LIMIT):
                status, done = recipe.kill("killed", seconds)
                if status == -signal.SIGKILL:
                    kills.append(f"{name} after {done} steps")
        recipe.finish("killed")
        yield claim(
            f"processes killed with kill -9, in {len(steps)} steps",
            len(kills),
            "at least 20",
            len(kills) >= 20,
        )
        found = recipe.differences("killed", "whole")
        yield claim("files, rows and arrays that differ", "; ".join(found[:10]) or 0, "0", not found)
        again = recipe.differences("first", "whole")
        yield claim(
            "those that differ between two runs without a kill", "; ".join(again[:10]) or 0, "0", not again
        )
