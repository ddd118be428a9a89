"""The loss-spike monitor on injected spikes."""

import numpy as np
import pytest

from min_llm.train.monitor import NEEDED, WINDOW, SpikeMonitor


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
