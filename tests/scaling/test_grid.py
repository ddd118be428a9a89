"""The grid: FLOPs of every cell, the paper's recipe, and a plan that nothing changes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm.config import UserError
from min_llm.plan.flops import flops_per_token
from min_llm.scaling.grid import grid, settle
from min_llm.spec import Param
from min_llm.train.optim import optimizer
from min_llm.train.schedules import schedule
from tests.scaling.sweeps import sweep

VOCAB = 17
RAMP = {"until_tokens": 64, "batch_size": 2, "seq_len": 16}


def test_every_cell_spends_its_budget(tmp_path):
    cells = grid(sweep(tmp_path), VOCAB)
    assert [c.budget for c in cells] == [2e7, 2e7, 3e7, 3e7]
    assert [c.run.name for c in cells] == ["budget1-size1", "budget1-size2", "budget2-size1", "budget2-size2"]
    for cell in cells:
        cost = flops_per_token(cell.run.model, 16)
        assert cell.parameters == cost.n and cell.flops_per_token == cost.training
        assert cell.flops == cell.run.train.steps * 4 * 16 * cost.training
        assert cell.flops == pytest.approx(cell.budget, rel=0.05)
    # what follows from a width that the size alone gives: head_dim and hidden_dim
    assert cells[1].run.model == dataclasses.replace(
        type(cells[1].run.model)(n_layers=1, dim=24, n_heads=2, n_kv_heads=1),
        max_seq_len=16, dropout=0.1, vocab_size=VOCAB,
    )  # fmt: skip


def test_the_accounting_is_chosen(tmp_path):
    for name in ("6ND", "causal", "lingua"):
        for cell in grid(sweep(tmp_path, flops=name, budgets=[1e9]), VOCAB):
            cost = flops_per_token(cell.run.model, 16)
            assert cell.flops_per_token == (6 * cost.n if name == "6ND" else cost.of(name))
            assert cell.flops == pytest.approx(1e9, rel=0.01)


def test_rates_batches_and_warmup_by_size_and_budget(tmp_path):
    cells = grid(sweep(tmp_path, lrs=[4e-3, 2e-3], batch_sizes=[2, 4], warmup=0.2), VOCAB)
    assert [c.run.optim.lr for c in cells] == [4e-3, 2e-3, 4e-3, 2e-3]
    assert [c.run.train.batch_size for c in cells] == [2, 2, 4, 4]
    assert [c.run.optim.warmup for c in cells] == [round(0.2 * c.run.train.steps) for c in cells]


def test_the_recipe_of_the_paper(tmp_path):
    """L3-2.7: cosine to 0.1 of the peak; a step shrinks weights by 0.1 times its learning rate."""
    cfg = grid(sweep(tmp_path), VOCAB)[0].run
    steps, spec = cfg.train.steps, {"w": Param((3, 2), (None, None), 1.0, "matrix")}
    rate, ours = schedule(cfg.optim, steps), optimizer(cfg.optim, spec, steps)
    params = {"w": jnp.ones((3, 2))}
    state, zero = ours.init(params), jax.tree.map(jnp.zeros_like, params)
    for step in range(steps):
        change, state = ours.update(zero, state, params)
        np.testing.assert_allclose(change["w"], -0.1 * float(rate(step)), rtol=1e-5)
    assert float(rate(steps)) == pytest.approx(0.1 * cfg.optim.lr)
    middle = cfg.optim.warmup + (steps - cfg.optim.warmup) / 2
    assert float(rate(middle)) == pytest.approx(0.55 * cfg.optim.lr)


def test_a_plan_is_fixed_and_may_be_moved(tmp_path):
    cfg = sweep(tmp_path)
    cells = settle(cfg)
    assert cells == settle(cfg)
    assert all(c.run.model.vocab_size > 10 for c in cells)  # the tokenizer's
    with pytest.raises(
        UserError, match=r"was fixed with other settings \(budgets: .* Give another name=NAME"
    ):
        settle(dataclasses.replace(cfg, budgets=(2e7, 5e7)))
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = settle(dataclasses.replace(cfg, out=str(tmp_path / "moved")))
    assert [c.folder for c in moved] == [tmp_path / "moved/sweep/cells" / c.run.name for c in cells]
    (tmp_path / "moved/sweep/plan.json").write_text(json.dumps({"config": {}}))
    with pytest.raises(UserError, match="is damaged.*the same CONFIG writes the same plan"):
        settle(dataclasses.replace(cfg, out=str(tmp_path / "moved")))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budgets": []}, "at least one"),
        ({"sizes": [{"dim": 16}, {"dim": 16}]}, "none of them twice"),
        ({"budgets": [-1.0]}, "above 0"),
        ({"lrs": [1e-3]}, "'lrs' has 1 values for 2 sizes"),
        ({"batch_sizes": [4]}, "'batch_sizes' has 1 values for 2 budgets"),
        ({"warmup": 1.0}, "share of the steps"),
        ({"budgets": [1e6]}, "miss the budget of 1e\\+06 by more than 5%"),
        ({"run": {"optim": {"over": "tokens"}}}, "a schedule that ends with them"),
        ({"run": {"train": {"ramp": [RAMP]}}}, "batches of one size"),
        ({"run": {"name": "mine"}}, "'run.name' is given by the sweep"),
        ({"run": {"trian": {}}}, "Unknown configuration key 'run.trian'. Did you mean 'train'"),
        ({"sizes": [{"depth": 3}]}, "Unknown configuration key 'run.model.depth'"),
    ],
)
def test_a_grid_that_cannot_run_is_refused(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        grid(sweep(tmp_path, **changes), VOCAB)
