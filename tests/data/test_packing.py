"""Packing: every document whole, in one row, once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.data.packing import pack, pack_documents

METHODS = st.sampled_from(["best_fit", "greedy"])


@given(st.integers(1, 50), METHODS, st.data())
def test_every_document_is_in_one_row_and_rows_are_not_overfull(seq_len, method, data):
    lengths = data.draw(st.lists(st.integers(1, seq_len), max_size=60))
    rows = pack(lengths, seq_len, method)
    assert sorted(k for row in rows for k in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[k] for k in row) <= seq_len for row in rows)


@given(st.integers(1, 30), st.data())
def test_best_fit_chooses_the_fullest_row_that_fits(seq_len, data):
    lengths = data.draw(st.lists(st.integers(1, seq_len), max_size=40))
    room = []  # the definition, in quadratic time
    for length in sorted(lengths, reverse=True):
        fitting = [r for r in range(len(room)) if room[r] >= length]
        if not fitting:
            room.append(seq_len)
            fitting = [len(room) - 1]
        best = min(fitting, key=lambda r: room[r])
        room[best] -= length
    used = [seq_len - sum(lengths[k] for k in row) for row in pack(lengths, seq_len)]
    assert sorted(used) == sorted(room)


def test_greedy_keeps_the_order_and_best_fit_saves_rows():
    lengths = [6, 5, 4, 5]
    assert pack(lengths, 10, "greedy") == [[0], [1, 2], [3]]
    assert pack(lengths, 10, "best_fit") == [[0, 2], [1, 3]]


@given(st.lists(st.lists(st.integers(1, 99), min_size=2, max_size=8), min_size=1, max_size=12), METHODS)
def test_packed_documents_can_be_read_back(documents, method):
    batch = pack_documents(documents, seq_len=9, method=method)
    found = []
    for r in range(len(batch.tokens)):
        for number in range(1, batch.segment_ids[r].max() + 1):
            at = np.flatnonzero(batch.segment_ids[r] == number)
            assert at.tolist() == list(range(at[0], at[0] + len(at)))
            assert batch.positions[r, at].tolist() == list(range(len(at)))
            assert (batch.weights[r, at] == 1).all()
            assert batch.tokens[r, at[1:]].tolist() == batch.targets[r, at[:-1]].tolist()
            found.append([*batch.tokens[r, at].tolist(), int(batch.targets[r, at[-1]])])
        padding = batch.segment_ids[r] == 0
        assert not batch.weights[r][padding].any() and not batch.tokens[r][padding].any()
    assert sorted(found) == sorted(documents)


def test_weights_belong_to_targets():
    batch = pack_documents([[5, 6, 7]], 4, weights=[[0.0, 0.0, 1.0]])
    assert batch.targets.tolist() == [[6, 7, 0, 0]]
    assert batch.weights.tolist() == [[0, 1, 0, 0]]


def test_documents_that_cannot_be_packed_are_named():
    with pytest.raises(UserError, match="document 1 takes 9 places"):
        pack([3, 9], 8)
    with pytest.raises(UserError, match="document 0 has 1 tokens"):
        pack_documents([[1]], 8)
    with pytest.raises(UserError, match="3 tokens and 2 weights"):
        pack_documents([[1, 2, 3]], 8, weights=[[1, 1]])
    with pytest.raises(UserError, match="'best_fit' or 'greedy'"):
        pack([1], 8, "first_fit")
