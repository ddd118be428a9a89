"""Every notebook runs from top to bottom, says what it said when it was committed, and is committed with outputs."""

import json
import re

import pytest

from nbs.execute import FOLDER, execute, joined

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def printed(notebook):
    """What the cells print, measured differences left out: the last bits are the machine's."""
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    text = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    return re.sub(r"\S*e[-+]\d\d\b", "", text)


@pytest.mark.newest
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_prints_what_it_printed(path):
    assert printed(execute(path)) == printed(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_executed_in_order(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert path.stat().st_size < 500_000
    assert path.name in (FOLDER / "README.md").read_text()


def test_a_cell_that_raises_fails(tmp_path):
    cells = [nbformat.v4.new_code_cell("assert 1 + 1 == 3, 'arithmetic'")]
    path = tmp_path / "wrong.ipynb"
    path.write_text(json.dumps(nbformat.v4.new_notebook(cells=cells)))
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="arithmetic"):
        execute(path)


def test_pieces_of_a_stream_are_joined():
    pieces = [nbformat.v4.new_output("stream", text=text) for text in ("a", "b")]
    assert [o.text for o in joined(pieces)] == ["ab"]
