"""Refusals in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Refused(Exception):
    """A request that gets an error instead of an answer. param: the field of the body that is to blame."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})


def error_body(error: Refused) -> dict[str, Any]:
    kind = TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: Refused) -> Response:
    return json_response(error_body(error), error.status, error.headers)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(dumps(body), status, headers, "application/json")


def dumps(value: Any) -> str:
    """JSON that every client reads: no NaN, no Infinity; what is no ASCII is escaped, a lone surrogate too."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def overloaded(waiting: int) -> Refused:
    return Refused(
        f"The server is busy: {waiting} others wait. Try again later.",
        status=429,
        code="queue_full",
        headers={"Retry-After": "1"},
    )


def unavailable(why: str) -> Refused:
    return Refused(why, status=503, code="unavailable", headers={"Retry-After": "5"})


def engine_failed(why: str) -> Refused:
    """The engine failed over a request: sent again, it would fail again, so clients are told not to."""
    return Refused(why, status=500, code="engine_error", headers={"x-should-retry": "false"})
