"""The two stages on planted models, the largest of which is predicted from the others."""

import math

import numpy as np
import pytest

from min_llm.config import UserError
from min_llm.evals.choices import Choices, Question
from min_llm.evals.intervals import Accuracy
from min_llm.evals.scoring import Score
from min_llm.scaling.downstream import (
    Line,
    Scored,
    Sigmoid,
    fit_sigmoid,
    fit_two_stage,
    leave_largest_out,
    scored,
)

LINE, SIGMOID = Line(4.2, -0.075), Sigmoid(0.25, 6.0, 6.0)
FLOPS = np.geomspace(1e14, 1e20, 7)


def planted(questions, seed=0, flops=FLOPS):
    """Models on the two curves; their answers drawn, as a benchmark of so many questions draws them."""
    random = np.random.default_rng(seed)
    nlls = [LINE(c) + 0.005 * random.standard_normal() for c in flops]
    right = [random.binomial(questions, SIGMOID(nll)) for nll in nlls]
    return [Scored(c, nll, Accuracy(int(k), questions)) for c, nll, k in zip(flops, nlls, right, strict=True)]


def test_the_planted_curves_are_recovered():
    nlls = np.linspace(0.5, 2, 8)
    count = 10**9
    exact = [Accuracy(round(SIGMOID(x) * count), count) for x in nlls]
    found = fit_sigmoid(nlls, exact, 0.25)
    assert (found.bias, found.steepness) == pytest.approx((6.0, 6.0), rel=1e-5)
    found = fit_two_stage(planted(10**6), 0.25)
    assert (found.line.offset, found.line.slope) == pytest.approx((4.2, -0.075), rel=0.02)
    assert found(1e22) == pytest.approx(SIGMOID(LINE(1e22)), abs=0.01)


def test_the_fit_is_the_maximum_of_the_likelihood():
    """Against a grid around it, with few questions and models below chance."""
    models = planted(40, seed=2)
    nlls, answers = [m.nll for m in models], [m.accuracy for m in models]
    found = fit_sigmoid(nlls, answers, 0.25)

    def likelihood(bias, steepness):
        p = [Sigmoid(0.25, bias, steepness)(x) for x in nlls]
        return sum(
            a.correct * math.log(q) + (a.count - a.correct) * math.log(1 - q)
            for a, q in zip(answers, p, strict=True)
        )

    best = likelihood(found.bias, found.steepness)
    for change in (0.9, 0.99, 0.999, 1.001, 1.01, 1.1):
        assert likelihood(found.bias * change, found.steepness) < best
        assert likelihood(found.bias, found.steepness * change) < best
        assert likelihood(found.bias * change, found.steepness * change) < best


def test_the_largest_is_predicted_from_the_others():
    """It lies in the interval of what was measured with 500 questions about as often as the truth does."""
    inside = [
        leave_largest_out([*planted(5000, seed)[:-1], planted(500, seed)[-1]], 0.25).inside
        for seed in range(100)
    ]
    assert 0.88 <= np.mean(inside) < 1
    models = planted(5000)
    broken = [*models[:-1], Scored(FLOPS[-1], models[-1].nll, Accuracy(150, 500))]
    held = leave_largest_out(broken, 0.25)
    assert not held.inside and held.measured.value == 0.3 and held.predicted > 0.5


def test_models_of_other_recipes_carry_the_second_stage():
    """All small models at chance; the large ones of another recipe have been there."""
    small = [
        Scored(m.flops, m.nll, Accuracy(125, 500)) for m in planted(500, flops=np.geomspace(1e10, 1e12, 4))
    ]
    with pytest.raises(UserError, match=r"No model answers clearly above chance \(25%\)"):
        fit_two_stage(small, 0.25)
    others = [Scored(math.nan, x, Accuracy(round(10**5 * SIGMOID(x)), 10**5)) for x in (0.6, 0.8, 1.0, 1.2)]
    found = fit_two_stage(small, 0.25, others)
    assert found(1e20) == pytest.approx(SIGMOID(LINE(1e20)), abs=0.05)


def test_the_right_answers_per_character():
    asked = [Question("a", ("bcd", "e"), 0), Question("f", ("g", "éh"), 1)]
    scores = tuple(tuple(Score(-x, 1, False) for x in some) for some in ((3.0, 2.0), (9.0, 1.5)))
    accuracy = Accuracy(1, 2)
    found = Choices(Accuracy(0, 2), Accuracy(2, 2), accuracy, 0.5, scores)
    assert scored(1e12, asked, found) == Scored(1e12, 4.5 / 5, accuracy)


def test_what_cannot_be_fitted_is_said():
    models = planted(100)
    with pytest.raises(UserError, match="chance is 1.5"):
        fit_two_stage(models, 1.5)
    with pytest.raises(UserError, match="two different losses"):
        fit_sigmoid([1.0, 1.0], [Accuracy(9, 10)] * 2, 0.25)
    with pytest.raises(UserError, match="two different FLOPs"):
        fit_two_stage([models[-1]], 0.25, models)
