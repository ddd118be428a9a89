"""Generation over HTTP: what is sent, streamed and whole."""

import json
import math

import numpy as np
import pytest

from min_llm.infer.request import Output, Token
from min_llm.serve import protocol
from min_llm.serve.answers import Chat
from min_llm.serve.body import Fields
from min_llm.serve.stream import Job
from min_llm.serve.tool_parser import ToolParser
from min_llm.tokenizers.byte import Bytes
from tests.serve.fake import FakeEngine, likeliest, logprobs
from tests.serve.servers import serving

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def toy():
    with serving() as running:
        yield running


def text_of(events, index=0):
    """What the deltas of a choice add up to."""
    parts = [c for e in events[:-1] for c in e["choices"] if c["index"] == index]
    return "".join(c["delta"].get("content", "") if "delta" in c else c["text"] for c in parts)


def expected(prompt: bytes, n: int, first=(256,)) -> str:
    tokens = [*first, *prompt]
    for _ in range(n):
        tokens.append(likeliest(tokens))
    return bytes(tokens[-n:]).decode()


def test_a_completion(toy):
    made = toy.complete("hello", max_tokens=5, temperature=0)
    assert made["object"] == "text_completion" and made["model"] == "toy"
    (choice,) = made["choices"]
    assert choice["text"] == expected(b"hello", 5) and choice["finish_reason"] == "length"
    assert made["usage"] == {
        "prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 3},
    }  # fmt: skip


def test_the_default_lengths(toy):
    assert toy.complete()["usage"]["completion_tokens"] == 16
    assert toy.complete([1] * 250)["usage"]["completion_tokens"] == 6  # what is left
    chat = toy.post("/v1/chat/completions", {"messages": CHAT["messages"]}).json()
    assert chat["usage"]["total_tokens"] == toy.engine.model_len


def test_token_ids_get_no_beginning(toy):
    made = toy.complete(list(b"hello"), max_tokens=5, temperature=0)
    assert made["choices"][0]["text"] == expected(b"hello", 5, first=())
    assert made["usage"]["prompt_tokens"] == 5


def test_several_prompts_and_choices(toy):
    fields = {"prompt": ["a", "b"], "n": 2, "max_tokens": 4, "seed": 3}
    made = toy.complete(**fields)
    texts = [c["text"] for c in made["choices"]]
    assert [c["index"] for c in made["choices"]] == [0, 1, 2, 3] and len(set(texts)) == 4
    assert texts == [c["text"] for c in toy.complete(**fields)["choices"]]
    events = toy.events("/v1/completions", fields)
    assert [text_of(events, i) for i in range(4)] == texts


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    "fields", [{}, {"stop": ["zz", "e"]}, {"n": 3, "seed": 5, "temperature": 1.0}, {"logprobs": True}]
)
def test_a_stream_is_the_whole_answer(toy, path, fields):
    chat = path.endswith("chat/completions")
    body = (CHAT if chat else {"prompt": "hello", "max_tokens": 40, "temperature": 0}) | fields
    if not chat and "logprobs" in fields:
        body["logprobs"] = 1
    whole = toy.post(path, body).json()
    events = toy.events(path, body)
    assert events[-1] == "[DONE]"
    for choice in whole["choices"]:
        parts = [c for e in events[:-1] for c in e["choices"] if c["index"] == choice["index"]]
        text = choice["message"]["content"] if chat else choice["text"]
        assert text_of(events, choice["index"]) == text
        assert [c["finish_reason"] for c in parts if c["finish_reason"] is not None] == [
            choice["finish_reason"]
        ]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        if chat:
            assert parts[0]["delta"]["role"] == "assistant"
        if fields.get("logprobs") and chat:
            streamed = [t for c in parts if c["logprobs"] for t in c["logprobs"]["content"]]
            assert streamed == choice["logprobs"]["content"]
            assert "".join(t["token"] for t in streamed) == text
        elif fields.get("logprobs"):
            for name, values in choice["logprobs"].items():
                assert [v for c in parts for v in c["logprobs"][name]] == values


def test_usage_is_streamed_when_asked_for(toy):
    events = toy.events("/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}})
    usage = events[-2]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 6
    assert all(e["usage"] is None for e in events[:-2])
    assert all("usage" not in e for e in toy.events("/v1/chat/completions", CHAT)[:-1])
    assert all(e["choices"] for e in toy.events("/v1/chat/completions", CHAT)[:-1])


def test_the_headers_of_a_stream(toy):
    with toy.client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-cache" and reply.headers["x-accel-buffering"] == "no"
        reply.read()


def test_a_stop_string_ends_the_answer(toy):
    whole = expected(b"hello", 40)
    stop = whole[7:9]
    choice = toy.complete("hello", max_tokens=40, temperature=0, stop=[stop])["choices"][0]
    assert choice["text"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] == stop


def test_characters_of_several_tokens():
    said = "né 😀 ok"
    with serving(FakeEngine(said.encode())) as running:
        body = CHAT | {"max_tokens": 50, "logprobs": True, "top_logprobs": 1}
        whole = running.post("/v1/chat/completions", body).json()["choices"][0]
        assert whole["message"]["content"] == said and whole["finish_reason"] == "stop"
        told = whole["logprobs"]["content"]
        assert "".join(t["token"] for t in told) == said
        assert bytes(b for t in told for b in t["bytes"]) == said.encode()
        assert text_of(running.events("/v1/chat/completions", body)) == said
        legacy = running.complete(max_tokens=50, logprobs=0)["choices"][0]["logprobs"]
        assert legacy["tokens"][1] == "bytes:\\xc3" and legacy["text_offset"][:5] == [0, 1, 1, 2, 3]


# what evaluation programs read: lm-eval's loglikelihood


def test_echo_tells_the_prompts_log_probabilities(toy):
    prompt = [256, *b"hello"]
    made = toy.complete([prompt], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1)["choices"][0]
    told = made["logprobs"]
    assert made["text"] == "hello" + expected(b"hello", 1)
    assert len(told["token_logprobs"]) == len(prompt) + 1
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    for i in range(1, len(prompt)):
        table = logprobs(prompt[:i])
        assert told["token_logprobs"][i] == float(table[prompt[i]])
        assert max(told["top_logprobs"][i].values()) == float(table.max())
    assert told["token_logprobs"][-1] == max(told["top_logprobs"][-1].values())  # greedy: the same float


def test_an_echoed_token_that_is_the_likeliest_is_found_among_the_likeliest(toy):
    prompt = [97]
    for _ in range(5):
        prompt.append(likeliest(prompt))
    told = toy.complete([prompt], max_tokens=1, logprobs=1, echo=True)["choices"][0]["logprobs"]
    for own, tops in list(zip(told["token_logprobs"], told["top_logprobs"], strict=True))[1 : len(prompt)]:
        assert own == max(tops.values())


def test_echo_without_an_answer(toy):
    made = toy.complete("hello", max_tokens=0, logprobs=1, echo=True)
    (choice,) = made["choices"]
    assert choice["text"] == "hello" and choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == 6 and made["usage"]["completion_tokens"] == 0
    assert toy.complete("hello", max_tokens=0, echo=True)["choices"][0]["text"] == "hello"
    assert toy.post("/v1/completions", {"prompt": "hello", "max_tokens": 0}).status_code == 400


def test_every_choice_and_every_chunk_of_a_stream_has_the_echo(toy):
    body = {"prompt": ["ab", "cd"], "n": 2, "max_tokens": 3, "logprobs": 0, "echo": True, "seed": 1}
    whole = toy.complete(**body)
    events = toy.events("/v1/completions", body)
    for i, choice in enumerate(whole["choices"]):
        assert choice["text"].startswith("ab" if i < 2 else "cd") and len(choice["text"]) == 5
        assert text_of(events, i) == choice["text"]
        assert len(choice["logprobs"]["tokens"]) == 6
        offsets = choice["logprobs"]["text_offset"]
        assert offsets == [0, 0, 1, 2, 3, 4]


def test_prompt_log_probabilities_by_id(toy):
    body = {"prompt_logprobs": 2, "max_tokens": 1}
    told = toy.complete([97, 98], **body)["choices"][0]["prompt_logprobs"]
    assert told[0] is None and told[1]["98"]["decoded_token"] == "b"
    assert told[1]["98"]["logprob"] == pytest.approx(float(logprobs([97])[98]))
    chat = toy.post("/v1/chat/completions", CHAT | body).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


def test_log_probabilities_are_finite_json(toy, monkeypatch):
    monkeypatch.setattr("tests.serve.fake.logprobs", lambda before: np.full(257, -math.inf))
    reply = toy.post("/v1/completions", {"prompt": "a", "logprobs": 2, "max_tokens": 2})
    told = json.loads(reply.text, parse_constant=pytest.fail)["choices"][0]["logprobs"]
    assert told["token_logprobs"] == [-9999.0, -9999.0]


def test_silence_is_filled_with_comments():
    body = {"prompt": "a", "max_tokens": 2, "stream": True}
    with serving(FakeEngine(pace=0.25), quiet=0.05) as running:
        lines = [line for line in running.post("/v1/completions", body).text.splitlines() if line]
    assert lines.count(": ping") >= 4 and lines[-1] == "data: [DONE]"


def test_calls_of_tools_are_the_same_in_a_stream_and_whole():
    asked = protocol.common(Fields({}), "toy", (), None)
    answer = Chat(asked, [Job([1], asked.sampling)], Bytes(), [ToolParser(["F", "G"])])
    chunks = answer.opening()
    text = ['{"name": "F", "par', 'ameters": {}}', '; {"name": "G", "parameters": {"a', '": [1]}}']
    for i, some in enumerate(text):
        chunks += answer.chunks(0, Output(0, 0, (Token(i),), some, "stop" if i == 3 else None))
    (choice,) = answer.whole(chunks)["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    calls = choice["message"]["tool_calls"]
    assert len({c["id"] for c in calls}) == 2
    assert [c["function"]["name"] for c in calls] == ["F", "G"]
    assert [json.loads(c["function"]["arguments"]) for c in calls] == [{}, {"a": [1]}]
    assert [c["choices"][0]["finish_reason"] for c in chunks].count(None) == len(chunks) - 1
