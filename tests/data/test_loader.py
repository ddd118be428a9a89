"""Batches: right tokens, right documents, every target once, the same on any number of hosts."""

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.data import loader
from min_llm.data.loader import Prefetcher, batch, cut, epochs_done, validation_batches
from min_llm.data.tokenfile import join

FIELDS = ["tokens", "targets", "positions", "segment_ids", "weights"]


def numbered(lengths, eos=None):
    """A token file whose tokens are 0, 1, 2, …: a target's value is its place. With eos, 9999 opens documents."""
    count = itertools.count()
    return join([[next(count) for _ in range(n)] for n in lengths], 10_000, eos)


def equal(a, b):
    for name in FIELDS:
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            np.testing.assert_array_equal(left, right, err_msg=name)


def naive_row(file, begin, seq_len):
    """The definition, a token at a time: (segment_ids, positions, weights) of the window from `begin`."""
    segment, position, rows = 1, 0, []
    for place in range(begin, begin + seq_len):
        if place in file.starts and place > begin:
            segment, position = segment + 1, 0
        crossing = file.eos is None and file.n_documents > 1 and place + 1 in file.starts
        rows.append((segment, position, 0.0 if crossing else 1.0))
        position += 1
    return [np.array(column) for column in zip(*rows, strict=True)]


files = st.builds(
    numbered, st.lists(st.integers(1, 9), min_size=2, max_size=8), eos=st.sampled_from([None, 9999])
).filter(lambda file: len(file) >= 6)


@given(files, st.data())
def test_a_window_tells_documents_apart(file, data):
    seq_len = data.draw(st.integers(1, file.n_targets))
    begin = data.draw(st.lists(st.integers(0, file.n_targets - seq_len), min_size=1, max_size=4))
    made = cut(file, np.array(begin), seq_len)
    for r, place in enumerate(begin):
        np.testing.assert_array_equal(made.tokens[r], file.tokens[place : place + seq_len])
        np.testing.assert_array_equal(made.targets[r], file.tokens[place + 1 : place + 1 + seq_len])
        segments, positions, weights = naive_row(file, place, seq_len)
        np.testing.assert_array_equal(made.segment_ids[r], segments)
        np.testing.assert_array_equal(made.positions[r], positions)
        np.testing.assert_array_equal(made.weights[r], weights)
    assert {getattr(made, n).dtype.name for n in FIELDS[:-1]} == {
        "int32"
    } and made.weights.dtype == np.float32


def test_eos_belongs_to_the_document_it_opens_and_is_scored_in_the_one_it_ends():
    file = join([[1, 2], [3]], 10, eos=0)
    assert file.tokens.tolist() == [0, 1, 2, 0, 3, 0] and file.starts.tolist() == [0, 3]
    made = cut(file, np.array([0]), 5)
    assert made.tokens.tolist() == [[0, 1, 2, 0, 3]]
    assert made.targets.tolist() == [[1, 2, 0, 3, 0]]
    assert made.segment_ids.tolist() == [[1, 1, 1, 2, 2]]
    assert made.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert made.weights.tolist() == [[1, 1, 1, 1, 1]]


def test_one_document_needs_no_segments():
    for file in (numbered([20]), numbered([20], eos=9999)):
        made = batch(file, seed=0, step=0, rows=2, seq_len=4)
        assert made.segment_ids is None and made.positions is None


@pytest.mark.parametrize("order", ["shuffled", "random"])
@given(file=files, seed=st.integers(0, 2**64 - 1), step=st.integers(0, 10**6), data=st.data())
@settings(max_examples=60)
def test_the_union_of_the_hosts_is_the_batch(order, file, seed, step, data):
    rows, seq_len = data.draw(st.integers(1, 9)), data.draw(st.integers(1, file.n_targets))
    about = {"seed": seed, "step": step, "rows": rows, "seq_len": seq_len, "order": order}
    whole = batch(file, **about)
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1)))) if rows > 1 else []
    hosts = [batch(file, **about, first_row=a, n_rows=b - a) for a, b in itertools.pairwise([0, *cuts, rows])]
    equal(whole, loader.combine(np.concatenate, hosts))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.sampled_from([None, 9999]),
    st.integers(1, 12),
    st.integers(1, 7),
    st.integers(0, 1000),
)
@settings(max_examples=150)
def test_an_epoch_scores_every_target_at_most_once_and_leaves_out_less_than_a_window(
    lengths, eos, seq_len, rows, seed
):
    file = numbered(lengths)  # numbers tell targets apart; documents open as the drawn eos says
    if eos is not None:
        object.__setattr__(file, "eos", eos)
    if file.n_targets < seq_len:
        return
    n_windows = file.n_targets // seq_len
    scored = []
    for step in range(-(-2 * n_windows // rows)):
        made = batch(file, seed=seed, step=step, rows=rows, seq_len=seq_len)
        for r in range(rows):
            if (step * rows + r) // n_windows == 1:  # the second epoch
                scored += made.targets[r][made.weights[r] > 0].tolist()
    unpredictable = set(file.starts[1:].tolist()) if eos is None else set()
    assert len(scored) == len(set(scored))
    assert not unpredictable & set(scored)
    left_out = set(range(1, len(file))) - unpredictable - set(scored)
    assert len(left_out) < (2 * seq_len if file.n_documents == 1 else seq_len)


def test_every_target_is_seen_over_the_epochs():
    file = numbered([50])
    seen = set()
    for step in range(60):
        made = batch(file, seed=3, step=step, rows=4, seq_len=7)
        seen |= set(made.targets[made.weights > 0].tolist())
    assert seen == set(range(1, 50))


def test_a_window_over_the_end_is_two_documents():
    file = numbered([10, 11], eos=9999)
    made = loader._cut_ring(file, file.n_targets - 3, 8)
    assert made.tokens[0].tolist() == [18, 19, 20, 9999, 0, 1, 2, 3]
    assert made.targets[0].tolist() == [19, 20, 9999, 0, 1, 2, 3, 4]
    assert made.segment_ids[0].tolist() == [1, 1, 1, 2, 2, 2, 2, 2]
    assert made.positions[0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]


def test_batches_are_a_function_of_seed_and_step():
    file = numbered([30, 5, 90], eos=9999)
    for order in ("shuffled", "random"):
        about = {"rows": 3, "seq_len": 8, "order": order}
        before = [batch(file, seed=5, step=s, **about) for s in range(20)]
        loader._orders.cache_clear()  # as a new process would find it
        for s in reversed(range(20)):
            equal(before[s], batch(file, seed=5, step=s, **about))
        other = batch(file, seed=6, step=0, **about)
        assert not np.array_equal(before[0].tokens, other.tokens)
        assert not np.array_equal(before[0].tokens, before[1].tokens)


def test_the_random_stream_is_pinned():
    """A resumed run must see the batches it would have seen, also after an update of NumPy."""
    file = numbered([1000])
    assert batch(file, seed=1337, step=7, rows=4, seq_len=10).tokens[:, 0].tolist() == SHUFFLED
    made = batch(file, seed=1337, step=7, rows=4, seq_len=10, order="random")
    assert made.tokens[:, 0].tolist() == RANDOM


SHUFFLED = [364, 75, 854, 444]
RANDOM = [373, 919, 680, 368]


def test_random_order_reaches_both_ends():
    file = numbered([12])
    starts = {
        int(s)
        for step in range(50)
        for s in batch(file, seed=0, step=step, rows=8, seq_len=4, order="random").tokens[:, 0]
    }
    assert starts == set(range(8))  # nanoGPT: 0 <= start < N - seq_len


def test_epochs_done():
    assert epochs_done(numbered([101]), n_windows=20, seq_len=10) == 2.0


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 12),
)
@settings(max_examples=150)
def test_validation_scores_every_target_once_with_the_context_promised(lengths, seq_len, rows, stride):
    file = numbered(lengths)
    object.__setattr__(file, "eos", 9999)  # every target can be predicted
    if len(file) < 2 or stride > seq_len:
        return
    scored = []
    for made in validation_batches(file, rows, seq_len, stride):
        assert made.tokens.shape == (rows, seq_len) == made.weights.shape
        for r, s in np.argwhere(made.weights > 0):
            target = int(made.targets[r, s])
            assert made.tokens[r, s] == target - 1
            first = int(made.tokens[r, 0])
            assert first == 0 or s >= seq_len - stride
            scored.append(target)
        if made.segment_ids is not None:
            assert (made.segment_ids[made.weights > 0] > 0).all()
    assert sorted(scored) == list(range(1, len(file)))


def test_validation_pads_the_last_window_and_the_last_batch():
    made = list(validation_batches(numbered([6, 5], eos=9999), rows=2, seq_len=5))
    assert len(made) == 2
    assert made[1].weights.tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert made[1].segment_ids.tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seq_len": 40}, "seq_len 40 needs at least 41"),
        ({"order": "sorted"}, "'shuffled' or 'random'"),
        ({"first_row": 3, "n_rows": 2}, "rows 3 to 5 of a batch of 4 x 5 do not exist"),
        ({"rows": 0}, "do not exist"),
    ],
)
def test_impossible_batches_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        batch(numbered([30]), **({"seed": 0, "step": 0, "rows": 4, "seq_len": 5} | change))


def test_impossible_validation_is_refused():
    with pytest.raises(UserError, match="stride"):
        list(validation_batches(numbered([30]), 2, 5, stride=6))
    with pytest.raises(UserError, match="nothing to predict"):
        list(validation_batches(numbered([1]), 2, 5))


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name == "min_llm prefetch"]


def test_prefetcher_gives_the_steps_in_order_and_stops():
    with Prefetcher(lambda step: step * step, start_step=3, depth=2) as prefetcher:
        assert [prefetcher.next()[0] for _ in range(5)] == [9, 16, 25, 36, 49]
    assert not prefetch_threads()
    with pytest.raises(RuntimeError, match="closed"):
        prefetcher.next()


def test_prefetcher_works_ahead_only_so_far():
    made = []
    with Prefetcher(made.append, start_step=0, depth=2):
        time.sleep(0.3)
        assert made == [0, 1, 2]  # two in the queue, one waiting for its place
    assert not prefetch_threads()


def test_prefetcher_reports_how_long_it_waited():
    with Prefetcher(lambda step: time.sleep(0.05), start_step=0) as prefetcher:
        assert prefetcher.next()[1] > 0.03
        time.sleep(0.2)
        assert prefetcher.next()[1] < 0.03


def test_prefetcher_raises_what_the_thread_met_at_its_step():
    def fail(step):
        if step == 2:
            raise UserError("the file is gone")
        return step

    with Prefetcher(fail, start_step=0) as prefetcher:
        assert [prefetcher.next()[0], prefetcher.next()[0]] == [0, 1]
        for _ in range(2):
            with pytest.raises(UserError, match="the file is gone"):
                prefetcher.next()
    assert not prefetch_threads()
