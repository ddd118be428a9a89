"""The thread that steps the engine, and its bridge to asyncio.

One thread owns the engine. It takes commands (functions to call) from a queue, and after each step hands the outputs to
the event loop in one callback. Everything else here runs on the event loop, so nothing needs a lock: a command's result
and the outputs that follow it arrive in the order in which the thread sent them.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from min_llm.infer.request import Output, Sampling
from min_llm.reporting import reporter
from min_llm.serve.errors import engine_failed, overloaded, unavailable
from min_llm.serve.metrics import Metrics
from min_llm.serve.stream import Job, Stream

if TYPE_CHECKING:
    from min_llm.infer.engine import Engine
    from min_llm.infer.options import Statistics

T = TypeVar("T")


class Runner:
    """max_queue: choices that may wait for their first token. backlog: outputs of a choice that may wait for their
    reader. stall: seconds after which a step or command counts as hung. quiet: see Stream."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        max_queue: int = 256,
        backlog: int = 1024,
        stall: float = 300.0,
        quiet: float = 15.0,
    ) -> None:
        self.engine, self.metrics = engine, metrics
        self.max_queue, self.backlog, self.stall, self.quiet = max_queue, backlog, stall, quiet
        self.statistics: Statistics = engine.statistics()
        self.draining = False
        self.dead: str | None = None
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: set[Stream] = set()
        self._requests: dict[int, Stream] = {}
        self._calls: set[asyncio.Future] = set()
        self._running: dict[int, int] = {}  # the thread's: request -> its unfinished choices
        self._token: Sequence[int] = ()  # a prompt that the engine took
        self._since: float | None = None  # when the step or command that runs began
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # on the event loop

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Ends what runs and lets the thread go; one that hangs is left behind."""
        self.abort_all()
        self._commands.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 2.0)

    @property
    def active(self) -> int:
        """Calls that are being answered."""
        return len(self._streams) + len(self._calls)

    @property
    def queued(self) -> int:
        """Choices without a first token."""
        return sum(len(stream.unbegun) for stream in self._streams)

    def trouble(self) -> str | None:
        """Why no request should be sent here; None where all is well."""
        since = self._since
        if self.dead is not None:
            return self.dead
        if since is not None and time.monotonic() - since > self.stall:
            return f"The engine has not finished a step for more than {self.stall:.0f} seconds."
        return "The server is shutting down." if self.draining else None

    async def call(self, function: Callable[[], T]) -> T:
        """The result of a function called by the engine's thread, between two steps. Raises Refused when full."""
        if why := self.trouble():
            raise unavailable(why)
        if len(self._calls) >= self.max_queue:
            raise overloaded(len(self._calls))
        return await self._call(function, lambda _: None)

    async def open(self, jobs: Sequence[Job]) -> Stream:
        """Hand in jobs, all or none. Raises the engine's UserError for those it cannot serve, Refused when full."""
        if why := self.trouble():
            raise unavailable(why)
        stream = Stream(jobs, self.backlog, self.quiet, self.metrics, self.forget)
        if (waiting := self.queued) and waiting + len(stream.unfinished) > self.max_queue:
            raise overloaded(waiting)
        self._streams.add(stream)

        def added(requests: list[int]) -> None:
            stream.requests = {request: number for number, request in enumerate(requests)}
            self._requests |= dict.fromkeys(requests, stream)
            if stream.closed or not stream.unfinished:  # meanwhile the client has gone, or all was aborted
                self.forget(stream)

        try:
            await self._call(lambda: self._add(jobs), added)
        except BaseException:
            stream.close()
            raise
        return stream

    async def _call(self, function: Callable[[], T], then: Callable[[T], None]) -> T:
        """`then` gets the result before anything that the thread sends afterwards."""
        assert self._loop is not None
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.add(future)

        def settle(result: Any, error: BaseException | None) -> None:
            self._calls.discard(future)
            if error is None:
                then(result)
            if not future.done():
                future.set_result(result) if error is None else future.set_exception(error)

        def command() -> None:
            try:
                result = function()
            except Exception as error:
                self._tell(settle, None, error)
            else:
                self._tell(settle, result, None)

        self._commands.put(command)
        return await future

    def forget(self, stream: Stream) -> None:
        """Nobody reads these any more; what the engine still computes of them is aborted."""
        self._streams.discard(stream)
        gone = [request for request in stream.requests if self._requests.pop(request, None)]
        if gone and self.dead is None:
            self._commands.put(lambda: self._abort(gone))

    def abort_all(self) -> None:
        for stream in list(self._streams):
            stream.abort()

    async def drain(self, seconds: float) -> None:
        """No new calls; those that run may take so long, then they are aborted."""
        self.draining = True
        end = time.monotonic() + seconds
        while self.active and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self.abort_all()

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            stream = self._requests.get(output.request)
            if stream is not None:
                stream.put(output)
                if stream.finished(output.request):
                    self._requests.pop(output.request, None)
                if not stream.unfinished:
                    self._streams.discard(stream)

    def _failed(self, why: str, requests: list[int]) -> None:
        for stream in {self._requests[request] for request in requests if request in self._requests}:
            stream.fail(engine_failed(why))

    def _dies(self, why: str) -> None:
        self.dead = why
        for future in [f for f in self._calls if not f.done()]:
            future.set_exception(unavailable(why))
        self._calls.clear()
        for stream in list(self._streams):
            stream.fail(unavailable(why))

    # in the engine's thread

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        alive = True
        while alive:
            try:
                alive = self._obey()
                if alive:
                    self._step()
            except Exception as error:
                alive = self._recover(error)

    def _obey(self) -> bool:
        """Do what was asked meanwhile, and with nothing else to do wait until something is. False: to stop."""
        while True:
            self._since = None
            try:
                command = self._commands.get(block=not self.engine.busy)
            except queue.Empty:
                return True
            if command is None:
                return False
            self._since = time.monotonic()
            command()
            self.statistics = self.engine.statistics()

    def _step(self) -> None:
        self._since = time.monotonic()
        outputs = self.engine.step()
        self.statistics = self.engine.statistics()
        for output in outputs:
            if output.finish is not None:
                self._running[output.request] -= 1
                if not self._running[output.request]:
                    del self._running[output.request]
        if outputs:
            self._tell(self._deliver, outputs)

    def _recover(self, error: Exception) -> bool:
        """The engine computes anew what a failed step has lost, so the first failure costs time only. If it fails
        again, its requests are given up, and one of our own tells whether one of them was the cause. False: it was
        not."""
        self._tell(reporter().warn, _sentence(error))
        try:
            self._step()
            return True
        except Exception as again:
            why, requests = _sentence(again), list(self._running)
        try:
            self._abort(requests)
            self.engine.add(self._token, Sampling(temperature=0, max_tokens=1))
            while self.engine.busy:
                self.engine.step()
        except Exception:
            self._tell(self._dies, why)
            return False
        self._tell(self._failed, why, requests)
        return True

    def _add(self, jobs: Sequence[Job]) -> list[int]:
        requests: list[int] = []
        try:
            for job in jobs:
                request = self.engine.add(job.prompt, job.sampling, job.adapter, job.salt)
                requests.append(request)
                self._running[request] = job.sampling.n
                self._token = job.prompt[:1]
        except BaseException:
            self._abort(requests)
            raise
        return requests

    def _abort(self, requests: Iterable[int]) -> None:
        for request in requests:
            if self._running.pop(request, None):
                self.engine.abort(request)


def _sentence(error: Exception) -> str:
    return f"The engine failed in a step ({type(error).__name__}: {error})."
