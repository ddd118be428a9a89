"""The process: a socket, uvicorn, and how it ends.

The first SIGTERM (or Ctrl-C) makes /health/ready say 503 and refuses new work, while the socket stays open: health
checks and the answers that run go on, for at most `drain` seconds. The second one aborts those answers.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from min_llm.config import UserError
from min_llm.reporting import reporter
from min_llm.serve.app import Settings, application
from min_llm.serve.connection import Connection
from min_llm.serve.runner import Runner
from min_llm.serve.service import Served

if TYPE_CHECKING:
    from min_llm.infer.engine import Engine

KEEP_ALIVE = (
    75  # seconds: longer than clients keep a connection, so that none sends into one that is being closed
)
LAST_WRITES = 2  # seconds for what is already made to reach its readers, when nothing runs any more


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises UserError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"Cannot listen at {host} port {port}: {why}. Choose others with --host and --port."
        ) from error


class Server(uvicorn.Server):
    """`run(sockets=[listen(…)])` serves until a signal; `finish` does what a signal does."""

    def __init__(self, served: Served, engine: Engine, settings: Settings = Settings()) -> None:
        app = application(served, engine, settings)
        self.runner: Runner = app.state.runner
        self.settings = settings
        self.loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                app,
                http=functools.partial(Connection, arrival=settings.arrival, stuck=settings.stuck),  # type: ignore[arg-type]
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=LAST_WRITES,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for place in sockets or ():
            host, port = place.getsockname()[:2]
            reporter().info(f"Serving at http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        reporter().info(f"{signal.Signals(sig).name}: {'aborting' if self.runner.draining else 'finishing'}")
        self.finish()

    def finish(self) -> None:
        """From any thread. Twice: at once."""
        if self.loop is None:  # not even started
            self.should_exit = True
        else:
            self.loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if self.runner.draining:
            self.runner.abort_all()
            self.should_exit = True
        else:
            self.runner.draining = True
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self.runner.drain(self.settings.drain)
        self.should_exit = True
