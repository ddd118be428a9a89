"""Fields of requests to what the engine is asked."""

import json

import pytest

from min_llm.config import UserError
from min_llm.infer.request import Grammar, Sampling
from min_llm.serve import protocol
from min_llm.serve.body import Fields
from min_llm.serve.errors import Refused


def read(logprobs=None, **fields):
    return protocol.common(Fields(fields), "toy", ("pirate",), logprobs)


def test_nothing_asked_is_the_models_own_distribution():
    common = read()
    assert common.sampling == Sampling() and common.served == "toy" and common.adapter is None
    assert not common.stream and common.salt == ""


def test_every_field_reaches_the_engine():
    asked = read(
        temperature=0.5, top_k=5, top_p=0.9, min_p=0.1, typical_p=0.8, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, logit_bias={"7": -100, "8": 1.5}, min_tokens=2, max_tokens=9, stop=["a", "b"],
        stop_token_ids=[3], ignore_eos=True, n=2, seed=11, prompt_logprobs=1, cache_salt="s",
        logprobs=4,
    )  # fmt: skip
    assert asked.sampling == Sampling(
        temperature=0.5, top_k=5, top_p=0.9, min_p=0.1, typical_p=0.8, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, logit_bias={7: -100.0, 8: 1.5}, min_tokens=2, max_tokens=9, stop=("a", "b"),
        stop_ids=(3,), ignore_end=True, n=2, seed=11, logprobs=4, prompt_logprobs=1,
    )  # fmt: skip
    assert asked.salt == "s"


def test_other_spellings():
    assert read(stop="x").sampling.stop == ("x",)
    assert read(top_k=-1).sampling.top_k == 0
    assert read(max_completion_tokens=5, max_tokens=9).sampling.max_tokens == 5
    assert read(model="pirate").adapter == "pirate"
    assert read(some_new_field={"a": 1}, user="me", store=True, best_of=1, suffix=None) == read()


@pytest.mark.parametrize("field", sorted(protocol.UNSUPPORTED))
def test_what_is_not_supported_is_refused(field):
    with pytest.raises(Refused, match="not supported") as caught:
        read(**{field: 2})
    assert caught.value.param == field


WRONG = [
    {"logit_bias": {"-1": 1}}, {"logit_bias": {"x": 1}}, {"logit_bias": {"1": "a"}}, {"logit_bias": [1]},
    {"logit_bias": {str(i): 0 for i in range(100_000)}}, {"stop": ""}, {"stop": ["a"] * 10_000}, {"n": 5_000_000},
    {"n": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"max_tokens": 0}, {"seed": 2**70}, {"top_k": -2},
    {"stream_options": {"include_usage": True}}, {"stop_token_ids": [True]}, {"stop_token_ids": [1.5]},
    {"prompt_logprobs": 21}, {"prompt_logprobs": -1}, {"prompt_logprobs": 1, "stream": True},
]  # fmt: skip


@pytest.mark.parametrize("fields", WRONG, ids=lambda f: json.dumps(f)[:40])
def test_wrong_values_are_refused(fields):
    with pytest.raises((Refused, UserError)):
        read(**fields)


def test_log_probabilities_of_a_chat():
    assert protocol.chat_logprobs(Fields({})) is None
    assert protocol.chat_logprobs(Fields({"logprobs": True})) == 0
    assert protocol.chat_logprobs(Fields({"logprobs": True, "top_logprobs": 3})) == 3
    with pytest.raises(Refused):
        protocol.chat_logprobs(Fields({"top_logprobs": 3}))


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMATS = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, Grammar("json")),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        Grammar("json_schema", json.dumps(SCHEMA)),
    ),
    ({"guided_json": SCHEMA}, Grammar("json_schema", json.dumps(SCHEMA))),
    ({"guided_regex": "a+"}, Grammar("regex", "a+")),
    ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
    ({"structured_outputs": {"grammar": "start: A"}}, Grammar("lark", "start: A")),
    ({"structured_outputs": {"json_object": True}}, Grammar("json")),
]


@pytest.mark.parametrize(("fields", "grammar"), FORMATS, ids=lambda f: json.dumps(f, default=str)[:40])
def test_formats_become_grammars(fields, grammar):
    assert read(**fields).sampling.grammar == grammar


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"response_format": "json"},
        {"structured_outputs": {"choice": ["a"]}},
        {"guided_json": 7},
        {"guided_regex": "a", "response_format": {"type": "json_object"}},
    ],
)
def test_a_format_that_means_nothing_is_refused(fields):
    with pytest.raises(Refused):
        read(**fields)


@pytest.mark.parametrize(
    ("value", "prompts"),
    [("a", ["a"]), ("", [""]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts(value, prompts):
    assert protocol.prompts(Fields({"prompt": value}), "prompt") == prompts


@pytest.mark.parametrize(
    "value",
    [None, 7, True, {}, [], [[]], [True], [1, True], [1, 2.0], [1, "a"], ["a", 1], [[1], "a"], ["a"] * 300],
)
def test_what_is_no_prompt(value):
    with pytest.raises(Refused) as caught:
        protocol.prompts(Fields({"prompt": value}), "prompt")
    assert caught.value.param == "prompt"
