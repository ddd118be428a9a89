"""A server in a thread of the test's process, and raw HTTP to be rude to it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import httpx

from min_llm.serve.app import Settings
from min_llm.serve.server import Server, listen
from min_llm.serve.service import Served
from min_llm.tokenizers.chat import ChatTemplate
from tests.serve.fake import FakeEngine

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>"


class Running:
    """client: an httpx client of this server."""

    def __init__(self, server: Server, engine, port: int) -> None:
        self.server, self.engine, self.port = server, engine, port
        self.runner = server.runner
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=20)

    def post(self, path: str, body: object, **named) -> httpx.Response:
        return self.client.post(path, json=body, **named)

    def complete(self, prompt="hello", **fields) -> dict:
        reply = self.post("/v1/completions", {"prompt": prompt, **fields})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def events(self, path: str, body: dict) -> list:
        """The parsed events of a stream; the last is "[DONE]"."""
        with self.client.stream("POST", path, json=body | {"stream": True}) as reply:
            assert reply.status_code == 200, reply.read()
            lines = [line for line in reply.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines), lines
        return [data if data == "[DONE]" else json.loads(data) for data in (line[6:] for line in lines)]

    def raw(self, data: bytes = b"") -> socket.socket:
        """A connection on which these bytes were sent."""
        made = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        made.sendall(data)
        return made

    def idle(self, seconds: float = 5.0) -> None:
        """Wait until nothing runs, here and in the engine."""
        until(lambda: not self.engine.busy and not self.runner.active, seconds)


def until(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def request(path: str, body: dict | bytes, *headers: str) -> bytes:
    """The bytes of a POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(head).encode() + data


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            got += data
    return got


@contextlib.contextmanager
def serving(engine=None, template: str | None = TEMPLATE, send_buffer: int = 0, **settings):
    """send_buffer: bytes that the kernel keeps of what a client does not read."""
    engine = engine or FakeEngine()
    made = None if template is None else ChatTemplate(template)
    served = Served("toy", engine.tokenizer, (256,), made)
    server = Server(served, engine, Settings(**{"drain": 0.0} | settings))
    place = listen("127.0.0.1", 0)
    if send_buffer:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    running = Running(server, engine, place.getsockname()[1])
    try:
        yield running
    finally:
        running.client.close()
        if isinstance(engine, FakeEngine):
            engine.gate.set()
        server.finish()
        thread.join(10)
        assert not thread.is_alive()
