"""Twenty steps of `min-llm train` on every kind of mesh give the losses of one device (about 8 minutes).

Eight virtual devices, a Llama of four layers with fewer key-value heads than some tp, float32. The loss of each step
and the validation's are compared; then checkpoints of step 10 are taken up by other meshes.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.evidence import Claim, claim
from tests.parallel.test_train_mesh import SETTINGS
from tests.train import runs

BOUND = 1e-3  # nats, over 20 steps
MESHES: dict[str, dict[str, Any]] = {
    "fsdp 8": {"mesh.fsdp": 8},
    "fsdp 8, parameters kept": {"mesh.fsdp": 8, "keep_gathered": "true"},
    "fsdp 2 x tp 4": {"mesh.fsdp": 2, "mesh.tp": 4},
    "dp 2 x fsdp 2 x cp 2": {"mesh.dp": 2, "mesh.fsdp": 2, "mesh.cp": 2},
    "fsdp 2 x cp 2 x tp 2": {"mesh.fsdp": 2, "mesh.cp": 2, "mesh.tp": 2},
    "ring of cp 4 x tp 2": {"mesh.cp": 4, "mesh.tp": 2, "context": "ring"},
    "tp 8": {"mesh.tp": 8},
    "pp 4 x dp 2": {"mesh.pp": 4, "mesh.dp": 2, "pipeline_parts": 4},
    "pp 2 x fsdp 2 x tp 2": {"mesh.pp": 2, "mesh.fsdp": 2, "mesh.tp": 2},
    "pp 2 in two rounds x dp 4": {"mesh.pp": 2, "mesh.dp": 4, "pipeline_parts": 2, "pipeline_rounds": 2},
}
HANDED_ON = ["one", "fsdp 2 x tp 4", "pp 2 in two rounds x dp 4", "fsdp 2 x cp 2 x tp 2", "one"]
SHAPE = ["optim.lr=1e-2", "model.n_layers=4", "model.n_heads=8", "model.n_kv_heads=2", "model.head_dim=4"]


def train(folder: Path, name: str, devices: int, settings: dict[str, Any]) -> list[float]:
    """Losses of the run's 20 steps and of its validation."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    places = [f"data.source={folder / 'text.txt'}", f"out={folder / 'runs'}", f"name={name}"]
    chosen = [f"parallel.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-c", runs.MAIN, "train", *SETTINGS, *SHAPE, *places, *chosen]
    done = subprocess.run(
        command,
        cwd=runs.ROOT,
        env={**os.environ, "MIN_LLM_HOME": str(folder / "home"), "XLA_FLAGS": flags},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: exit status {done.returncode}: {done.stderr[-2000:]}")
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["kind"] in ("train", "val")]


def apart(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def run() -> Iterator[Claim]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(600)))
        one = train(folder, "one", 1, {})
        fall = one[0] - one[-1]
        yield claim("one device: the loss falls in 20 steps by", fall, "> 0.5", fall > 0.5, "nats")
        for name, settings in MESHES.items():
            worst = apart(train(folder, name, 8, settings), one)
            yield claim(f"{name}: largest difference of a loss", worst, f"<= {BOUND}", worst <= BOUND, "nats")
        for before, after in itertools.pairwise(HANDED_ON):
            shutil.copytree(folder / "runs" / before, folder / "runs" / "moved")
            shutil.rmtree(folder / "runs" / "moved" / "checkpoints" / "20")
            devices, settings = (8, MESHES[after]) if after in MESHES else (1, {})
            worst = apart(train(folder, "moved", devices, settings), one)
            shutil.rmtree(folder / "runs" / "moved")
            yield claim(
                f"from step 10 of {before} on {after}: largest difference of a loss",
                worst,
                f"<= {BOUND}",
                worst <= BOUND,
                "nats",
            )
