"""Tools over HTTP, with OpenAI's client as it is: shown to the model, taken out of its answer, required of it."""

import dataclasses
import json

import openai
import pytest

from min_llm.infer.engine import Engine
from min_llm.infer.load import Loaded
from min_llm.infer.options import EngineConfig
from min_llm.nn.runtime import Runtime
from min_llm.tokenizers.byte import Bytes
from tests.serve.fake import FakeEngine
from tests.serve.servers import TEMPLATE, serving
from tests.toys import LLAMA, random_weights

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 3}, "days": {"enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SHOWS = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}" + TEMPLATE
ASK = {"model": "toy", "messages": [{"role": "user", "content": "Rain?"}], "tools": [WEATHER]}
SAID = b'{"name": "weather", "parameters": {"city": "Ulm", "days": 2}}'


def client(running):
    return openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0)


def test_a_call_is_found_in_the_answer_streamed_or_whole():
    with serving(FakeEngine(script=SAID), template=SHOWS) as running:
        whole = client(running).chat.completions.create(**ASK).choices[0]
        (call,) = whole.message.tool_calls
        assert whole.finish_reason == "tool_calls" and whole.message.content is None
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "weather",
            {"city": "Ulm", "days": 2},
        )
        parts = [c.choices[0] for c in client(running).chat.completions.create(**ASK, stream=True)]
        calls = [call for part in parts for call in part.delta.tool_calls or ()]
        assert calls[0].function.name == "weather" and calls[0].id
        assert "".join(call.function.arguments for call in calls) == call_text(whole)
        assert parts[-1].finish_reason == "tool_calls" and not any(p.delta.content for p in parts)
        none = client(running).chat.completions.create(**ASK, tool_choice="none").choices[0]
        assert none.message.content == SAID.decode() and none.finish_reason == "stop"


def call_text(choice):
    return choice.message.tool_calls[0].function.arguments


def test_the_model_is_shown_the_tools_and_earlier_calls():
    with serving(FakeEngine(), template=SHOWS) as running:
        body = {k: v for k, v in ASK.items() if k != "model"}
        shown = bytes(running.post("/tokenize", body).json()["tokens"]).decode()
        assert shown.startswith("[weather]<user>")
        call = {
            "id": "1",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Ulm"}'},
        }
        body["messages"] = [*body["messages"], {"role": "assistant", "content": None, "tool_calls": [call]}]
        assert running.post("/tokenize", body).status_code == 200
        call["function"]["arguments"] = "{not JSON"
        assert running.post("/tokenize", body).status_code == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": [], "tool_choice": "required"},
        {"tool_choice": "required", "response_format": {"type": "json_object"}},
        {"tools": "weather"},
    ],
)
def test_what_makes_no_sense_is_refused(fields):
    with serving(FakeEngine()) as running:
        reply = running.post("/v1/chat/completions", ASK | fields)
    assert reply.status_code == 400 and reply.json()["error"]["message"]


@pytest.fixture(scope="module")
def real():
    cfg = dataclasses.replace(LLAMA, vocab_size=257, max_seq_len=256)
    loaded = Loaded("toy", cfg, random_weights(cfg), Runtime(), Bytes())
    engine = Engine(loaded, EngineConfig(max_sequences=4, chunk=16, page_size=8, cache_tokens=600))
    with serving(engine, template=SHOWS) as running:
        yield running


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_required_call_comes_from_a_model_that_knows_nothing(real, choice):
    """Random weights at temperature 1, and still every argument is as the schema wants it."""
    made = client(real).chat.completions.create(**ASK, tool_choice=choice, n=3, seed=1)
    for found in made.choices:
        assert found.finish_reason == "tool_calls"
        arguments = json.loads(call_text(found))
        assert (
            set(arguments) == {"city", "days"} and len(arguments["city"]) <= 3 and arguments["days"] in (1, 2)
        )


def test_json_modes_and_regular_expressions(real):
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
              "required": ["a"], "additionalProperties": False}  # fmt: skip
    ask = {"model": "toy", "messages": ASK["messages"], "seed": 2}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    made = client(real).chat.completions.create(**ask, response_format=form).choices[0]
    assert made.finish_reason == "stop" and 0 <= json.loads(made.message.content)["a"] <= 99
    regex = {"structured_outputs": {"regex": "[ab]{5}(xyz)?"}}
    made = client(real).chat.completions.create(**ask, extra_body=regex).choices[0]
    assert made.message.content[:5].strip("ab") == "" and made.finish_reason == "stop"
    again = [
        c.choices[0].delta.content or ""
        for c in client(real).chat.completions.create(**ask, stream=True, extra_body=regex)
    ]
    assert "".join(again) == made.message.content


@pytest.mark.parametrize("regex", ["foo**(", "(" * 60_000, "(?P<a>"])
def test_a_grammar_that_cannot_be_followed_is_refused(real, regex):
    with pytest.raises(openai.BadRequestError):
        client(real).chat.completions.create(
            model="toy", messages=ASK["messages"], extra_body={"structured_outputs": {"regex": regex}}
        )
    assert real.complete(max_tokens=2)["choices"][0]["finish_reason"] == "length"
