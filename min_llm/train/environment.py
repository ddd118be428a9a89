"""What a run ran on: machine, versions, flags, choices. Written to environment.json at every start, for the report."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from min_llm import platform
from min_llm.kernels import cpu
from min_llm.nn.runtime import Runtime
from min_llm.parallel import processes
from min_llm.plan.flops import Flops
from min_llm.reporting import reporter
from min_llm.train.config import RunConfig

PACKAGES = ("min_llm", "jax", "jaxlib", "optax", "orbax-checkpoint", "numpy")


def describe() -> dict[str, Any]:
    """Machine and software of this process."""
    import jax

    return {
        "device": platform.device_kind(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "platform": jax.default_backend(),
        "cpu": platform.cpu_name(),
        "cores": os.cpu_count(),
        "cpu_features": platform.cpu_features(),
        "python": sys.version.split()[0],
        "versions": versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "kernels": cpu.unavailable() or "AMX",
        "commit": commit(),
    }


def software() -> dict[str, Any]:
    """What a run's numbers depend on down to the last bit, besides its configuration. The cores are part of it: on CPU
    they decide how long float32 sums are cut into parts (measured: dim 256 on one core and on two)."""
    import jax

    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": platform.device_kind(),
        "devices": jax.device_count(),
        "jaxlib": versions()["jaxlib"],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "kernels": "AMX" if cpu.available() else "none",
    }


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The commit of the source tree, with "+" where it was changed; None outside a checkout. A snapshot of the code
    (`parallel.launch.snapshot`) has it written down."""
    root = Path(__file__).resolve().parents[2]
    if (root / "COMMIT").is_file():
        return (root / "COMMIT").read_text(encoding="utf-8").strip()
    if not (root / ".git").exists():
        return None
    try:
        out = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None


def record_start(folder: Path, cfg: RunConfig, runtime: Runtime, flops: Flops, peak: float) -> None:
    """Append this start to environment.json, and say what was chosen."""
    facts = describe()
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "runtime": vars(runtime),
        "flops_per_token": flops.training,
        "flops_formula": flops.formula,
        "peak_flops_measured": peak,
        **facts,
    }
    if not processes.primary():
        return
    path = folder / "environment.json"
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        starts = []
    platform.write_atomic(path, json.dumps({"starts": [*starts, start]}, indent=1))
    say = reporter().info
    say(
        f"{facts['device']}, {facts['cores']} cores, JAX {facts['versions']['jax']} on Python {facts['python']}"
    )
    say(platform.flags_note)
    say(f"kernels for this processor: {facts['kernels']}")
    say(
        f"compute in {runtime.dtype}, attention {runtime.attention}, layers "
        f"{'scanned' if runtime.scan else 'unrolled'}, remat {runtime.remat}"
    )
    say(
        f"MFU counts {flops.formula} = {flops.training / 1e6:.2f} MFLOP a token against a measured "
        f"{peak / 1e9:,.0f} GFLOP/s ({runtime.dtype})"
    )
