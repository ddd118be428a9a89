"""The order of places under context parallelism, and what it does to a batch."""

import numpy as np
import pytest

from min_llm.nn.batch import Batch
from min_llm.nn.context import arrange, order


def test_rank_i_takes_chunks_i_and_the_last_but_i():
    np.testing.assert_array_equal(order(8, 2), [0, 1, 6, 7, 2, 3, 4, 5])
    assert sorted(order(48, 4)) == list(range(48))


@pytest.mark.parametrize("cp", [2, 4, 8])
def test_every_rank_sees_as_many_pairs(cp):
    """Under a causal mask; contiguous pieces would differ by up to 2·cp − 1."""
    seen = (order(128, cp) + 1).reshape(cp, -1).sum(1)
    assert set(seen) == {128 * 129 // 2 // cp}
    if cp == 4:
        assert seen[0] == 2064
    assert len(set((np.arange(128) + 1).reshape(cp, -1).sum(1))) == cp


def test_arranging_moves_every_field_alike_and_writes_out_what_was_implied():
    tokens = np.arange(16).reshape(2, 8)
    made = arrange(Batch(tokens, targets=tokens + 1, weights=tokens * 0.5), 2)
    np.testing.assert_array_equal(made.index, [order(8, 2)] * 2)
    np.testing.assert_array_equal(made.positions, made.index)
    np.testing.assert_array_equal(made.targets, made.tokens + 1)
    np.testing.assert_array_equal(made.weights, made.tokens * 0.5)
    assert made.segment_ids is None
    restarting = arrange(Batch(tokens, positions=tokens % 3), 2)
    np.testing.assert_array_equal(restarting.positions, restarting.tokens % 3)
    assert arrange(made, 1) is made
