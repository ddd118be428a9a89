"""Learning rates against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.nn.initial import init
from min_llm.spec import Param
from min_llm.train.config import OptimConfig, Phase, TrainConfig
from min_llm.train.optim import optimizer
from min_llm.train.ramp import Ramp
from min_llm.train.schedules import planned, schedule, weight_decay

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


def test_over_tokens_a_step_has_the_rate_of_the_tokens_it_ends_with():
    """Warmup over 40 tokens of steps of 10 then 20; then linear to zero at the last token."""
    cfg = OptimConfig(lr=1.0, schedule="linear", over="tokens", warmup=40, min_lr=0.0)
    ramp = Ramp.of(TrainConfig(ramp=(Phase(20, 1, 10),), batch_size=1, seq_len=20))
    rates = [float(schedule(cfg, 10, ramp)(k)) for k in range(11)]
    assert ramp.tokens(10) == 180
    expected = [10 / 50, 20 / 50, 40 / 60] + [1 - (20 * k - 20 - 40) / 140 for k in range(3, 11)]
    assert rates == pytest.approx(expected, rel=1e-5) and rates[10] == 0.0


def test_steps_of_equal_size_make_tokens_and_steps_the_same_schedule():
    train = TrainConfig(batch_size=4, seq_len=8)
    for shape in SHAPES:
        over_steps = schedule(OptimConfig(schedule=shape, warmup=10), 100)
        over_tokens = schedule(OptimConfig(schedule=shape, warmup=320, over="tokens"), 100, Ramp.of(train))
        for step in (0, 5, 10, 50, 99):  # step k is (k + 1) / (warmup + 1) of the way, in either unit
            assert float(over_tokens(step)) == pytest.approx(float(over_steps(step)), rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_weight_decay_is_a_tenth_of_the_rate_at_every_step(tied):
    """Section 3.2.1: 0.1 times the learning rate at that step; or, untied, a constant share."""
    cfg = OptimConfig(lr=2e-2, warmup=4, weight_decay=0.1, decay_with_lr=tied, clip=0.0)
    spec = {"w": Param((3, 4), ("embed", "hidden"), 0.5, "matrix")}
    ours, rate, params = optimizer(cfg, spec, 12), schedule(cfg, 12), init(spec, jax.random.key(0))
    state, still = ours.init(params), jax.tree.map(jnp.zeros_like, params)
    for step in range(12):
        change, state = ours.update(still, state, params)  # without a gradient only the decay is left
        share = 0.1 * float(rate(step)) if tied else 0.1
        np.testing.assert_allclose(change["w"], -share * params["w"], rtol=1e-5)
        assert float(weight_decay(cfg, rate(step))) == pytest.approx(share, rel=1e-6)


def test_what_is_planned_is_what_training_does():
    """The plotted columns (NumPy) against the schedule under jit and the ramp, with each phase's ends among them."""
    train = TrainConfig(ramp=(Phase(500, 2, 16), Phase(2_000, 4, 16)), batch_size=8, seq_len=32, steps=5_000)
    for over in ("steps", "tokens"):
        cfg, ramp = OptimConfig(warmup=100, over=over), Ramp.of(train)
        found = planned(cfg, train, points=50)
        rate = jax.jit(schedule(cfg, train.steps, ramp))
        steps = found["step"].astype(int)
        assert {0, 15, 16, 4_999} <= set(steps) and len(steps) <= 60 and (np.diff(steps) > 0).all()
        for i, step in enumerate(steps):
            assert found["lr"][i] == pytest.approx(float(rate(step)), rel=1e-4)
            assert found["tokens"][i] == ramp.tokens(step)
            assert found["batch_tokens"][i] == ramp.at(step).tokens_per_step
            assert found["seq_len"][i] == ramp.at(step).seq_len
        np.testing.assert_allclose(found["weight_decay"], 0.1 * found["lr"])
