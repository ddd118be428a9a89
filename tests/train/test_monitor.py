"""The loss-spike monitor on injected spikes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from min_llm.config import UserError
from min_llm.nn.initial import init
from min_llm.train.config import check
from min_llm.train.loop import Hook
from min_llm.train.monitor import NEEDED, WINDOW, SpikeMonitor, Watch
from min_llm.train.step import init_state, make_step
from tests.train.runs import TOY, comparable, configuration, differences, toy_batch, toy_loss, train
from tests.train.test_resume import signal_at


def losses(n, seed=0):
    return 3 + 0.05 * np.random.default_rng(seed).normal(size=n)


@pytest.mark.parametrize("place", [NEEDED, 60, 500])
def test_an_injected_spike_is_found_and_nothing_else(place):
    values = losses(600)
    values[place] += 0.6
    monitor = SpikeMonitor(6.0)
    found = {i: z for i, x in enumerate(values) if (z := monitor.feed(x)) is not None}
    assert list(found) == [place]
    assert found[place] == pytest.approx(12, rel=0.5)  # 0.6 is 12 deviations


def test_a_falling_loss_is_no_spike():
    monitor = SpikeMonitor(6.0)
    assert [monitor.feed(8 * 0.99**i) for i in range(400)] == [None] * 400


def test_a_spike_hides_no_second_one():
    monitor = SpikeMonitor(6.0)
    values = losses(200)
    values[[100, 110]] += 1.0
    assert [i for i, x in enumerate(values) if monitor.feed(x) is not None] == [100, 110]


def test_a_loss_that_stays_high_becomes_normal():
    monitor = SpikeMonitor(6.0)
    values = losses(400)
    values[200:] += 2
    found = [i for i, x in enumerate(values) if monitor.feed(x) is not None]
    assert found[0] == 200 and len(found) < 30 and found[-1] < 260


def test_it_waits_for_enough_losses_and_can_be_off():
    assert SpikeMonitor(6.0).feed(1e9) is None
    early, off = SpikeMonitor(6.0), SpikeMonitor(0.0)
    for x in losses(NEEDED - 1):
        assert early.feed(x) is None and off.feed(x) is None
    assert early.feed(100.0) is None and off.feed(100.0) is None


def test_a_monitor_that_is_filled_again_goes_on_as_before():
    """What a checkpoint keeps of it is enough."""
    values = losses(300)
    values[150::20] += 1
    whole, halves = SpikeMonitor(6.0), SpikeMonitor(6.0)
    expected = [whole.feed(x) for x in values]
    found = [halves.feed(x) for x in values[:170]]
    again = SpikeMonitor(6.0)
    again.recent.extend(halves.recent)
    assert len(halves.recent) == WINDOW
    assert found + [again.feed(x) for x in values[170:]] == expected


def test_the_watch_inside_a_step_judges_as_the_monitor_does():
    """Over the loss, with a norm that never changes; and again over the logarithm of the norm."""
    values = losses(160)
    values[[90, 120, 121]] += 1.0
    monitor = SpikeMonitor(6.0)
    expected = [i for i, x in enumerate(values) if monitor.feed(x) is not None]
    assert expected == [90, 120, 121]
    feed = jax.jit(lambda watch, loss, norm: watch.feed(loss, norm, 6.0))
    for as_loss in (True, False):
        watch, found = Watch.start(), []
        for i, x in enumerate(values):
            watch, spike = feed(watch, *((x, 1.0) if as_loss else (3.0, np.exp(x))))
            if spike:
                found.append(i)
        assert found == expected


SKIPPING = {"train.steps": 40, "train.spike_skip": True, "train.log_every": 1, "optim.lr": 0.1}


def test_the_update_of_an_injected_spike_is_left_out(tmp_path):
    """Step 30 of the toy has another language: with the skip its update changes nothing but the counters."""
    seen = {}
    for name, skip in (("skip", True), ("plain", False)):
        seen[name] = {}

        def look(done, params, into=seen[name]):
            into[done] = np.asarray(params["head"])

        changes = SKIPPING | {"train.spike_skip": skip, "model.dropout": 0.0}
        train(configuration(tmp_path, name, **changes), [Hook("look", 1, look)])
    events = [r for r in comparable(tmp_path / "runs/skip") if r["kind"] == "event"]
    skipped = [r["step"] for r in events if r["event"] == "skipped"]
    assert skipped == [31]  # the step after 30 are done, with the batch of number 30
    assert (seen["skip"][31] == seen["skip"][30]).all()
    assert (seen["skip"][30] == seen["plain"][30]).all()
    assert (seen["plain"][31] != seen["plain"][30]).any()
    assert (seen["skip"][32] != seen["skip"][31]).any()
    rates = [[r["lr"] for r in comparable(tmp_path / "runs" / n) if r["kind"] == "train"] for n in seen]
    assert rates[0] == rates[1]


def test_counters_go_on_when_an_update_is_left_out():
    made = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(lambda n: 0.1 * (n + 1)))
    step = jax.jit(make_step(toy_loss(), made, spike_z=6.0))
    params = init(TOY, jax.random.key(0))
    watch = Watch(jnp.zeros((2, WINDOW)) - 9.0, jnp.int32(WINDOW))  # so far no loss was above -9
    before = init_state(params, made, watched=True)
    before = dataclasses.replace(before, watch=watch)
    after, out = step(before, toy_batch(0))
    assert bool(out["skipped"]) and int(after.step) == 1
    for old, new in zip(jax.tree.leaves(before.opt), jax.tree.leaves(after.opt), strict=True):
        assert (new == old).all() if new.dtype == jnp.float32 else int(new) == int(old) + 1
    assert all(
        (a == b).all() for a, b in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True)
    )


def test_skipping_resumes(tmp_path):
    """Stopped before and after the spike, the run ends as one that never was."""
    whole, stopped = (configuration(tmp_path, name, **SKIPPING) for name in ("whole", "stopped"))
    train(whole)
    for at in (27, 35):
        assert not train(stopped, [signal_at(at)]).finished
    assert train(stopped).finished
    assert differences(tmp_path / "runs/stopped", tmp_path / "runs/whole") == []


def test_skipping_without_a_threshold_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"spike_skip' needs 'train.spike_z'"):
        check(configuration(tmp_path, **{"train.spike_skip": True, "train.spike_z": 0.0}))
