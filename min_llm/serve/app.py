"""The ASGI application: routes, what every request passes on its way to them, and errors on the way back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from min_llm.config import UserError
from min_llm.infer.adapters import UnknownAdapter
from min_llm.serve import metrics as metrics_lib
from min_llm.serve.adapters import AdapterUpdates
from min_llm.serve.edge import Keys, Presence, Record
from min_llm.serve.errors import Refused, error_response, json_response, unavailable
from min_llm.serve.metrics import Metrics
from min_llm.serve.openapi import document
from min_llm.serve.page import page
from min_llm.serve.runner import Runner
from min_llm.serve.service import Served, Service
from min_llm.serve.text import Texts

if TYPE_CHECKING:
    from min_llm.infer.engine import Engine

OPEN = ("/", "/health/live", "/health/ready", "/openapi.json")  # no key is needed for these


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of a server; times in seconds.

    keys: API keys; none: everybody may ask. max_queue: choices that may wait for their first token. max_body: bytes of
    a request. arrival: in which a request must arrive whole. stuck: after which a client that takes nothing is cut off.
    backlog: outputs of a choice that may wait for a slow client. stall: after which a step counts as hung. drain: for
    running answers at the end. quiet: between comments that keep a silent stream open. lora_updates: callers may load
    and unload adapters.
    """

    keys: Sequence[str] = ()
    max_queue: int = 256
    max_body: int = 8 << 20
    arrival: float = 30.0
    stuck: float = 30.0
    backlog: int = 1024
    stall: float = 300.0
    drain: float = 30.0
    quiet: float = 15.0
    lora_updates: bool = False

    def __post_init__(self) -> None:
        for key in self.keys:
            if not key.strip() or not key.isascii() or not key.isprintable():
                raise UserError("An API key must be printable ASCII and not empty.")


def application(served: Served, engine: Engine, settings: Settings = Settings()) -> Starlette:
    """The server's application; `app.state.runner` is the thread's end that the process may drain."""
    metrics = Metrics()
    runner = Runner(
        engine,
        metrics,
        max_queue=settings.max_queue,
        backlog=settings.backlog,
        stall=settings.stall,
        quiet=settings.quiet,
    )
    metrics.watch(lambda: runner.statistics, lambda: runner.queued)
    service = Service(served, engine, runner, settings.max_body)
    texts = Texts(service)
    adapters = AdapterUpdates(service, settings.lora_updates)

    async def live(request: Request) -> Response:
        return json_response({"status": "live"})

    async def ready(request: Request) -> Response:
        if why := runner.trouble():
            raise unavailable(why)
        return json_response({"status": "ready"})

    async def measured(request: Request) -> Response:
        return Response(metrics.text(), media_type=metrics_lib.CONTENT_TYPE)

    async def described(request: Request) -> Response:
        return json_response(document(served.name))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        runner.start()
        yield
        await runner.stop()

    routes = [
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/completions", service.completions, methods=["POST"]),
        Route("/v1/embeddings", service.embeddings, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.model),
        Route("/v1/load_lora_adapter", adapters.load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", adapters.unload, methods=["POST"]),
        Route("/tokenize", texts.tokenize, methods=["POST"]),
        Route("/detokenize", texts.detokenize, methods=["POST"]),
        Route("/tokenizer_info", texts.info),
        Route("/health/live", live),
        Route("/health/ready", ready),
        Route("/metrics", measured),
        Route("/openapi.json", described),
        Route("/", page),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(Record, metrics=metrics, paths=[route.path for route in routes]),
            Middleware(Keys, keys=settings.keys, open=OPEN),
            Middleware(Presence),
        ],
        exception_handlers={
            Refused: _refused,
            UnknownAdapter: _unknown_adapter,
            UserError: _user_error,
            HTTPException: _http_error,
        },
    )
    app.state.runner = runner
    return app


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error_response(error)


def _unknown_adapter(request: Request, error: Exception) -> Response:
    return error_response(Refused(str(error), status=404, param="model", code="model_not_found"))


def _user_error(request: Request, error: Exception) -> Response:
    return error_response(Refused(str(error)))


def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette's router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    message = {
        404: "There is nothing at this path; /openapi.json lists what there is.",
        405: f"This path does not take {request.method[:20]!r}.",
    }.get(error.status_code, error.detail)
    return error_response(Refused(message, status=error.status_code, headers=error.headers))
