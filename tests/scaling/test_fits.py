"""IsoFLOP fits on grids whose law was planted, and the numbers of the paper."""

import dataclasses
import math

import numpy as np
import pytest

from min_llm.config import UserError
from min_llm.scaling.fits import LLAMA3, Measured, Prediction, fit, fit_isoflop, fit_law, hold_out_largest
from min_llm.scaling.power import PowerLaw, fit_power_law

BUDGETS = (1e14, 3e14, 1e15, 3e15, 1e16)
SPREAD = (-1.5, -0.8, -0.1, 0.6, 1.3)  # ln tokens of the runs, from a centre that is not the optimum
LAW = PowerLaw(0.299, 0.537)


def planted(law=LAW, budgets=BUDGETS, noise=0.0, seed=0, flattening=-0.1, spread=SPREAD):
    """Runs whose curves have their minima on the law, losses that fall, and curvatures that fall as C^flattening."""
    random, runs = np.random.default_rng(seed), []
    for budget in budgets:
        lowest, curvature = 1.7 + 30 * budget**-0.1, 0.08 * (budget / budgets[0]) ** flattening
        for at in spread:
            loss = lowest + curvature * at**2 + noise * random.standard_normal()
            tokens = law(budget) * np.exp(at)
            runs.append(Measured(budget, round(budget / 6 / tokens), tokens, loss))
    return runs


def test_the_paper():
    """Finding F1a: the digits of the legend give the tokens that the text states, those of the text do not."""
    assert LLAMA3(3.8e25) == pytest.approx(16.29e12, rel=1e-3)
    assert LLAMA3(3.8e25) == pytest.approx(16.55e12, rel=0.02)
    assert PowerLaw(0.29, 0.53)(3.8e25) == pytest.approx(10.46e12, rel=1e-3)
    # F1b: C = 6ND makes that 389B parameters, not the 402B of the text
    assert Prediction(3.8e25, LLAMA3(3.8e25), (0, 0)).parameters == pytest.approx(388.8e9, rel=1e-3)


@pytest.mark.parametrize("law", [LAW, PowerLaw(5.0, 0.45), PowerLaw(0.02, 0.6)])
def test_a_planted_law_is_recovered(law):
    runs = planted(law)
    found = fit(runs[::-1])  # in any order
    assert found.law.exponent == pytest.approx(law.exponent, rel=0.01)
    assert found.law.coefficient == pytest.approx(law.coefficient, rel=0.01)
    assert found.law.r2 > 0.999
    assert found.predict(1e18).tokens == pytest.approx(law(1e18), rel=0.01)
    for curve, budget in zip(found.curves, BUDGETS, strict=True):
        assert curve.interior and curve.budget == budget
        assert curve.loss == pytest.approx(1.7 + 30 * budget**-0.1)
        mine = [r for r in runs if r.budget == budget]
        np.testing.assert_allclose(curve(np.array([r.tokens for r in mine])), [r.loss for r in mine])


def test_curves_that_flatten():
    found = fit(planted(flattening=-0.2, noise=2e-4))
    low, high = found.flattening_interval
    assert low < -0.2 < high < 0
    assert fit(planted(flattening=0.0)).flattening.exponent == pytest.approx(0, abs=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of the exponent and of a prediction one order of magnitude beyond the grid, on 300 noisy grids."""
    exponent, prediction, n = 0, 0, 300
    for seed in range(n):
        found = fit(planted(noise=0.004, seed=seed), draws=400)
        low, high = found.exponent_interval
        exponent += low <= LAW.exponent <= high
        low, high = found.predict(1e17).interval
        prediction += low <= LAW(1e17) <= high
    assert 0.88 <= exponent / n <= 0.98
    assert 0.88 <= prediction / n <= 0.98


def test_the_same_seed_gives_the_same_interval():
    runs = planted(noise=0.004)
    assert fit(runs).predict(1e17) == fit(runs).predict(1e17)
    assert fit(runs).predict(1e17).interval != fit(runs, seed=1).predict(1e17).interval


def test_the_largest_budget_is_predicted_by_the_others():
    held = hold_out_largest(planted(noise=0.001))
    assert held.inside and abs(held.off) < 0.3
    bent = [
        r if r.budget < 1e16 else dataclasses.replace(r, tokens=2 * r.tokens) for r in planted(noise=0.001)
    ]
    held = hold_out_largest(bent)
    assert not held.inside and held.off == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize(
    ("spread", "advice"), [((-3.0, -2, -1, -0.5), "Add smaller models"), ((0.5, 1, 2), "Add larger models")]
)
def test_a_minimum_at_the_edge_is_refused(spread, advice):
    runs = planted(budgets=BUDGETS[:2]) + planted(budgets=BUDGETS[2:3], spread=spread)
    curves = fit_isoflop(runs)
    assert [c.interior for c in curves] == [True, True, False]
    with pytest.raises(UserError, match=rf"curve of 1e\+15 FLOPs.*outside of them\. {advice}"):
        fit_law(curves)


def test_a_run_that_diverged_is_left_out():
    runs = planted(noise=0.002)
    worse = [dataclasses.replace(r, loss=math.inf) if r.tokens == runs[0].tokens else r for r in runs]
    assert [c.diverged for c in fit_isoflop(worse)] == [1, 0, 0, 0, 0]
    assert [dataclasses.replace(c, diverged=0) for c in fit_isoflop(worse)] == list(fit_isoflop(runs[1:]))
    assert fit(worse).law == fit(runs[1:]).law
    broken = [dataclasses.replace(r, loss=math.inf) if r.tokens > r.budget**0.5 else r for r in runs]
    with pytest.raises(UserError, match=r"runs of \d sizes beside \d that diverged; a parabola needs three"):
        fit(broken)


def test_what_cannot_be_fitted_is_said():
    bowed = [dataclasses.replace(r, loss=-r.loss) for r in planted(budgets=BUDGETS[:2])]
    with pytest.raises(UserError, match="no minimum: its runs bend downwards"):
        fit_law(fit_isoflop(bowed))
    with pytest.raises(UserError, match="runs of 2 sizes; a parabola needs three"):
        fit(planted(spread=SPREAD[:2]))
    with pytest.raises(UserError, match="Add a fourth size"):
        fit(planted(spread=(-1.0, 0.2, 1.0)))
    with pytest.raises(UserError, match="two budgets or more; the grid has 1"):
        fit(planted(budgets=BUDGETS[:1]))
    with pytest.raises(UserError, match="of the resamples some curve has no minimum"):
        fit(planted(noise=0.08, seed=3))
    with pytest.raises(UserError, match="positive numbers; the smallest given is -2"):
        fit_power_law([1, 2], [3, -2])
