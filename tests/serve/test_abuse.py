"""Requests that no client should send: each is refused with a sentence, and the server goes on."""

import asyncio
import http.client
import json
import socket
import time

import pytest

from min_llm.infer.request import Output, Sampling
from min_llm.serve.metrics import Metrics
from min_llm.serve.stream import Job, Stream
from tests.serve.fake import FakeEngine
from tests.serve.servers import request, rest, serving
from tests.serve.test_body import BAD

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize",
         "/v1/load_lora_adapter", "/v1/unload_lora_adapter"]  # fmt: skip


@pytest.fixture(scope="module")
def toy():
    with serving(max_body=1 << 20, lora_updates=True) as running:
        yield running
        assert not running.engine.busy and running.complete()


def refused(reply, status=400):
    """The error of a refusal, in OpenAI's form."""
    assert reply.status_code == status, reply.text[:300]
    (error,) = reply.json().values()
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.mark.parametrize("path", PATHS)
def test_bad_bodies(toy, path):
    for data in BAD.values():
        refused(toy.client.post(path, content=data))


def test_bodies_of_the_wrong_shape(toy):
    chat = "/v1/chat/completions"
    for messages in (
        None, [], "hi", 7, [7], [{}], [{"role": "user"}], [{"role": 7, "content": "a"}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    ):  # fmt: skip
        refused(toy.post(chat, {"messages": messages}))
    message = [{"role": "user", "content": "a"}]
    refused(toy.post(chat, {"messages": message, "chat_template_kwargs": {"messages": []}}))
    refused(toy.post(chat, {"messages": message, "logprobs": True, "top_logprobs": 21}))
    refused(toy.post(chat, {"messages": message, "stream": "yes"}))
    refused(toy.post("/v1/completions", {"prompt": "a", "model": "other"}), 404)
    refused(toy.post("/detokenize", {"tokens": [300]}))
    refused(toy.post("/detokenize", {"tokens": [10**30]}))
    refused(toy.post("/tokenize", {}))


# odd prompts


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [[]],
        [-1],
        [257],
        [10**30],
        [True],
        [1.5],
        [[1], [300]],
        [1] * 257,
        [1] * 256,
        "x" * 300,
        {},
        7,
        None,
    ],
    ids=lambda p: str(p)[:20],
)
def test_prompts_that_cannot_be_served(toy, prompt):
    refused(toy.post("/v1/completions", {"prompt": prompt, "max_tokens": 1}))
    refused(toy.post("/v1/completions", {"prompt": prompt, "max_tokens": 1, "stream": True}))


def test_a_prompt_that_is_too_long_is_told_so_with_numbers(toy):
    error = refused(toy.post("/v1/completions", {"prompt": [1] * 250, "max_tokens": 7}))
    assert error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in ("250", "7", "256"))
    assert toy.complete([1] * 250, max_tokens=6)["usage"]["total_tokens"] == 256


@pytest.mark.parametrize("prompt", ["", " ", "\n\n", "\x00", "<|end_of_text|>", [256], [0]])
def test_odd_prompts_that_can_be_served(toy, prompt):
    assert toy.complete(prompt, max_tokens=2)["usage"]["completion_tokens"] == 2


def test_text_that_spells_a_special_token_is_text(toy):
    spelled = "<|end_of_text|>"
    assert toy.complete(spelled, max_tokens=1)["usage"]["prompt_tokens"] == 1 + len(spelled)
    message = [{"role": "user", "content": spelled}]
    chat = toy.post("/v1/chat/completions", {"messages": message, "max_tokens": 1}).json()
    assert chat["usage"]["prompt_tokens"] == len("<user><a>") + len(spelled)
    assert toy.post("/tokenize", {"prompt": spelled, "parse_special": False}).json()["count"] == 1 + len(
        spelled
    )
    ids = toy.post("/tokenize", {"prompt": spelled, "add_special_tokens": False}).json()["tokens"]
    assert ids == [256]  # what evaluation programs ask for the end of text


def test_huge_parameters(toy):
    for fields in (
        {"n": 5_000_000}, {"n": 128, "prompt": ["a"] * 256}, {"logprobs": 10**6}, {"prompt_logprobs": -1},
        {"logit_bias": {str(i): 1 for i in range(100_000)}}, {"logit_bias": {"999999": 1}}, {"stop": ["x"] * 10_000},
        {"stop": ""}, {"stop": [""]}, {"max_tokens": 10**9}, {"temperature": 1e300}, {"seed": 10**40},
        {"top_k": 10**20}, {"best_of": 50}, {"prompt": ["a"] * 10_000},
    ):  # fmt: skip
        refused(toy.post("/v1/completions", {"prompt": "a"} | fields))


def test_a_grammar_the_engine_refuses(toy):
    begun = time.monotonic()
    for fields in ({"guided_regex": "bomb"}, {"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"const": "bomb"}}}}):  # fmt: skip
        refused(toy.post("/v1/completions", {"prompt": "a"} | fields))
    nested = json.dumps({"prompt": "a", "guided_json": None})[:-5] + '{"not":' * 60_000 + "{}" + "}" * 60_001
    refused(toy.client.post("/v1/completions", content=nested.encode()))
    assert time.monotonic() - begun < 2


def test_paths_and_methods(toy):
    refused(toy.client.get("/nope"), 404)
    refused(toy.client.get("/v1/models/nope"), 404)
    assert toy.client.get("/v1/models/toy").json()["id"] == "toy"
    reply = toy.client.get("/v1/completions")
    refused(reply, 405)
    assert "POST" in reply.headers["allow"]


# bodies that are too large, or take too long


def test_a_large_body_is_refused_before_it_comes(toy):
    with toy.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n") as c:
        assert c.recv(1000).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_too_much_is_told_so(toy, chunked):
    pieces = [b"x" * 65536] * 100
    reply = toy.client.post("/v1/completions", content=iter(pieces) if chunked else b"".join(pieces))
    assert refused(reply, 413)["code"] == "body_too_large"


def test_a_length_that_lies(toy):
    with toy.raw(
        request("/v1/completions", {"prompt": "a"}).replace(b"Content-Length: 15", b"Content-Length: 5")
    ) as c:
        assert c.recv(1000).startswith(b"HTTP/1.1 400")
    for length in (b"-1", b"x", b"1, 2"):
        with toy.raw(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n{}") as c:
            assert rest(c).startswith(b"HTTP/1.1 400")


def test_slow_senders_are_cut_off_and_disturb_nobody():
    with serving(arrival=0.4) as running:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
        slow = [
            running.raw(head),  # the head never ends
            running.raw(head + b"Content-Length: 1000\r\n\r\n"),  # no body
            running.raw(head + b"Content-Length: 1000\r\n\r\n" + b'{"prompt'),  # part of one
            running.raw(),  # nothing at all
        ]
        dripping = running.raw(b"GET /he")
        begun = time.monotonic()
        for _ in range(6):  # a byte now and then buys no time
            time.sleep(0.05)
            dripping.sendall(b"a")
            assert running.complete(max_tokens=1)
        answers = [rest(c) for c in (*slow, dripping)]
        assert time.monotonic() - begun < 3
        assert [a[:12] for a in answers] == [b"HTTP/1.1 408"] * 3 + [b""] + [b"HTTP/1.1 408"]
        assert json.loads(answers[0].split(b"\r\n\r\n")[1])["error"]["message"]
        for c in (*slow, dripping):
            c.close()
        running.idle()


def test_a_connection_may_be_used_again_after_a_pause():
    with serving(arrival=0.3) as running:
        c = http.client.HTTPConnection("127.0.0.1", running.port)
        for _ in range(2):
            c.request("POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 1}))
            place = c.sock.getsockname()
            assert c.getresponse().read()
            time.sleep(0.5)
        assert place == c.sock.getsockname()
        c.close()


# clients that do not read


def test_a_client_that_never_reads_is_dropped():
    """Others are served meanwhile, and what the server keeps for it is bounded."""
    engine = FakeEngine(model_len=100_000)
    with serving(engine, send_buffer=4096, stuck=0.5, backlog=10**6) as running:
        c = socket.socket()
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        c.connect(("127.0.0.1", running.port))
        c.sendall(request("/v1/completions", {"prompt": "a", "max_tokens": 90_000, "stream": True}))
        begun = time.monotonic()
        while not engine.aborted:
            assert running.complete(max_tokens=3)
            assert time.monotonic() - begun < 10
        running.idle()
        assert engine.numbers.generated_tokens < 90_000
        c.close()


def test_a_reader_that_lags_loses_the_rest():
    """What waits for one reader is bounded, whatever the time."""

    async def lag():
        forgotten = []
        stream = Stream([Job([1], Sampling())], 5, 1.0, Metrics(), forgotten.append)
        stream.requests = {7: 0}
        for _ in range(100):
            stream.put(Output(7, 0, text="a"))
        got = await anext(stream)
        assert [o.finish for _, o in got] == [None] * 5 + ["error"] and forgotten == [stream]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(lag())
