"""Perplexity, multiple choice and exact match on a toy, each against the definition; files that are wrong."""

import dataclasses
import json
import math

import numpy as np
import pytest

from min_llm.config import UserError
from min_llm.evals import choices as multiple
from min_llm.evals import exact as generated
from min_llm.evals.choices import Question, choices
from min_llm.evals.exact import Task, answers, exact, normalised
from min_llm.evals.perplexity import perplexity
from min_llm.infer.engine import Engine
from min_llm.infer.options import EngineConfig
from min_llm.infer.request import Sampling
from min_llm.tokenizers import train_chars
from tests.toys import random_weights


def test_perplexity_is_that_of_every_token_once(engine, loaded, logprobs):
    texts = ["the theory, in all the rest", "", "東京"]
    nats = tokens = 0
    for text in texts:
        ids = [loaded.tokenizer.eos, *loaded.tokenizer.encode(text)]
        assert len(ids) < engine.model_len
        nats -= logprobs(ids)[np.arange(len(ids) - 1), ids[1:]].sum()
        tokens += len(ids) - 1
    found = perplexity(engine, texts)
    assert (found.tokens, found.documents, found.bytes) == (tokens, 2, len("".join(texts).encode()))
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.bytes, rel=1e-5)
    low, high = found.interval
    assert low < found.bits_per_byte < high


def test_a_stride_scores_each_token_of_a_long_text_behind_more_context(engine, loaded, logprobs):
    text = "the theory, he said: in all the rest, the test " * 4
    ids = [loaded.tokenizer.eos, *loaded.tokenizer.encode(text)]
    assert len(ids) > 2 * engine.model_len
    size, stride, nats = 31, 4, 0.0
    for i in range(1, len(ids)):
        end = min(len(ids), size + -(-(i + 1 - size) // stride) * stride) if i >= size else size
        nats -= logprobs(ids[max(0, end - size) : i])[-1, ids[i]]
    found = perplexity(engine, [text], stride=stride)
    assert found.nats == pytest.approx(nats, rel=1e-5) and found.tokens == len(ids) - 1
    assert perplexity(engine, [text]).nats != pytest.approx(nats, rel=1e-4)


def test_characters_have_no_first_token(loaded):
    """The first character is context: it is neither scored nor counted."""
    tokenizer = train_chars(["abcé"])
    cfg = dataclasses.replace(loaded.cfg, vocab_size=tokenizer.vocab_size)
    toy = dataclasses.replace(loaded, tokenizer=tokenizer, cfg=cfg, params=random_weights(cfg), ends=())
    found = perplexity(
        Engine(toy, EngineConfig(max_sequences=2, chunk=16, model_len=16, warm=False)), ["éab", "c"]
    )
    assert (found.tokens, found.bytes, found.documents) == (2, 2, 1)


def test_nothing_to_score(engine):
    with pytest.raises(UserError, match="nothing to score"):
        perplexity(engine, [""])


QUESTIONS = [
    Question("the theory of", ("all", "the rest", "a test, he said"), 2),
    Question("he said:", ("all", "the rest", "東京"), 0),
    Question("in all the", ("rest", "theory", "t"), 1),
    Question("the ", ("rest", "a"), 1),
]


def test_choices_take_the_likeliest(engine, loaded, logprobs):
    encode = lambda text: [loaded.tokenizer.eos, *loaded.tokenizer.encode(text)]
    hits = np.zeros(3, int)
    for question in QUESTIONS:
        rates = []
        for choice in question.choices:
            before, ids = encode(question.context.rstrip()), encode(f"{question.context} {choice}")
            sum_ = logprobs(ids)[np.arange(len(before) - 1, len(ids) - 1), ids[len(before) :]].sum()
            rates.append((sum_, sum_ / (len(ids) - len(before)), sum_ / len(choice.encode())))
        hits += np.argmax(rates, axis=0) == question.answer
    found = choices(engine, QUESTIONS, loaded.opening)
    assert [a.correct for a in (found.raw, found.per_token, found.per_byte)] == hits.tolist()
    assert found.chance == pytest.approx((1 + 1 / 2) / 4) and found.raw.count == 4
    assert [len(some) for some in found.scores] == [3, 3, 3, 2]


def test_long_choices_win_only_when_length_is_taken_out(engine, loaded):
    """Nearly uniform weights: a choice of many tokens has the lower sum, and the same rate."""
    sums = choices(engine, [Question("the", ("a", "a b c d e f g h i j"), 0)], loaded.opening)
    assert sums.raw.correct == 1 and sums.scores[0][1].tokens > 4 * sums.scores[0][0].tokens


def test_a_choice_without_a_token_of_its_own_is_refused(engine, loaded):
    assert len(loaded.tokenizer.encode("he")) == 1
    with pytest.raises(UserError, match="joins the last one"):
        choices(engine, [Question("h", ("e", "x"), 0)], delimiter="")


def test_exact_match_of_what_the_model_writes(engine, loaded):
    prompts = [loaded.prompt(text) for text in ("the theory", "in all")]
    sampling = Sampling(temperature=0, max_tokens=6, seed=0)
    wrote = answers(engine, [(prompt, sampling) for prompt in prompts])
    assert all(wrote) and wrote[0] != wrote[1]
    tasks = [Task("", ("no", f" {wrote[0].strip()}\n")), Task("", (f"The {wrote[1].upper()}!",))]
    found = exact(engine, prompts, tasks, max_tokens=6, stop=())
    assert found.texts == tuple(wrote)
    assert (found.strict.correct, found.normalised.correct) == (1, 2)


def test_normalised():
    assert normalised(" The  cat, a-cat; AN end.\n") == "cat acat end"
    assert normalised("theory") == "theory"


@pytest.mark.parametrize(
    ("read", "row", "says"),
    [
        (multiple.read, {"context": "a", "choices": ["b"], "answer": 0}, "two or more choices"),
        (multiple.read, {"context": " ", "choices": ["b", "c"], "answer": 0}, "has a context"),
        (multiple.read, {"context": "a", "choices": ["b", ""], "answer": 0}, "all of them text"),
        (multiple.read, {"context": "a", "choices": ["b", "c"], "answer": 2}, "answer is 2"),
        (multiple.read, {"context": "a", "choices": ["b", "c"], "answer": True}, "answer is True"),
        (multiple.read, [1], "line 2: a question"),
        (generated.read, {"prompt": "", "answer": "b"}, "prompt is ''"),
        (generated.read, {"prompt": "a", "answer": []}, r"answer is \[\]"),
        (generated.read, "x", "line 2: prompt is None"),
    ],
)
def test_files_that_are_wrong(tmp_path, read, row, says):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=says):
        read(path)


def test_files(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"context": "a", "choices": ["b", "c"], "answer": 1}\n')
    assert multiple.read(path) == [Question("a", ("b", "c"), 1)]
    path.write_text('{"prompt": "a", "answer": "b"}\n\n{"prompt": "a", "answer": ["b", "c"]}\n')
    assert generated.read(path) == [Task("a", ("b",)), Task("a", ("b", "c"))]
