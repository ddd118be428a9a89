"""Limits of time on a connection, which uvicorn lacks: a request must arrive whole, and an answer must be taken."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from min_llm.serve.errors import Refused, dumps, error_body


class Connection(H11Protocol):
    """arrival: seconds in which a request, head and body, must arrive once the connection is open (the next one on it:
    once its first byte is there). stuck: seconds in which a client must take something of what waits for it."""

    def __init__(self, *arguments: Any, arrival: float, stuck: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._arrival, self._stuck = arrival, stuck
        self._arriving: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arriving = self.loop.call_later(self._arrival, self._late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        head_begun = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if not (head_begun or self.conn.their_state is h11.SEND_BODY):
            self._stop_arriving()
        elif self._arriving is None:
            self._arriving = self.loop.call_later(self._arrival, self._late)

    def _late(self) -> None:
        self._arriving = None
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and self.cycle.response_started
        begun = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        if begun and not answering:
            self._refuse(Refused(f"The request took longer than {self._arrival:g} s to arrive.", status=408))
        self.transport.close()

    def _refuse(self, error: Refused) -> None:
        headers = [("content-type", "application/json"), ("connection", "close")]
        for event in (
            h11.Response(status_code=error.status, headers=headers, reason=b"Request Timeout"),
            h11.Data(data=dumps(error_body(error)).encode()),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self._stuck, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_arriving()
        self._stop_writing()
        super().connection_lost(exc)

    def _stop_arriving(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
        self._arriving = None

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        self._writing = None
