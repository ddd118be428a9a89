"""How many programs XLA has compiled in this process: a serving engine must not compile after its start."""

from __future__ import annotations

import functools
from typing import Any

import jax.monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen = [0]


def count() -> int:
    """Compilations since this was first asked."""
    _listen()
    return _seen[0]


@functools.cache
def _listen() -> None:
    def notice(event: str, duration_secs: float, **_: Any) -> None:
        if event == _EVENT:
            _seen[0] += 1

    jax.monitoring.register_event_duration_secs_listener(notice)
