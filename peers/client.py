"""Finds the peers' Python interpreter and starts `peers.server` in it."""

import os
from pathlib import Path
from typing import Any

from peers.pipe import Child

ROOT = Path(__file__).resolve().parent.parent
MISSING = (
    "the peers' environment is missing: run `make env-peers`, or name its Python in MIN_LLM_PEERS_PYTHON"
)


def interpreter() -> Path | None:
    """$MIN_LLM_PEERS_PYTHON, else .venv-peers/bin/python, else None; a venv's link is kept."""
    named = os.environ.get("MIN_LLM_PEERS_PYTHON")
    if named and not Path(named).exists():
        raise FileNotFoundError(f"MIN_LLM_PEERS_PYTHON names {named}, which does not exist")
    path = Path(named) if named else ROOT / ".venv-peers" / "bin" / "python"
    return path.absolute() if path.exists() else None


def start(name: str = "peers", **options: Any) -> Child:
    """A child that answers the operations of peers/server.py. FileNotFoundError without an environment."""
    python = interpreter()
    if python is None:
        raise FileNotFoundError(MISSING)
    return Child([str(python), "-m", "peers.server"], name=name, cwd=ROOT, **options)
