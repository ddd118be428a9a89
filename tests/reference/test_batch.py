import numpy as np
import pytest

from min_llm.reference.batch import Batch, complete, pack, prompt


def test_two_documents_and_padding():
    made = pack([[[5, 6, 7, 8], [9, 10, 11]]], seq_len=7)
    assert made.tokens.tolist() == [[5, 6, 7, 9, 10, 0, 0]]
    assert made.targets.tolist() == [[6, 7, 8, 10, 11, 0, 0]]
    assert made.positions.tolist() == [[0, 1, 2, 0, 1, 0, 0]]
    assert made.index.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert made.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0, 0]]
    assert made.weights.tolist() == [[1, 1, 1, 1, 1, 0, 0]]
    assert made.tokens.dtype == np.int32
    assert made.weights.dtype == np.float32


def test_documents_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="row 1 needs 5 places up to document 2; seq_len is 4"):
        pack([[[1, 2]], [[1, 2, 3, 4], [5, 6, 7]]], seq_len=4)


def test_what_a_batch_leaves_out_is_filled_in():
    made = complete(Batch([[1, 2, 3]], None, None, None, None, None))
    assert made.tokens.tolist() == [[1, 2, 3]]
    assert made.positions.tolist() == made.index.tolist() == [[0, 1, 2]]
    assert made.weights.tolist() == [[1, 1, 1]]
    assert made.targets is None
    assert made.segment_ids is None


def test_a_prompt_continues_where_it_is_told():
    made = prompt([3, 4], start=7)
    assert made.tokens.tolist() == [[3, 4]]
    assert made.positions.tolist() == made.index.tolist() == [[7, 8]]
    assert made.segment_ids is None
