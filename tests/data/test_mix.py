"""Which source each window comes from: shares that hold in every stretch, counts without counting, sentences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.data.mix import UNIT, Phase, Schedule, check_phases, floor_sum

PAPER = {"general": 0.5, "math": 0.25, "code": 0.17, "multilingual": 0.08}  # Llama 3, section 3.1.2
LATER = {"general": 0.3, "math": 0.4, "code": 0.2, "multilingual": 0.1}


@st.composite
def phases(draw):
    """Up to three phases of up to five sources, some with weight 0, some not named."""
    names = "abcde"[: draw(st.integers(1, 5))]
    made, until = [], 0
    n = draw(st.integers(1, 3))
    for k in range(n):
        raw = draw(st.lists(st.integers(0, 20), min_size=len(names), max_size=len(names)).filter(any))
        until += draw(st.integers(1, 3000))
        weights = {name: w / sum(raw) for name, w in zip(names, raw, strict=True) if w or draw(st.booleans())}
        made.append(Phase(weights, until if k < n - 1 else None))
    return names, made


@given(*[st.integers(0, 60) for _ in range(4)])
def test_floor_sum_is_the_sum(n, m, a, b):
    assert floor_sum(n, m + 1, a, b) == sum((a * i + b) // (m + 1) for i in range(n))


@settings(max_examples=100, deadline=None)
@given(phases(), st.integers(1, 40), st.integers(0, 2**64 - 1))
def test_numbers_within_a_source_count_up_from_0(given_, seq_len, start):
    """Counts and numbers by formula are those that counting window after window gives, through all phases."""
    names, made = given_
    schedule = Schedule(made, names, seq_len, start)
    source, within = schedule.place(0, 400)
    for s in range(len(names)):
        assert within[source == s].tolist() == list(range((source == s).sum()))
    for n in (0, 1, 7, 399, 400):
        assert schedule.counts(n).tolist() == np.bincount(source[:n], minlength=len(names)).tolist()


@settings(max_examples=100, deadline=None)
@given(phases(), st.integers(0, 2**64 - 1), st.integers(0, 10**12), st.data())
def test_any_cut_gives_the_same_stream(given_, start, first, data):
    """Resumed anywhere, and shared among any number of hosts."""
    names, made = given_
    schedule = Schedule(made, names, 16, start)
    whole = np.stack(schedule.place(first, 60))
    cut = data.draw(st.integers(1, 59))
    parts = [schedule.place(first, cut), schedule.place(first + cut, 60 - cut)]
    assert (np.concatenate([np.stack(part) for part in parts], axis=1) == whole).all()


@settings(max_examples=60, deadline=None)
@given(phases(), st.integers(0, 2**64 - 1), st.integers(0, 10**12), st.integers(2000, 10_000))
def test_shares_hold_within_half_a_percent_in_any_long_stretch(given_, start, first, n):
    names, made = given_
    first += 10_000  # beyond the phases: seq_len is 1
    source, _ = Schedule(made, names, 1, start).place(first, n)
    for s, name in enumerate(names):
        assert abs((source == s).mean() - made[-1].weights.get(name, 0.0)) < 0.005
        if not made[-1].weights.get(name):
            assert not (source == s).any()


@pytest.mark.parametrize("start", [0, 1, 2**62, 987654321987654321])
def test_shares_of_the_paper(start):
    """No stretch of a million windows, however short, is more than six windows away from its share."""
    source, _ = Schedule([Phase(PAPER)], list(PAPER), 8, start).place(0, 1_000_000)
    for s, share in enumerate(PAPER.values()):
        away = np.cumsum(np.insert(source == s, 0, False) - 0.0) - share * np.arange(1_000_001)
        assert np.ptp(away) < 6
    assert np.bincount(source).tolist() == pytest.approx([1e6 * w for w in PAPER.values()], abs=4)


def test_phases_change_at_the_token():
    """A window that begins before the phase ends is the phase's: 1,001 tokens are 11 windows of 100."""
    only = [Phase({"a": 1.0}, 1_001), Phase({"b": 1.0}, 2_000), Phase({"a": 0.5, "b": 0.5})]
    schedule = Schedule(only, ["a", "b"], 100, 5)
    source, within = schedule.place(0, 1020)
    assert source[:20].tolist() == [0] * 11 + [1] * 9
    assert within[:20].tolist() == [*range(11), *range(9)]
    assert [schedule.phase(w) for w in (0, 10, 11, 19, 20, 10**9)] == [0, 0, 1, 1, 2, 2]
    assert schedule.counts(1020).tolist() == pytest.approx([511, 509], abs=3)


def test_realised_shares_of_each_phase():
    changing = [Phase(PAPER, 2_000_000), Phase(LATER, 6_000_000), Phase(PAPER)]
    schedule = Schedule(changing, list(PAPER), 100, 3)
    for begin, end, weights in ((0, 20_000, PAPER), (20_000, 60_000, LATER), (60_000, 100_000, PAPER)):
        shares = (schedule.counts(end) - schedule.counts(begin)) / (end - begin)
        assert shares.tolist() == pytest.approx(list(weights.values()), abs=5e-4)


@pytest.mark.parametrize("start, source", [(0, 0), (UNIT // 2 - 1, 0), (UNIT // 2, 1), (UNIT - 1, 1)])
def test_a_place_on_the_border_belongs_to_the_source_that_begins_there(start, source):
    schedule = Schedule([Phase({"a": 0.5, "none": 0.0, "b": 0.5})], ["a", "none", "b"], 8, start)
    assert schedule.place(0, 1)[0].tolist() == [2 * source]
    assert schedule.counts(1).tolist() == [1 - source, 0, source]


def test_a_phase_shorter_than_a_window_is_left_out():
    schedule = Schedule([Phase({"a": 1.0}, 100), Phase({"b": 1.0}, 110), Phase({"a": 1.0})], "ab", 100, 0)
    assert schedule.place(0, 4)[0].tolist() == [0, 1, 0, 0]
    late = Schedule([Phase({"a": 1.0}, 110), Phase({"b": 1.0}, 190), Phase({"a": 1.0})], "ab", 100, 0)
    assert late.place(0, 4)[0].tolist() == [0, 0, 0, 0] and late.counts(4).tolist() == [4, 0]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ([Phase({"genral": 1.0})], "weighs a source 'genral' .* Did you mean 'general'"),
        ([Phase({"general": 0.5, "math": 0.4})], "sum to 0.9, not to 1. Did you mean {'general': 0.555556,"),
        ([Phase({"general": 0.0, "math": 0.0})], "sum to 0, not to 1"),
        ([Phase({})], "sum to 0, not to 1"),
        ([Phase({"general": 1.5, "math": -0.5})], "gives 'math' the weight -0.5"),
        ([Phase({"general": float("nan"), "math": 1.0})], "gives 'general' the weight nan"),
        ([Phase({"general": 0.5, "math": 0.5}), Phase({"math": 1.0})], r"mix\[0\] needs 'until'"),
        ([Phase({"general": 0.5, "math": 0.5}, 9)], r"mix\[0\] is the last phase .* Remove its 'until'"),
        ([Phase({"general": 1.0}, 9), Phase({"math": 1.0}, 9), Phase({"math": 1.0})], "ends at 9 tokens, but it"),
        ([Phase({"general": 1.0}, 0), Phase({"math": 1.0})], "ends at 0 tokens"),
        ([Phase({"general": 1.0})], "names 'math', which no phase"),
    ],
)  # fmt: skip
def test_a_mix_that_makes_no_sense_is_a_sentence(wrong, said):
    with pytest.raises(UserError, match=said):
        check_phases(wrong, ["general", "math"])


def test_a_source_may_have_no_weight():
    check_phases([Phase({"general": 1.0, "math": 0.0})], ["general", "math"])
