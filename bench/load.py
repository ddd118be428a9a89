"""Load on an OpenAI-compatible server: clients that send one completion after another, and what they see of it.

Plain asyncio streams, a connection a request: the generator shares the machine with the server that it measures.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt as token ids, and the number of tokens to follow."""

    prompt: list[int]
    tokens: int


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a client saw: seconds from sending to the first token, then between one piece of the answer and the next;
    the tokens that the server counted."""

    first: float
    gaps: list[float]
    tokens: int


def requests(
    number: int, vocabulary: int, prompts: tuple[int, int], answers: tuple[int, int], seed: int
) -> list[Request]:
    """So many, with lengths drawn evenly from these ranges and prompts of random tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(prompts[0], prompts[1] + 1, number)
    tokens = rng.integers(answers[0], answers[1] + 1, number)
    return [
        Request(rng.integers(0, vocabulary, n).tolist(), int(m)) for n, m in zip(lengths, tokens, strict=True)
    ]


def run(address: str, work: Sequence[Request], clients: int) -> tuple[float, list[Seen]]:
    """Seconds that `clients` at once take for all of the work, and what each request saw. RuntimeError if the server
    refuses one or answers with another number of tokens."""

    async def all_of_it() -> tuple[float, list[Seen]]:
        left, seen = iter(work), []

        async def client() -> None:
            for request in left:
                seen.append(await complete(address, request))

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        return time.perf_counter() - began, seen

    return asyncio.run(all_of_it())


async def complete(address: str, request: Request) -> Seen:
    """Stream one greedy completion of exactly the asked length."""
    body = {
        "prompt": request.prompt, "max_tokens": request.tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    began, times, tokens = time.perf_counter(), [], 0
    async for event in events(address, "/v1/completions", body):
        if "error" in event:
            raise RuntimeError(f"the server answered {event['error']}")
        choices = event.get("choices", ())
        # an answer that is all special tokens shows nothing before its end
        if any(c["text"] or (c.get("finish_reason") and not times) for c in choices):
            times.append(time.perf_counter())
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if tokens != request.tokens or not times:
        raise RuntimeError(f"the answer has {tokens} tokens; {request.tokens} were asked for")
    return Seen(times[0] - began, np.diff(times).tolist(), tokens)


async def events(address: str, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The server-sent events of a POST, as JSON, up to [DONE]."""
    place = urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + data)
        status = await reader.readline()
        if b" 200 " not in status:
            rest = await reader.read()
            raise RuntimeError(f"{path}: {status.decode().strip()}: {rest[-500:].decode(errors='replace')}")
        # sizes of chunks and headers stand on lines of their own, which do not begin with "data:"
        while line := await reader.readline():
            if line.startswith(b"data: "):
                if line.startswith(b"data: [DONE]"):
                    return
                yield json.loads(line[6:])
        raise RuntimeError(f"{path}: the connection closed before the answer was complete")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
