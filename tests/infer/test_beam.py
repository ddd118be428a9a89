"""Beam search finds what trying everything finds, when its beams are enough."""

import itertools

import numpy as np
import pytest

from min_llm import models
from min_llm.config import UserError
from min_llm.infer.beam import beam_search
from min_llm.infer.request import Sampling
from min_llm.infer.sample import generate
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from tests.toys import LLAMA, random_weights

VOCAB, END, PROMPT = 6, 5, [3, 1, 4]


@pytest.fixture(scope="module")
def params():
    return random_weights(LLAMA)


def everything(params, depth, length_penalty):
    """All answers of up to `depth` tokens by score, with one pass of the model each over the longest ones."""
    texts = np.array(
        [[*PROMPT, *answer] for answer in itertools.product(range(VOCAB), repeat=depth)], np.int32
    )
    logits = np.asarray(models.logits(params, LLAMA, Batch(texts), Runtime())[0], np.float64)[:, 2:-1, :VOCAB]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = {}
    for text, rows in zip(texts[:, 3:].tolist(), logprobs, strict=True):
        n = text.index(END) + 1 if END in text else depth
        total = sum(rows[i, text[i]] for i in range(n))
        found[tuple(text[:n])] = total / n**length_penalty
    return sorted(found.items(), key=lambda pair: -pair[1])


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
def test_with_enough_beams_nothing_better_exists(params, length_penalty):
    want = everything(params, 4, length_penalty)[:8]
    found = beam_search(params, LLAMA, Runtime(), PROMPT, 250, 4, [END], length_penalty, VOCAB)[:8]
    assert [b.tokens for b in found] == [tokens for tokens, _ in want]
    np.testing.assert_allclose([b.score for b in found], [score for _, score in want], rtol=1e-4)


def test_one_beam_is_greedy_and_more_find_likelier_answers(params):
    greedy = generate(params, LLAMA, Runtime(), [PROMPT], 8, Sampling(temperature=0))[0]
    (one,) = beam_search(params, LLAMA, Runtime(), PROMPT, 1, 8)
    more = beam_search(params, LLAMA, Runtime(), PROMPT, 6, 8)
    assert list(one.tokens) == greedy
    assert len(more) == 6 and more[0].logprob >= one.logprob - 1e-4
    assert [b.score for b in more] == sorted((b.score for b in more), reverse=True)


def test_what_cannot_be_searched_is_said(params):
    with pytest.raises(UserError, match="beams is 0"):
        beam_search(params, LLAMA, Runtime(), PROMPT, 0, 4)
    with pytest.raises(UserError, match="max_seq_len"):
        beam_search(params, LLAMA, Runtime(), PROMPT, 2, 64)
