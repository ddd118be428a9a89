"""The server over the engine itself: a toy model, real pages, real log-probabilities."""

import dataclasses
import threading

import pytest

from min_llm.infer.engine import Engine
from min_llm.infer.load import Loaded
from min_llm.infer.options import EngineConfig
from min_llm.nn.runtime import Runtime
from min_llm.tokenizers.byte import Bytes
from tests.serve.servers import request, serving, until
from tests.toys import LLAMA, random_weights

CFG = dataclasses.replace(LLAMA, vocab_size=257, max_seq_len=96)
POOL = EngineConfig(
    max_sequences=4, chunk=16, page_size=4, cache_tokens=100
)  # not enough for two long answers


@pytest.fixture(scope="module")
def toy():
    loaded = Loaded("toy", CFG, random_weights(CFG), Runtime(dtype="float32"), Bytes())
    with serving(Engine(loaded, POOL)) as running:
        yield running
        running.idle()
        numbers = running.runner.statistics
        assert numbers.compiles == 0, "something was compiled after the start"
        assert numbers.pages_used == 0
        assert numbers.pages_free + numbers.pages_cached == numbers.pages_total


BODIES = [
    {
        "prompt": "abc" * (i % 7 + 1),
        "max_tokens": 5 + 9 * (i % 6),
        "temperature": (0, 1, 0.7)[i % 3],
        "seed": i,
    }
    | [
        {},
        {"n": 2},
        {"logprobs": 2},
        {"top_k": 5, "stop": ["q"]},
        {"logprobs": 1, "echo": True},
        {"min_p": 0.1},
    ][i % 6]
    for i in range(18)
]


def test_answers_do_not_depend_on_what_else_is_asked(toy):
    """All at once, with preemptions for want of pages, as one after another."""
    alone = [toy.complete(**body)["choices"] for body in BODIES]
    together: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda i=i, b=b: together.update({i: toy.complete(**b)["choices"]}))
        for i, b in enumerate(BODIES)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert toy.runner.statistics.preemptions > 0
    for i, choices in enumerate(alone):
        assert [c["text"] for c in together[i]] == [c["text"] for c in choices]
        assert [c["finish_reason"] for c in together[i]] == [c["finish_reason"] for c in choices]


@pytest.mark.parametrize("fields", [{}, {"logprobs": 3}, {"n": 3, "temperature": 1.0}, {"stop": ["e", "zz"]}])
def test_a_stream_is_the_whole_answer(toy, fields):
    body = {"prompt": "hello", "max_tokens": 30, "temperature": 0, "seed": 4} | fields
    events = toy.events("/v1/completions", body)
    for choice in toy.complete(**body)["choices"]:
        parts = [c for e in events[:-1] for c in e["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in parts) == choice["text"]
        assert [c["finish_reason"] for c in parts][-1] == choice["finish_reason"]
        if "logprobs" in fields:
            assert [t for c in parts for t in c["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]


def id_of(name: str) -> int:
    """The token of a byte tokenizer that a completion's log-probabilities call so."""
    return int(name[-2:], 16) if name.startswith("bytes:") else ord(name)


def test_echo_scores_what_the_model_itself_said(toy):
    """lm-eval's loglikelihood: a greedy answer, given back as a prompt, is greedy at each of its tokens."""
    prompt = [1, 2, 3]
    fields = {"temperature": 0, "logprobs": 1, "logit_bias": {"256": -100}}
    said = toy.complete(prompt, max_tokens=12, **fields)["choices"][0]["logprobs"]
    ids = [*prompt, *map(id_of, said["tokens"])]
    told = toy.complete([ids], max_tokens=1, echo=True, **fields)["choices"][0]["logprobs"]
    assert told["token_logprobs"][0] is None and len(told["token_logprobs"]) == len(ids) + 1
    for i in range(len(prompt), len(ids)):
        assert told["token_logprobs"][i] == max(told["top_logprobs"][i].values())
    assert told["token_logprobs"][len(prompt) : -1] == pytest.approx(said["token_logprobs"], abs=1e-5)


def test_the_prefix_cache_is_told(toy):
    body = {"prompt": "a prompt that is long enough to be kept", "max_tokens": 2}
    toy.complete(**body, cache_salt="mine")
    assert toy.complete(**body, cache_salt="mine")["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert toy.complete(**body, cache_salt="other")["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_embeddings(toy):
    data = toy.post("/v1/embeddings", {"input": ["abc", "abc", "something else"]}).json()["data"]
    first, second, third = (d["embedding"] for d in data)
    assert first == pytest.approx(second, abs=1e-5) and first != pytest.approx(third, abs=1e-2)
    assert sum(x * x for x in third) == pytest.approx(1, rel=1e-4) and len(third) == CFG.dim


@pytest.mark.parametrize("stream", [True, False])
def test_pages_of_a_client_that_goes_away_are_free_again(toy, stream):
    body = request("/v1/completions", {"prompt": "hello", "max_tokens": 80, "n": 4, "stream": stream})
    clients = [toy.raw(body) for _ in range(3)]
    until(lambda: toy.runner.statistics.running > 1)
    for c in clients:
        c.close()
    until(lambda: toy.runner.statistics.pages_used == 0, 3)


def test_what_can_never_fit_is_refused_at_once(toy):
    reply = toy.post("/v1/completions", {"prompt": "a" * 90, "max_tokens": 20})
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "context_length_exceeded"
