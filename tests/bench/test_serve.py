"""The serving benchmark: its load generator against a small server, and its rows."""

import asyncio
import json
import threading
from contextlib import contextmanager

import pytest

from bench import load, serve
from bench.serve import Record, Side


@contextmanager
def server(answer):
    """A server that sends what `answer(body)` gives as server-sent events in chunks, then closes; its address."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    found = []

    async def serve_one(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(size))
        status, events = answer(body)
        writer.write(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for event in events:
            data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")
        writer.close()

    async def begin():
        made = await asyncio.start_server(serve_one, "127.0.0.1", 0)
        found.append(f"http://127.0.0.1:{made.sockets[0].getsockname()[1]}")
        ready.set()

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(begin(), loop)
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def answered(body, lacking=0):
    pieces = [{"choices": [{"text": "a", "finish_reason": None}]}] * body["max_tokens"]
    usage = {"completion_tokens": body["max_tokens"] - lacking}
    last = [{"choices": [{"text": "", "finish_reason": "length"}]}, {"choices": [], "usage": usage}, "[DONE]"]
    return "200 OK", [*pieces, *last]


def test_every_request_is_answered_in_full_and_timed():
    work = load.requests(5, 100, (2, 9), (3, 6), seed=1)
    assert (
        work == load.requests(5, 100, (2, 9), (3, 6), seed=1) != load.requests(5, 100, (2, 9), (3, 6), seed=2)
    )
    assert all(2 <= len(r.prompt) <= 9 and 3 <= r.tokens <= 6 for r in work)
    with server(answered) as address:
        seconds, seen = load.run(address, work, clients=2)
    assert sorted(s.tokens for s in seen) == sorted(r.tokens for r in work)
    for s in seen:
        assert len(s.gaps) == s.tokens - 1 and s.first > 0 and s.first + sum(s.gaps) < seconds
    made = serve.figures(seconds, seen)
    assert made["goodput"] == pytest.approx(sum(r.tokens for r in work) / seconds)
    assert 0.005 < made["between_tokens_p50"] <= made["between_tokens_p99"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda body: answered(body, lacking=1), "the answer has 2 tokens; 3 were asked for"),
        (lambda body: ("429 Too Many", ["full"]), "429 Too Many"),
        (lambda body: ("200 OK", answered(body)[1][:-1]), "closed before the answer was complete"),
        (lambda body: ("200 OK", [{"error": "broken"}]), "broken"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_ends_the_run(answer, says):
    with server(answer) as address, pytest.raises(RuntimeError, match=says):
        asyncio.run(load.complete(address, load.Request([1], 3)))


def test_rows_of_load_and_starts():
    figures = {name: [2.0, 4.0] for name in serve.FIGURES}
    halves = {name: [1.0, 2.0] for name in serve.FIGURES}
    records = [
        Record(Side(True, "float32"), figures, [8.0], [2.0], [0.0], 300 << 20),
        Record(Side(False, "float32"), halves, [1.0], [1.0], [0.0], 600 << 20, "AVX2"),
        Record(Side(False, "q4_0"), halves, [1.0], [1.0], [0.0], 100 << 20, "AVX2"),
    ]
    rows = serve.rows_of(records, 16, 32)
    found = {(r["metric"], r["dtype"]): r for r in rows}
    assert found["goodput", "float32"]["ratio"] == 2.0  # more is better
    assert found["first_token_p99", "float32"]["ratio"] == 0.5  # less is
    assert found["goodput", "q4_0"]["ours"] is None and found["goodput", "q4_0"]["peer"] == 1.5
    assert found["peak_memory", "float32"]["ratio"] == 2.0
    assert found["second_start", "float32"]["ratio"] == 0.5
    assert found["second_start_share", "float32"]["ours"] == 0.25
    assert found["goodput", "float32"]["build"] == "AVX2"
