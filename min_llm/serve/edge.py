"""What every request passes: the key, the log and the counters, and the watch for clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
import traceback
from collections.abc import Collection, Sequence

from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from min_llm.reporting import reporter
from min_llm.serve.errors import Refused, error_response
from min_llm.serve.metrics import Metrics

BUG = Refused("The server failed; its log says how.", status=500, code="internal_error")


class Keys:
    """Only requests with one of the keys pass, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`. No keys: all do.

    open: paths for which no key is needed.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], open: Collection[str]) -> None:
        self.app, self.keys, self.open = app, [key.encode() for key in keys], open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.keys or scope["path"] in self.open or self._known(scope):
            return await self.app(scope, receive, send)
        refused = Refused(
            "Give an API key this server knows, as `Authorization: Bearer KEY`.",
            status=401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error_response(refused)(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        headers = HTTPConnection(scope).headers
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        data = given.encode("utf-8", "surrogateescape")
        # all of them are compared, each in constant time: how long it takes tells nothing about any
        return sum(hmac.compare_digest(data, known) for known in self.keys) > 0


class Record:
    """A line in the log and a count for each request, and the traceback of a bug, which clients do not see.

    paths: those that have a counter of their own.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status = time.monotonic(), 499  # the client went before there was an answer (nginx's number)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception as error:
            lines = "".join(traceback.format_exception(error)).splitlines()
            reporter().warn("\n".join(map(one_line, lines)))
            if status != 499:
                raise  # in the middle of an answer: the connection is closed
            await error_response(BUG)(scope, receive, sending)
        finally:
            took, path = time.monotonic() - begun, scope["path"]
            self.metrics.duration.observe(took)
            self.metrics.requests.labels(path if path in self.paths else "other", str(status)).inc()
            if not path.startswith(("/health/", "/metrics")):
                reporter().info(f"{one_line(scope['method'])} {one_line(path)} {status} {took:.3f} s")


def one_line(text: str) -> str:
    """Text of a stranger for a log: printable ASCII, not long."""
    return text[:200].encode("unicode_escape").decode("ascii")


class Presence:
    """Cancels the work for a client that has gone away, streamed or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        read = asyncio.Event()
        answered = False

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                read.set()
            return message

        async def sending(message: Message) -> None:
            nonlocal answered
            answered = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        async def gone() -> None:
            await read.wait()  # before that, the application hears it itself
            while (await receive())["type"] != "http.disconnect":
                pass

        async def work() -> None:
            with contextlib.suppress(ClientDisconnect):
                await self.app(scope, receiving, sending)

        working, watching = asyncio.create_task(work()), asyncio.create_task(gone())
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and not answered:
                working.cancel()
            await asyncio.wait((working,))
        finally:
            watching.cancel()
            working.cancel()
        if not working.cancelled():
            working.result()
