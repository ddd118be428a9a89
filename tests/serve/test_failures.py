"""An engine that fails, and a server that ends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from tests.conftest import ROOT
from tests.serve.fake import FakeEngine
from tests.serve.servers import serving, until

LONG = {"prompt": "hello", "max_tokens": 100}


def status(running, path="/health/ready"):
    return running.client.get(path).status_code


@pytest.fixture
def reported(monkeypatch):
    """What the log says."""
    lines = []
    monkeypatch.setattr("min_llm.reporting.Reporter._line", lambda self, text, style="": lines.append(text))
    return lines


def in_background(function, *arguments):
    """The list its result will be in, and the thread."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments)), daemon=True)
    thread.start()
    return results, thread


def test_a_step_that_fails_once_is_repeated():
    engine = FakeEngine(pace=0.005)
    with serving(engine) as running:
        results, thread = in_background(lambda: running.complete(**LONG, temperature=0))
        until(lambda: engine.numbers.generated_tokens > 5)
        engine.fail = 1
        thread.join(10)
        assert results[0]["usage"]["completion_tokens"] == 100
        assert results[0]["choices"] == running.complete(**LONG, temperature=0)["choices"]


def test_requests_over_which_the_engine_fails_get_an_error_and_others_are_served():
    engine = FakeEngine(pace=0.005)
    with serving(engine) as running:
        whole, first = in_background(running.post, "/v1/completions", LONG)
        streamed, second = in_background(running.events, "/v1/completions", LONG)
        until(lambda: engine.numbers.generated_tokens > 5)
        engine.fail = 2
        first.join(5)
        second.join(5)
        assert whole[0].status_code == 500 and whole[0].headers["x-should-retry"] == "false"
        assert "injected" in whole[0].json()["error"]["message"]
        assert "injected" in streamed[0][-2]["error"]["message"] and streamed[0][-1] == "[DONE]"
        assert status(running) == 200 and running.complete(max_tokens=3)
        running.idle()


def test_an_engine_that_cannot_go_on_is_not_ready():
    engine = FakeEngine(pace=0.005)
    with serving(engine) as running:
        results, thread = in_background(running.post, "/v1/completions", LONG)
        until(lambda: engine.numbers.generated_tokens > 5)
        engine.fail = 3
        thread.join(5)
        assert results[0].status_code == 503
        assert status(running) == 503 and status(running, "/health/live") == 200
        reply = running.post("/v1/completions", LONG)
        assert reply.status_code == 503 and "retry-after" in reply.headers
        assert running.post("/v1/embeddings", {"input": "a"}).status_code == 503
        assert status(running, "/metrics") == 200


def test_a_command_that_fails_harms_nobody_else(monkeypatch, reported):
    engine = FakeEngine()
    with serving(engine) as running:
        monkeypatch.setattr(engine, "embed", lambda *_, **__: 1 / 0)
        reply = running.post("/v1/embeddings", {"input": "a"})
        assert reply.status_code == 500 and "division" not in reply.text
        assert any("ZeroDivisionError" in line for line in reported)
        assert running.complete() and status(running) == 200


def test_an_engine_that_hangs_is_not_ready():
    engine = FakeEngine()
    with serving(engine, stall=0.1) as running:
        engine.gate.clear()
        results, thread = in_background(running.complete)
        until(lambda: status(running) == 503)
        assert status(running, "/health/live") == 200
        assert running.post("/v1/completions", LONG).status_code == 503
        engine.gate.set()
        thread.join(5)
        assert results and status(running) == 200


def test_what_is_aborted_before_it_began_ends_too():
    engine = FakeEngine()
    body = {"prompt": ["a", "b"], "n": 2, "echo": True, "logprobs": 1, "prompt_logprobs": 1}
    with serving(engine) as running:
        engine.gate.clear()
        results, thread = in_background(lambda: running.complete(**body))
        until(lambda: len(engine.choices) == 4)
        running.server.finish()
        thread.join(5)
        engine.gate.set()
        assert [c["finish_reason"] for c in results[0]["choices"]] == ["abort"] * 4


def test_draining_in_the_process():
    engine = FakeEngine(pace=0.01)
    with serving(engine, drain=5.0) as running:
        results, thread = in_background(lambda: running.complete(**LONG))
        until(lambda: engine.numbers.generated_tokens > 3)
        running.server.finish()
        until(lambda: status(running) == 503)
        assert status(running, "/health/live") == 200
        assert running.post("/v1/completions", LONG).status_code == 503
        thread.join(5)
        assert results[0]["usage"]["completion_tokens"] == 100


# a process of its own

PROGRAM = """
import sys
from min_llm.serve.app import Settings
from min_llm.serve.server import Server, listen
from min_llm.serve.service import Served
from tests.serve.fake import FakeEngine
engine = FakeEngine(pace=0.02)
server = Server(Served("toy", engine.tokenizer), engine, Settings(drain=float(sys.argv[2])))
server.run(sockets=[listen("127.0.0.1", int(sys.argv[1]))])
"""


@pytest.fixture
def started():
    """started(drain, port=0) gives the process and its port, once it serves."""
    running = []

    def start(drain: float, port: int = 0):
        path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(drain)],
            cwd=ROOT, env=os.environ | path, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        for line in process.stderr:
            if "Serving at" in line:
                return process, int(line.rsplit(":", 1)[1])
        raise AssertionError("it did not start")

    yield start
    for process in running:
        process.kill()
        process.communicate()


def generating(port, tokens=100):
    """A stream that has begun: its chunks, and the thread that reads them."""
    chunks = []

    def read():
        body = {"prompt": "a", "max_tokens": tokens, "stream": True}
        with (
            contextlib.suppress(httpx.RemoteProtocolError),
            httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=20) as reply,
        ):
            chunks.extend(line for line in reply.iter_lines() if line)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    until(lambda: len(chunks) > 2)
    return chunks, thread


def test_sigterm_lets_answers_finish(started):
    process, port = started(20)
    chunks, thread = generating(port, tokens=60)
    process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 503)
    assert httpx.get(f"http://127.0.0.1:{port}/health/live").status_code == 200
    refused = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "a"})
    assert refused.status_code == 503
    thread.join(10)
    assert len(chunks) == 61 and chunks[-1] == "data: [DONE]" and '"length"' in chunks[-2]
    assert process.wait(5) == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_no_time_to_drain_and_a_second_signal_abort(started, signals):
    process, port = started(0 if signals == 1 else 60)
    chunks, thread = generating(port, tokens=200)
    begun = time.monotonic()
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    thread.join(5)
    assert '"finish_reason":"abort"' in chunks[-2] and chunks[-1] == "data: [DONE]"
    assert process.wait(5) == 0 and time.monotonic() - begun < 4


def test_killed_and_started_again_on_the_same_port(started):
    process, port = started(0)
    generating(port)
    process.kill()
    process.wait(5)
    _, again = started(0, port)
    assert again == port and httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200


def test_a_port_that_is_taken():
    from min_llm.config import UserError
    from min_llm.serve.server import listen

    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(UserError, match="--port"):
            listen("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(UserError, match="--port"):
            listen("127.0.0.1", 99_999)
