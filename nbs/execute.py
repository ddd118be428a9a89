"""Executes notebooks and keeps their outputs: python -m nbs.execute [nbs/NAME.ipynb ...]; all without a name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
TIMEOUT = 300  # seconds a cell may take


def execute(path: Path) -> Any:
    """The notebook after a run from top to bottom in a fresh kernel. Raises nbclient's CellExecutionError, with the
    cell and its traceback, when a cell raises."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(FOLDER.parent)}}
    NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", resources=resources, record_timing=False
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    return notebook


def joined(outputs: list[Any]) -> list[Any]:
    """Neighbouring pieces of one stream as one output: the kernel flushes when it likes."""
    kept: list[Any] = []
    for output in outputs:
        last = kept[-1] if kept else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            kept.append(output)
    return kept


def main() -> None:
    import nbformat

    for path in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        notebook = execute(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        nbformat.write(notebook, temporary)
        os.replace(temporary, path)
        print(f"executed {path}")


if __name__ == "__main__":
    main()
