"""How an answer goes out: as server-sent events, or whole."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from min_llm.serve.answers import Answer
from min_llm.serve.errors import Refused, dumps, error_body, json_response
from min_llm.serve.stream import Stream

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second: nginx is not to collect them
PING = b": ping\n\n"  # a comment, so that no proxy holds the connection for idle
DONE = b"data: [DONE]\n\n"

Chunks = AsyncGenerator[list[dict[str, Any]], None]


async def reply(answer: Answer, stream: Stream) -> Response:
    """The response to a call whose jobs the engine has accepted."""
    chunks = _chunks(answer, stream)
    if answer.asked.stream:
        return Events(chunks)
    async with contextlib.aclosing(chunks):
        return json_response(answer.whole([chunk async for some in chunks for chunk in some]))


async def _chunks(answer: Answer, stream: Stream) -> Chunks:
    """None of them after a time of silence. Raises Refused where the engine fails."""
    async with stream:
        if opening := answer.opening():
            yield opening
        async for outputs in stream:
            failed = next((output for _, output in outputs if output.finish == "error"), None)
            made = [] if failed else [c for number, output in outputs for c in answer.chunks(number, output)]
            if made or not outputs:
                yield made
            if failed is not None:
                raise stream.failure or Refused(failed.error or "The engine cannot go on with this answer.")
        if closing := answer.closing():
            yield closing


class Events(Response):
    """Chunks as they come, those that come together in one write. None for a while: a comment. An error ends them."""

    media_type = "text/event-stream"

    def __init__(self, chunks: Chunks) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self.chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async with contextlib.aclosing(self.chunks):
                async for some in self.chunks:
                    await write(b"".join(event(chunk) for chunk in some) or PING)
        except Refused as error:
            await write(event(error_body(error)))
        await write(DONE, more=False)


def event(chunk: dict[str, Any]) -> bytes:
    return f"data: {dumps(chunk)}\n\n".encode()
