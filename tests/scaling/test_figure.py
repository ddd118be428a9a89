"""What the figures show is what was measured and fitted."""

import pytest

from min_llm.scaling.downstream import fit_two_stage, leave_largest_out
from min_llm.scaling.figure import draw_two_stage
from tests.scaling.test_downstream import planted


def test_the_held_out_model_lies_beside_its_prediction():
    models, others = planted(500), planted(500, seed=1)[:4]
    held, fitted = leave_largest_out(models, 0.25, others), fit_two_stage(models[:-1], 0.25, others)
    left, right = draw_two_stage(models, others, fitted, held, "planted").axes
    lines = {line.get_label(): line.get_xydata() for line in left.lines}
    assert lines["held out"].tolist() == [[models[-1].flops, models[-1].nll]]
    assert lines["fitted"].tolist() == [[m.flops, m.nll] for m in models[:-1]]
    lines = {line.get_label(): line.get_xydata() for line in right.lines}
    assert lines["predicted"][0] == pytest.approx((fitted.line(models[-1].flops), fitted(models[-1].flops)))
    assert lines["fitted, other sizes"].tolist() == [[m.nll, m.accuracy.value] for m in others]
    (bar,) = right.containers
    low, high = held.measured.interval
    assert bar.lines[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([low, high])
