"""`min-llm scaling`: a sweep that is killed and goes on, and the fit of one whose losses were planted."""

import json
import math

import pytest

from min_llm.scaling.grid import settle
from min_llm.scaling.power import PowerLaw
from tests.scaling.sweeps import sweep, write_sweep
from tests.train import runs

LAW = PowerLaw(0.11, 0.55)
KILL = (
    "import os\nfrom min_llm.train import series; last_loss = series.last_loss\n"
    "series.last_loss = lambda cfg: os.kill(os.getpid(), 9) if 'size2' in cfg.name else last_loss(cfg)"
)


@pytest.mark.newest
def test_plan_run_fit(tmp_path, capsys):
    """plan, run (killed after the first cell and started again), fit, which wants more sizes."""
    path = write_sweep(tmp_path)
    status, out, _ = runs.command_line(capsys, "scaling", "plan", path)
    assert status == 0 and "4 cells" in out and "budget1-size1" in out
    process = runs.start("scaling", "run", path, prelude=KILL)
    assert process.wait(120) == -9, process.stdout.read()
    first = tmp_path / "runs/sweep/cells/budget1-size1/metrics.jsonl"
    before = first.stat()
    status, _, err = runs.command_line(capsys, "scaling", "fit", path)
    assert status == 2 and "3 of 4 cells are not finished" in err
    assert runs.command_line(capsys, "scaling", "run", path)[0] == 0
    assert first.stat() == before and not (first.parent / "samples.md").exists()  # there were no prompts
    status, out, err = runs.command_line(capsys, "scaling", "fit", path)
    assert status == 2 and "runs of 2 sizes; a parabola needs three" in err


def planted_sweep(folder, *, edge=False):
    """A finished sweep of 3 x 5 cells whose validation losses lie on parabolas."""
    sizes = [{"dim": d} for d in ((48, 56, 64, 72, 80) if edge else (16, 24, 36, 56, 84))]
    path = write_sweep(folder, budgets=[1e9, 2e9, 4e9], sizes=sizes)
    for cell in settle(sweep(folder, budgets=[1e9, 2e9, 4e9], sizes=sizes)):
        loss = 3 + 0.1 * math.log(cell.tokens / LAW(cell.budget)) ** 2 + 1e-5 * (cell.parameters % 7)
        cell.folder.mkdir(parents=True)
        row = {"step": cell.run.train.steps, "kind": "val", "loss": loss}
        (cell.folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return path


def test_the_fit_of_a_finished_sweep(tmp_path, capsys):
    path = planted_sweep(tmp_path)
    status, out, err = runs.command_line(capsys, "scaling", "fit", path, "--budget", "1e10")
    assert status == 0, err
    assert out.count("interior") == 3 and "NOT" not in out and "Held out 4e+09" in out
    status, out, err = runs.command_line(capsys, "scaling", "fit", path, "--json", "--budget", "1e10")
    facts = json.loads(out)
    assert facts["law"]["exponent"] == pytest.approx(0.55, abs=0.01)
    assert facts["prediction"]["tokens"] == pytest.approx(LAW(1e10), rel=0.03)
    assert abs(facts["held_out"]["off"]) < 0.05
    assert (tmp_path / "runs/sweep/isoflop.png").read_bytes().startswith(b"\x89PNG")


def test_a_minimum_at_the_edge_is_shown_and_refused(tmp_path, capsys):
    status, out, err = runs.command_line(capsys, "scaling", "fit", planted_sweep(tmp_path, edge=True))
    assert status == 2 and "NOT interior" in out and "Add smaller models to the grid" in err
    assert (tmp_path / "runs/sweep/isoflop.png").exists()
