"""What a call waits for: the outputs of its requests, from the engine's thread to the one task that reads them."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence

from min_llm.infer.request import Finish, Output, Sampling
from min_llm.serve.errors import Refused
from min_llm.serve.metrics import Metrics


@dataclasses.dataclass(frozen=True)
class Job:
    """One prompt to be answered. salt keeps its prefix-cache entries apart from those of other salts."""

    prompt: Sequence[int]
    sampling: Sampling
    adapter: str | None = None
    salt: str = ""


class Stream:
    """The outputs of some jobs as they come. Each turn gives those that have arrived, as (number of the job, output),
    or none after `quiet` seconds in which nothing came. Leaving it aborts what is unfinished.

    backlog: outputs of a choice that may wait here. forget: called when nobody wants more.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        backlog: int,
        quiet: float,
        metrics: Metrics,
        forget: Callable[[Stream], None],
    ) -> None:
        self._quiet, self._metrics, self._forget = quiet, metrics, forget
        self._arrived: deque[tuple[int, Output]] = deque()
        self._news = asyncio.Event()
        self._begun = time.monotonic()
        self._latest: dict[tuple[int, int], float] = {}  # when a choice had its last tokens
        self.requests: dict[int, int] = {}  # the engine's id -> number of the job
        self.unfinished = {(i, choice) for i, job in enumerate(jobs) for choice in range(job.sampling.n)}
        self.unbegun = set(self.unfinished)
        self.failure: Refused | None = None
        self.closed = False
        self._most = backlog * len(self.unfinished)

    def put(self, output: Output) -> None:
        """A reader that lags too far behind loses the rest."""
        place = self.requests[output.request], output.choice
        if self.closed or place not in self.unfinished:
            return
        self._measure(place, len(output.tokens))
        if len(self._arrived) >= self._most:
            return self.fail(Refused("The answer was not read fast enough.", status=408))
        if output.finish is not None:
            self.unfinished.discard(place)
        self._arrived.append((place[0], output))
        self._news.set()

    def _measure(self, place: tuple[int, int], tokens: int) -> None:
        self.unbegun.discard(place)
        if tokens:
            now = time.monotonic()
            if place in self._latest:
                self._metrics.between_tokens.observe((now - self._latest[place]) / tokens)
            else:
                self._metrics.first_token.observe(now - self._begun)
            self._latest[place] = now

    def fail(self, error: Refused) -> None:
        """No more will come, and why."""
        self.failure = error
        self._end("error", error.message)

    def abort(self) -> None:
        """No more will come: somebody ended it."""
        self._end("abort")

    def _end(self, finish: Finish, error: str | None = None) -> None:
        for number, choice in sorted(self.unfinished):
            self._arrived.append((number, Output(-1, choice, finish=finish, error=error)))
        self.unfinished.clear()
        self._news.set()
        self._forget(self)

    def finished(self, request: int) -> bool:
        """Whether all choices of a request have ended."""
        return all(number != self.requests[request] for number, _ in self.unfinished)

    def close(self) -> None:
        self.closed = True
        self._forget(self)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[tuple[int, Output]]:
        if not self._arrived:
            if not self.unfinished:
                raise StopAsyncIteration
            self._news.clear()
            try:
                async with asyncio.timeout(self._quiet):
                    await self._news.wait()
            except TimeoutError:
                return []
        arrived = list(self._arrived)
        self._arrived.clear()
        return arrived
