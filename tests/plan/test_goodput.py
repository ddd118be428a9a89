"""Goodput under failures: Daly's formula against a simulation, the best interval, the paper's failures."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.plan.goodput import LLAMA3_MTBF, Failing, simulate


@pytest.mark.parametrize("restart", (0.0, 30.0, 900.0))
@pytest.mark.parametrize("interval", (60.0, 450.0, 3000.0))
def test_the_formula_is_what_a_simulation_gives(interval, restart):
    run = Failing(mtbf=3600, save=20, restart=restart)
    found = np.mean([simulate(run, interval, 4000, seed) for seed in range(5)])
    assert found == pytest.approx(run.goodput(interval), rel=0.02)


@given(st.floats(100, 1e6), st.floats(0.001, 0.5), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_no_interval_is_better_than_the_best(mtbf, save, restart):
    run = Failing(mtbf, save * mtbf, restart * mtbf)
    best = run.goodput(run.best)
    assert 0 < best <= 1
    assert all(
        run.goodput(run.best * factor) <= best * (1 + 1e-9) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2)
    )


def test_young_is_its_limit_for_short_saves():
    assert Failing(1e6, 1).best == pytest.approx(math.sqrt(2e6), rel=1e-3)
    assert Failing(100, 50).best < Failing(100, 50).young


def test_llama_3_had_an_interruption_every_three_hours_and_more_than_90_percent():
    assert pytest.approx(2.78, abs=0.01) == LLAMA3_MTBF / 3600
    run = Failing(LLAMA3_MTBF, save=5, restart=300)
    assert run.goodput(run.best) > 0.9
    assert run.goodput(3600) < 0.9  # hourly saves would lose too much
    slow = Failing(LLAMA3_MTBF, save=120, restart=1200)
    assert slow.goodput(slow.best) < 0.9


def test_what_makes_no_plan_is_refused():
    with pytest.raises(UserError, match="make no plan"):
        Failing(0, 10)
