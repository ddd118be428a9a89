"""Tiny trainings in several processes, for tests/parallel/test_launch.py and tests/acceptance/processes.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from min_llm.parallel import processes

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "data.tokenizer=bytes", "model.vocab_size=264", "model.n_layers=1", "model.dim=32", "model.n_heads=4",
    "model.n_kv_heads=4", "model.max_seq_len=32", "train.batch_size=8", "train.seq_len=32", "train.steps=120",
    "train.log_every=4", "train.eval_every=0", "sample.max_tokens=3", "sample.every=0", "checkpoint.every=10",
    "optim.warmup=2", "runtime.dtype=float32", "log.tensorboard=false",
]  # fmt: skip


class Trainings:
    """Runs of one configuration in a folder, each in processes of its own."""

    def __init__(self, folder: Path, limit: float = 240, *more: str) -> None:
        self.folder, self.limit, self.more = folder, limit, more
        text = "".join(f"{i} times {i} is {i * i}.\n" for i in range(600))
        (folder / "text.txt").write_text(text)
        outer = {k: v for k, v in os.environ.items() if not k.startswith("MIN_LLM_PROC")}
        self.env = {**outer, "JAX_PLATFORMS": "cpu"}

    def settings(self, name: str, mesh: dict[str, int]) -> list[str]:
        places = [f"data.source={self.folder / 'text.txt'}", f"out={self.folder / 'runs'}", f"name={name}"]
        places.append(f"data.home={self.folder / 'home'}")
        return [*SETTINGS, *self.more, *places, *(f"parallel.mesh.{axis}={n}" for axis, n in mesh.items())]

    def start(self, words: list[str], name: str, mesh: dict[str, int], **env: str) -> subprocess.Popen:
        """`min-llm words… settings…`; its output, standard error included, goes into a file."""
        (self.folder / "output").mkdir(exist_ok=True)
        with self.output(name).open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "min_llm", *words, *self.settings(name, mesh)],
                cwd=ROOT,
                env={**self.env, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def output(self, name: str) -> Path:
        return self.folder / "output" / f"{name}.txt"

    def train(self, name: str, **mesh: int) -> None:
        """To its end in one process."""
        self.ends(self.start(["train"], name, mesh), name)

    def launch(self, name: str, count: int, **mesh: int) -> subprocess.Popen:
        return self.start(["launch", "--processes", str(count), "--"], name, mesh)

    def alone(self, name: str, count: int, port: int, **mesh: int) -> list[subprocess.Popen]:
        """The processes of a launch without the launcher that watches them."""
        meeting = {processes.COORDINATOR: f"127.0.0.1:{port}", processes.PROCESSES: str(count)}
        return [
            self.start(["train"], name, mesh, **meeting, **{processes.PROCESS: str(rank)})
            for rank in range(count)
        ]

    def ends(self, process: subprocess.Popen, name: str, status: int = 0) -> None:
        assert process.wait(self.limit) == status, self.output(name).read_text()[-3000:]

    def checkpoints(self, name: str) -> list[int]:
        folder = self.folder / "runs" / name / "checkpoints"
        return sorted(int(p.name) for p in folder.glob("[0-9]*")) if folder.exists() else []

    def wait_for_checkpoint(self, name: str, process: subprocess.Popen, beyond: int = 0) -> None:
        """Return when there is one of a step above `beyond`."""
        self.wait(lambda: max(self.checkpoints(name), default=0) > beyond, name, process)

    def wait(self, until: Callable[[], bool], name: str, process: subprocess.Popen) -> None:
        deadline = time.monotonic() + self.limit
        while not until():
            ended = process.poll() is not None
            assert not ended and time.monotonic() < deadline, self.output(name).read_text()[-3000:]
            time.sleep(0.05)

    def losses(self, name: str) -> list[tuple[int, float]]:
        """(step, loss) of every row, the validation's last."""
        path = self.folder / "runs" / name / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [(row["step"], row["loss"]) for row in rows if row["kind"] in ("train", "val")]


def children(launcher: subprocess.Popen) -> list[int]:
    """Process ids of a launcher's children, by rank."""
    return [
        int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ]


def apart(ours: list[tuple[int, float]], other: list[tuple[int, float]]) -> float:
    """The largest difference of two runs' losses; infinite where their steps differ."""
    if [step for step, _ in ours] != [step for step, _ in other]:
        return float("inf")
    return max(abs(a - b) for (_, a), (_, b) in zip(ours, other, strict=True))
