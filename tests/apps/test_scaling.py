"""The published scaling laws are those of the published cells, and the configurations are those that were run."""

import json

import pytest

from apps.scaling import isoflop, mixes
from bench.results import ROOT
from min_llm import config as config_lib
from min_llm.scaling import fits
from min_llm.scaling.grid import grid
from min_llm.train.config import RunConfig, check

VOCAB = 99  # characters of the State of the Union addresses
ROWS = json.loads((ROOT / "apps/scaling/results.json").read_text())
CELLS = [row for row in ROWS if row["metric"] == "val_loss"]


def test_the_cells_are_those_of_the_grid(tmp_path):
    cells = [c for changes in ((), isoflop.LARGER) for c in grid(isoflop.load(tmp_path, changes), VOCAB)]
    found = {row["case"]: (row["budget"], row["parameters"], row["tokens"]) for row in CELLS}
    assert found == {isoflop.name_of(c): (c.budget, c.parameters, c.tokens) for c in cells}


def test_the_laws_follow_from_the_cells(capsys):
    runs = [fits.Measured(r["budget"], r["parameters"], r["tokens"], r["ours"]) for r in CELLS]
    published = {(row["case"], row["metric"]): row for row in ROWS}
    made = [
        row for name, some in isoflop.sets(runs).items() for row in isoflop.fit_rows(name, some, "bfloat16")
    ]
    assert len(made) == 19
    for row in made:
        known = published[row["case"], row["metric"]]
        for field, value in row.items():
            assert known[field] == (pytest.approx(value) if isinstance(value, float | list) else value), field


def test_the_mixes_load():
    cfg = check(config_lib.load(RunConfig, mixes.CONFIG))
    assert sorted(cfg.data.parts) == sorted(mixes.SOURCES)
