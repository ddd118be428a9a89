"""`min-llm doctor`: what this installation can do, and what is missing."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Annotated

import typer

EXTRAS = {"torch": "peers only", "wandb": "wandb", "datasets": "hf", "pyarrow": "parquet"}
PROGRAMS = {
    "npm": "data sources from npm",
    "apt-get": "data sources from Debian",
    "git": "commit in run records",
}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Versions, devices, XLA flags, measured speed, and what is missing."""
    import json

    from rich.console import Console
    from rich.table import Table

    from min_llm import platform
    from min_llm.kernels import peaks
    from min_llm.train.environment import describe

    facts = describe()
    measured = peaks.measure()
    facts |= {
        "flags": platform.flags_note,
        "float32_gflops": round(measured["flops_float32"] / 1e9),
        "bfloat16_gflops": round(measured["flops_bfloat16"] / 1e9),
        "gigabytes_per_second": round(measured["bytes"] / 1e9, 1),
        "compute_dtype": peaks.fast_dtype(),
        "home": str(platform.home()),
        "extras": {name: importlib.util.find_spec(name) is not None for name in EXTRAS},
        "programs": {name: shutil.which(name) is not None for name in PROGRAMS},
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in facts.items():
        if isinstance(value, dict) and key == "versions":
            value = "  ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, dict):
            what = EXTRAS if key == "extras" else PROGRAMS
            value = "  ".join(f"{k} {'yes' if have else f'no ({what[k]})'}" for k, have in value.items())
        table.add_row(f"[bold]{key}[/]", str(value))
    Console().print(table)
