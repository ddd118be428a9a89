"""Scores against whole forward passes; windows and the cut between context and continuation as lm-eval has them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.evals.scoring import first_token, outputs, scores, split, windows
from min_llm.infer.request import Sampling
from tests.toy_tokenizers import KINDS, toy


def test_scores_equal_a_forward_pass(engine, loaded, logprobs):
    rng = np.random.default_rng(0)
    lengths = [(1, 1), (1, 30), (30, 1), (5, 7), (16, 15), (3, 2)]
    pairs = [tuple(rng.integers(0, engine.vocab, n).tolist() for n in pair) for pair in lengths]
    for (context, after), score in zip(pairs, scores(engine, pairs), strict=True):
        table = logprobs([*context, *after])[len(context) - 1 : -1]
        assert score.logprob == pytest.approx(table[np.arange(len(after)), after].sum(), abs=1e-4)
        assert score.tokens == len(after) and score.greedy == (table.argmax(-1) == after).all()


def test_what_the_model_says_is_greedy_and_nothing_else(engine):
    prompt, ignoring = [1, 2, 3], Sampling(temperature=0, max_tokens=6, ignore_end=True)
    said = [t.id for _, output in outputs(engine, [(prompt, ignoring)]) for t in output.tokens]
    others = [[*said[:i], (said[i] + 1) % engine.vocab, *said[i + 1 :]] for i in range(6)]
    found = scores(engine, [(prompt, after) for after in [said, *others]])
    assert [score.greedy for score in found] == [True] + 6 * [False]
    assert found[0].logprob == pytest.approx(scores(engine, [(prompt, said)])[0].logprob, abs=1e-5)


def test_a_context_that_does_not_fit_loses_its_beginning(engine):
    tokens = np.random.default_rng(1).integers(0, engine.vocab, 60).tolist()
    long, short = scores(engine, [(tokens[:50], tokens[50:]), (tokens[29:50], tokens[50:])])
    assert long.logprob == pytest.approx(short.logprob, abs=1e-5)
    with pytest.raises(UserError, match="2 tokens too long"):
        scores(engine, [([1], [1] * 32)])
    with pytest.raises(UserError, match="its context has none"):
        scores(engine, [([], [1])])


def lm_eval_windows(tokens, prefix, max_seq_len, context_len):
    """lm-eval 0.4.13, utils.get_rolling_token_windows and make_disjoint_window, in short."""
    first = min(max_seq_len, len(tokens))
    pairs = [([prefix, *tokens[: first - 1]], tokens[:first])] if tokens else []
    done = first
    while done < len(tokens):
        n = min(len(tokens) - done, max_seq_len - context_len + 1)
        end = done + n
        pairs.append((tokens[end - max_seq_len - 1 : end - 1], tokens[end - n : end]))
        done = end
    return [(a[: len(a) - (len(b) - 1)], b) for a, b in pairs]


@given(st.integers(0, 60), st.integers(2, 20), st.data())
def test_windows_are_those_of_lm_eval(length, size, data):
    stride = data.draw(st.integers(1, size - 1))
    tokens = list(range(1, length + 1))
    found = list(windows([0, *tokens], 1, size, stride))
    assert found == lm_eval_windows(tokens, 0, size - 1, size - stride)
    assert [t for _, after in found for t in after] == tokens
    assert all(context and len(context) + len(after) <= size for context, after in found)


@pytest.mark.parametrize(("known", "size", "stride"), [(0, 8, 4), (8, 8, 4), (1, 8, 8), (1, 8, 0)])
def test_windows_that_cannot_be(known, size, stride):
    with pytest.raises(UserError, match=f"the stride is {stride}"):
        list(windows([1, 2, 3], known, size, stride))


@given(st.text("ab c\n", min_size=1).filter(str.strip), st.text("ab c\n"))
def test_a_split_is_the_tokens_of_the_text(context, after):
    encode = toy("byte").encode
    before, rest = split(encode, context, after)
    assert before + rest == encode(context + after)
    assert before == encode(context.rstrip())


def test_the_first_token():
    assert [first_token(toy(kind)) for kind in KINDS] == [toy(kind).eos for kind in KINDS]
