"""Learning rates against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.train.config import OptimConfig
from min_llm.train.schedules import schedule

SHAPES = ("cosine", "linear", "wsd", "constant")


def test_llama_3():
    """Section 3.4.1: peak 8e-5, linear warmup of 8,000 steps, cosine to 8e-7 over 1,200,000."""
    rate = schedule(OptimConfig(lr=8e-5, warmup=8_000, min_lr=0.01), 1_200_000)
    expected = {0: 8e-5 / 8_001, 8_000: 8e-5, 604_000: (8e-5 + 8e-7) / 2, 1_200_000: 8e-7}
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-5), step
    assert float(rate(2_000_000)) == pytest.approx(8e-7, rel=1e-5)  # and stays there


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(SHAPES), st.integers(0, 50), st.integers(60, 300), st.floats(0, 1), st.integers(0, 320)
)
def test_closed_forms(shape, warmup, steps, min_lr, step):
    cfg = OptimConfig(lr=0.5, schedule=shape, warmup=warmup, min_lr=min_lr, wsd_decay=0.25)
    start = max(warmup, round(0.75 * steps)) if shape == "wsd" else warmup
    done = min(max((step - start) / (steps - start), 0), 1)
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1}.get(shape, 1 - done)
    expected = 0.5 * (step + 1) / (warmup + 1) if step < warmup else 0.5 * (min_lr + (1 - min_lr) * left)
    assert float(schedule(cfg, steps)(step)) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rate_rises_to_the_peak_then_never_rises_again(shape):
    rate = schedule(OptimConfig(lr=1.0, schedule=shape, warmup=10, min_lr=0.1), 100)
    rates = np.asarray(jax.vmap(rate)(jnp.arange(101)))
    assert (np.diff(rates[:11]) > 0).all() and rates[10] == 1.0
    assert (np.diff(rates[10:]) <= 0).all()
    assert rates[100] == pytest.approx(1.0 if shape == "constant" else 0.1)


def test_decay_steps_end_the_decay_before_the_run_ends():
    rate = schedule(OptimConfig(lr=1.0, warmup=0, min_lr=0.1, decay_steps=50), 100)
    assert float(rate(25)) == pytest.approx(0.55)
    assert float(rate(50)) == float(rate(99)) == pytest.approx(0.1)


def test_the_same_under_jit():
    rate = schedule(OptimConfig(warmup=7), 90)
    for step in (0, 6, 7, 50, 89):
        assert float(jax.jit(rate)(jnp.int32(step))) == pytest.approx(float(rate(step)), rel=1e-6)
