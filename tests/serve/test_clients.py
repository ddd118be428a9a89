"""Clients that go away, and clients that are too many."""

import socket
import threading

import httpx
import pytest

from tests.serve.fake import FakeEngine
from tests.serve.servers import request, rest, serving, until

LONG = {"prompt": "hello", "max_tokens": 200}


@pytest.fixture
def slow():
    """20 ms a step; two choices run at once."""
    with serving(FakeEngine(pace=0.02, slots=2)) as running:
        yield running
        running.idle(2)
        numbers = running.engine.statistics()
        assert numbers.pages_free + numbers.pages_cached == numbers.pages_total


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_work(slow, stream):
    c = slow.raw(request("/v1/completions", LONG | {"stream": stream}))
    until(lambda: slow.engine.numbers.generated_tokens > 3)
    c.close()
    until(lambda: slow.engine.aborted, 1)
    assert slow.engine.numbers.generated_tokens < 100


def test_a_client_that_goes_away_in_the_queue(slow):
    first = [slow.raw(request("/v1/completions", LONG)) for _ in range(2)]
    until(lambda: len(slow.engine.choices) == 2)
    waiting = slow.raw(request("/v1/completions", LONG | {"n": 3}))
    until(lambda: len(slow.engine.choices) == 5)
    waiting.close()
    until(lambda: len(slow.engine.choices) == 2, 1)
    for c in first:
        c.close()


def test_a_client_that_goes_away_before_the_engine_has_its_request(slow):
    slow.engine.gate.clear()
    first = slow.raw(request("/v1/completions", LONG))
    until(lambda: slow.engine.busy)
    second = slow.raw(request("/v1/completions", LONG))
    until(lambda: slow.runner.active > 1)
    second.close()
    first.close()
    until(lambda: not slow.runner._streams)
    slow.engine.gate.set()
    slow.idle(2)


def test_half_closed_is_gone(slow):
    """As everywhere: who will not send any more may be gone altogether, and nothing but silence would tell."""
    c = slow.raw(request("/v1/completions", LONG))
    until(lambda: slow.engine.numbers.generated_tokens > 3)
    c.shutdown(socket.SHUT_WR)
    rest(c)
    until(lambda: slow.engine.aborted, 1)
    c.close()


def test_finished_requests_are_not_aborted(slow):
    slow.complete(max_tokens=2)
    slow.events("/v1/completions", {"prompt": "a", "max_tokens": 2})
    slow.idle()
    assert slow.engine.aborted == []


def test_requests_sent_ahead_on_one_connection_are_answered_in_turn(slow):
    body = request("/v1/completions", {"prompt": "a", "max_tokens": 3})
    with slow.raw(body + body.replace(b"Host", b"Connection: close\r\nHost")) as c:
        assert rest(c).count(b"HTTP/1.1 200") == 2


def test_overload():
    """Ten times what fits: some are refused at once and told when to come back; all others are answered in full."""
    with serving(FakeEngine(pace=0.003, slots=4), max_queue=8) as running:
        replies: list[httpx.Response] = []

        def ask():
            replies.append(running.post("/v1/completions", {"prompt": "a", "max_tokens": 20}))

        threads = [threading.Thread(target=ask) for _ in range(60)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(20)
        done = [r for r in replies if r.status_code == 200]
        refused = [r for r in replies if r.status_code == 429]
        assert len(done) + len(refused) == 60 and len(done) >= 8 and refused
        assert all(r.json()["usage"]["completion_tokens"] == 20 for r in done)
        assert all(int(r.headers["retry-after"]) >= 1 for r in refused)
        assert refused[0].json()["error"]["code"] == "queue_full"
        running.idle()
        assert running.complete()


def test_a_call_larger_than_the_queue_is_taken_when_nothing_waits():
    with serving(FakeEngine(), max_queue=2) as running:
        assert len(running.complete(n=20, max_tokens=2)["choices"]) == 20


# through the eyes of OpenAI's own client


@pytest.fixture(scope="module")
def openai_client():
    openai = pytest.importorskip("openai")
    with (
        serving(keys=["secret"]) as running,
        openai.OpenAI(base_url=running.url + "/v1", api_key="secret", max_retries=0) as client,
    ):
        yield client


MESSAGES = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}]


def test_openai_chat(openai_client):
    made = openai_client.chat.completions.create(
        model="toy", messages=MESSAGES, max_completion_tokens=5, temperature=0, logprobs=True, top_logprobs=2
    )
    (choice,) = made.choices
    assert len(choice.message.content) == 5 and choice.finish_reason == "length"
    assert "".join(t.token for t in choice.logprobs.content) == choice.message.content
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert made.usage.completion_tokens == 5 and made.usage.prompt_tokens_details.cached_tokens == 3
    chunks = list(
        openai_client.chat.completions.create(
            model="toy", messages=MESSAGES, max_tokens=5, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == choice.message.content and chunks[-1].usage.completion_tokens == 5


def test_openai_completions_and_the_rest(openai_client):
    made = openai_client.completions.create(model="toy", prompt="a", max_tokens=4, logprobs=1, echo=True)
    assert made.choices[0].text.startswith("a") and len(made.choices[0].logprobs.tokens) == 6
    parts = openai_client.completions.create(model="toy", prompt="a", max_tokens=4, stream=True)
    assert len("".join(p.choices[0].text for p in parts)) == 4
    assert [m.id for m in openai_client.models.list()] == ["toy"]
    assert openai_client.models.retrieve("toy").id == "toy"
    vectors = openai_client.embeddings.create(model="toy", input=["a", "bc"])  # base64 on the wire
    plain = openai_client.embeddings.create(model="toy", input=["a", "bc"], encoding_format="float")
    assert vectors.data[1].embedding == pytest.approx(plain.data[1].embedding)
    assert sum(x * x for x in plain.data[0].embedding) == pytest.approx(1, rel=1e-5)


def test_openai_errors(openai_client):
    import openai

    for kind, fields in (
        (openai.NotFoundError, {"model": "other", "prompt": "a"}),
        (openai.BadRequestError, {"model": "toy", "prompt": "a", "temperature": -1}),
    ):
        with pytest.raises(kind) as caught:
            openai_client.completions.create(**fields)
        assert caught.value.body["message"]
    with pytest.raises(openai.AuthenticationError):
        openai_client.with_options(api_key="wrong").models.list()


def test_openai_sees_an_error_in_a_stream():
    import openai

    engine = FakeEngine(pace=0.01)
    with (
        serving(engine) as running,
        openai.OpenAI(base_url=running.url + "/v1", api_key="x", max_retries=2) as client,
    ):
        with client.completions.create(model="toy", prompt="a", max_tokens=50, stream=True) as parts:
            next(iter(parts))
            engine.fail = 2
            with pytest.raises(openai.APIError, match="injected"):
                list(parts)
        before = engine.next_id
        engine.fail = 2
        with pytest.raises(openai.InternalServerError):
            client.completions.create(model="toy", prompt="a")
        assert (
            engine.next_id == before + 2
        )  # the request, and the engine's trial: the client did not repeat it


def test_a_stream_the_client_closes_early(slow):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=slow.url + "/v1", api_key="x") as client:
        with client.completions.create(model="toy", prompt="a", max_tokens=200, stream=True) as parts:
            next(iter(parts))
        until(lambda: slow.engine.aborted, 2)
    assert slow.client.get("/health/ready").json()["status"] == "ready"
