"""A sweep that is killed, in a cell and between two, ends as one that never was."""

import json
import math
import shutil

import pytest

from min_llm.config import UserError
from min_llm.scaling.grid import settle
from min_llm.scaling.sweep import loss_of, results, run_sweep
from min_llm.train import metrics
from min_llm.train.loop import TrainingStopped
from min_llm.train.metrics import Metrics
from tests.scaling.sweeps import sweep
from tests.train import runs


class Killed(BaseException):
    """Nothing catches it and nothing is saved on its way: for what is on disk, a kill."""


@pytest.fixture
def trained(monkeypatch):
    """(train, the names of the cells it was called for)."""
    calls = []

    def train(cfg):
        calls.append(cfg.name)
        return runs.train(cfg).finished

    return train, calls


def kill_at(monkeypatch, name, step):
    """Die before the metrics of a step of a cell are written."""
    write = Metrics.write

    def dying(self, at, *rest):
        if (self.path.parent.name, at) == (name, step):
            raise Killed
        write(self, at, *rest)

    monkeypatch.setattr(metrics.Metrics, "write", dying)


@pytest.mark.newest
def test_killed_in_a_cell_and_between_cells(tmp_path, monkeypatch, trained):
    train, calls = trained
    cells = settle(sweep(tmp_path))
    names = [c.run.name for c in cells]
    with pytest.raises(Killed), monkeypatch.context() as patch:  # behind the checkpoint of step 6
        kill_at(patch, names[1], 7)
        run_sweep(cells, train)
    assert calls == names[:2] and loss_of(cells[0]) is not None and loss_of(cells[1]) is None
    first = (cells[0].folder / "metrics.jsonl").stat()
    with pytest.raises(UserError, match=rf"3 of 4 cells are not finished \({names[1]}"):
        results(cells)

    calls.clear()
    with pytest.raises(Killed):  # after a cell, before the next begins
        run_sweep(cells, lambda cfg: (_ for _ in ()).throw(Killed) if cfg.name == names[2] else train(cfg))
    assert calls == names[1:2]
    calls.clear()
    assert run_sweep(settle(sweep(tmp_path)), train) and calls == names[2:]
    calls.clear()
    assert run_sweep(cells, train) and calls == []

    last = cells[3].folder / "checkpoints" / str(cells[3].run.train.steps)
    shutil.rmtree(last)  # killed between its last row and that
    assert loss_of(cells[3]) is not None
    assert run_sweep(cells, train) and calls == names[3:]
    shutil.rmtree(cells[2].folder / "checkpoints")  # to make room
    calls.clear()
    assert run_sweep(cells, train) and calls == []

    assert (cells[0].folder / "metrics.jsonl").stat() == first
    whole = settle(sweep(tmp_path, name="whole"))[1]
    assert train(whole.run) and runs.differences(cells[1].folder, whole.folder) == []
    assert [r.loss for r in results(cells)] == [loss_of(c) for c in cells]
    assert [(r.budget, r.tokens) for r in results(cells)] == [(c.budget, c.tokens) for c in cells]


def test_a_signal_ends_the_sweep(tmp_path):
    calls = []
    assert not run_sweep(settle(sweep(tmp_path)), lambda cfg: calls.append(cfg.name) or False)
    assert calls == ["budget1-size1"]


def test_a_cell_that_diverges_is_measured_and_the_others_go_on(tmp_path):
    """The first cell writes what training writes when its loss is not finite; the others end as they should."""
    cells, calls = settle(sweep(tmp_path)), []

    def train(cfg):
        calls.append(cfg.name)
        row = {"step": cfg.train.steps, "kind": "val", "loss": 2.0}
        if bad := cfg.name == cells[0].run.name:
            row = {"step": 3, "kind": "event", "event": "not finite", "loss": "nan", "grad_norm": "nan"}
        folder = tmp_path / "runs/sweep/cells" / cfg.name
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        if bad:
            raise TrainingStopped("Step 3 has loss nan.")
        return True

    assert run_sweep(cells, train) and run_sweep(cells, train)
    assert calls == [c.run.name for c in cells]
    assert [r.loss for r in results(cells)] == [math.inf, 2.0, 2.0, 2.0]


def test_a_cell_without_its_validation_is_refused(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl has no validation of the last step"):
        run_sweep(settle(sweep(tmp_path)), lambda cfg: True)
