"""Batches and rows that grow with the tokens seen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.train.config import Phase, TrainConfig, check
from min_llm.train.pretrain import pretraining
from min_llm.train.ramp import Ramp
from tests.train.runs import comparable, configuration, differences, text, toy, train
from tests.train.test_resume import signal_at

LLAMA_3 = TrainConfig(
    ramp=(Phase(252_000_000, 1024, 4096), Phase(2_870_000_000_000, 1024, 8192)), batch_size=2048, seq_len=8192
)
RAMP = [
    {"until_tokens": 100, "batch_size": 2, "seq_len": 8},
    {"until_tokens": 200, "batch_size": 4, "seq_len": 8},
]


def test_llama_3_takes_the_steps_that_its_schedule_has_room_for():
    """4M, 8M, 16M tokens a step to 15.6T: 1.10 to 1.15M steps, and the cosine ends at 1.2M (section 3.4.1)."""
    ramp = Ramp.of(LLAMA_3)
    assert [s.tokens_per_step for s in ramp.spans] == [2**22, 2**23, 2**24]
    steps = ramp.steps(15_600_000_000_000)
    assert 1.10e6 < steps < 1.15e6 < 1.2e6
    by_hand = 61 + -(-(2.87e12 - 61 * 2**22) // 2**23)
    by_hand += -(-(15.6e12 - (61 * 2**22 + (by_hand - 61) * 2**23)) // 2**24)
    assert steps == by_hand


phases = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 5), st.sampled_from([2, 4, 8])), max_size=4)


@settings(deadline=None, max_examples=60)
@given(phases, st.integers(0, 200))
def test_tokens_are_the_sum_over_the_steps(given_phases, step):
    until, ramp = 0, []
    for more, rows, length in given_phases:
        until += more + 40  # a phase may overshoot by less than a step
        ramp.append(Phase(until, rows, length))
    cfg = TrainConfig(ramp=tuple(ramp), batch_size=6, seq_len=16)
    made, seen = Ramp.of(cfg), 0
    for k in range(step):
        wanted = next(((p.batch_size, p.seq_len) for p in ramp if seen < p.until_tokens), (6, 16))
        assert (made.at(k).batch_size, made.at(k).seq_len) == wanted
        assert made.tokens(k) == seen
        seen += wanted[0] * wanted[1]
        assert made.steps(seen) == k + 1 and made.steps(seen - 1) == k + 1
    for xp in (np, jnp):
        at, size = made.places(xp.asarray([float(step)]))
        assert float(at[0]) == made.tokens(step) and float(size[0]) == made.at(step).tokens_per_step


def test_places_are_the_same_under_jit_and_exact_enough_for_trillions():
    ramp = Ramp.of(LLAMA_3)
    for step in (0, 60, 61, 300_000, 1_100_000):
        at, _ = jax.jit(ramp.places)(jnp.float32(step))
        assert float(at) == pytest.approx(ramp.tokens(step), rel=2e-7)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_stream_goes_on_over_a_boundary(tmp_path, mixed):
    """Rows of equal length are dealt once each, whatever the batches; of a mix its account goes on, too."""
    given = {"data.source": "", "data.mix": [{"weights": {str(text(tmp_path)): 1.0}}]} if mixed else {}
    cfg = configuration(tmp_path, **{"train.ramp": RAMP, "train.seq_len": 8, "train.batch_size": 8}, **given)
    _, task, data = pretraining(cfg)
    rows = [row.tobytes() for k in range(14) for row in np.asarray(task.batch(k).tokens)]
    (part,) = data.parts.values()
    n = part.train.n_targets // 8
    assert len(rows) == 7 * 2 + 3 * 4 + 4 * 8
    steady = configuration(tmp_path, **{"train.seq_len": 8, "train.batch_size": len(rows)}, **given)
    assert n > len(rows)
    expected = pretraining(steady)[1].batch(0)
    assert rows == [row.tobytes() for row in np.asarray(expected.tokens)]
    if mixed:
        (tokens,) = [v for k, v in task.account(14).items() if k.startswith("tokens/")]
        assert tokens == Ramp.of(cfg.train).tokens(14) == 8 * len(rows)


@pytest.mark.newest
def test_a_resumed_run_is_the_same_run_over_a_boundary(tmp_path):
    """Stopped in the first phase and after the second; rows of 8, then of 16; a schedule over tokens."""
    changes = {
        "train.ramp": RAMP, "train.steps": 14, "train.eval_every": 0, "train.log_every": 1,
        "optim.over": "tokens", "optim.warmup": 150,
    }  # fmt: skip
    whole, stopped = (configuration(tmp_path, name, **changes) for name in ("whole", "stopped"))
    batch = pretraining(whole)[1].batch  # the real data, under a model that compiles quickly
    task = dataclasses.replace(toy(whole), batch=batch)
    train(whole, task=task)
    for at in (3, 9):
        assert not train(stopped, [signal_at(at)], task).finished
    assert train(stopped, task=task).finished
    assert differences(tmp_path / "runs/stopped", tmp_path / "runs/whole") == []
    rows = [r for r in comparable(tmp_path / "runs/whole") if r["kind"] == "train"]
    ramp = Ramp.of(whole.train)
    assert [r["tokens"] for r in rows] == [ramp.tokens(k) for k in range(1, 15)]
    assert [r["tokens"] for r in rows][5:12] == [96, 112, 144, 176, 208, 272, 336]
    warm = [r["lr"] for r in rows[:8]]
    seen = [(ramp.tokens(k) + ramp.at(k).tokens_per_step, 150 + ramp.at(k).tokens_per_step) for k in range(8)]
    assert warm == pytest.approx([3e-3 * a / b for a, b in seen], rel=1e-5)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"train.ramp": RAMP[::-1]}, "listed in order"),
        ({"train.ramp": [{"until_tokens": 9, "batch_size": 0, "seq_len": 8}]}, r"ramp\[0\].*at least 1"),
        ({"train.ramp": [{"until_tokens": 9, "batch_size": 1, "seq_len": 99}]}, r"ramp\[0\].seq_len' is 99"),
        ({"train.ramp": RAMP, "train.micro_batches": 4}, r"ramp\[0\].batch_size' \(2\) must be a multiple"),
    ],
)
def test_what_cannot_be_a_ramp_is_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        Ramp.of(check(configuration(tmp_path, **changes)).train)
