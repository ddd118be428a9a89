"""Curation as a process, to be killed, and what its folder must hold afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def command(path: Path, *settings: str) -> list[str]:
    return [sys.executable, "-m", "min_llm", "data", "curate", str(path), *settings]


def result(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Every byte that a run is answerable for."""
    found = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "lock"}
    report = json.loads(found.pop("report.json"))
    del report["seconds"], report["config"]["output"]
    found.pop("report.html")  # shows documents per second
    return found, report


def finished(output: Path) -> set[str]:
    """The files that a run has finished so far, of all its walks."""
    return {str(path.relative_to(output)) for path in output.glob("work/*/[0-9d]*")}


def kill(run: Sequence[str], output: Path, more: int, pause: float) -> tuple[int, str]:
    """SIGKILL to the command (not to its workers, which follow it) `pause` seconds after it has finished `more` files
    more. Its exit status, which is another where it ended before, and what it said."""
    before = finished(output)
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(finished(output) - before) < more:
        time.sleep(0.001)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    error = process.communicate()[1]
    return process.returncode, error
