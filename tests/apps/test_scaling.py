"""The published scaling laws are those of the published cells, and their configurations can be planned and trained."""

import json

import pytest

from apps.scaling import isoflop, mixes
from bench.results import ROOT
from min_llm import config as config_lib
from min_llm.scaling import fits
from min_llm.scaling.grid import grid
from min_llm.train.config import RunConfig, check

ROWS = json.loads((ROOT / "apps/scaling/results.json").read_text())


def published(metric):
    return [row for row in ROWS if row["metric"] == metric]


def test_the_cells_are_those_of_the_grid(tmp_path):
    cells = grid(isoflop.load(tmp_path), vocab_size=99)
    found = {r["case"]: (r["budget"], r["parameters"], r["tokens"]) for r in published("val_loss")}
    assert found == {c.run.name: (c.budget, c.parameters, c.tokens) for c in cells}


def test_the_law_follows_from_the_cells():
    runs = [
        fits.Measured(r["budget"], r["parameters"], r["tokens"], r["ours"]) for r in published("val_loss")
    ]
    for found, row in zip(fits.fit_isoflop(runs), published("optimal_tokens"), strict=True):
        assert (found.optimum, found.curvature) == pytest.approx((row["ours"], row["curvature"]))
        assert ("yes" if found.interior else "no") == row["interior"]
    for found, row in zip(
        isoflop.law_rows(runs, "bfloat16"), published("exponent") + published("held_out_tokens"), strict=True
    ):
        assert {k: v for k, v in found.items() if v is not None} == pytest.approx(
            {k: row[k] for k in found if found[k] is not None}
        )


def test_the_mixes_load():
    cfg = check(config_lib.load(RunConfig, mixes.CONFIG))
    assert sorted(cfg.data.parts) == sorted(mixes.SOURCES)
