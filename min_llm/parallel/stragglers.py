"""Which process is slow (Llama 3 section 3.3.4): a slow one does not fail, it makes all others wait for it.

In a synchronous step everybody's clock shows the same time, that of the slowest, so a step's time names nobody. Each
process therefore also times what needs no other: its waiting for data, and a fixed product on its first device. From
both follows what a step would take at its own pace.
"""

from __future__ import annotations

import collections
import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any

SLOWER = 1.12  # times the median: a process that is 20 % slower is found through some noise
WINDOW = 8  # the latest rows that are looked at


class Stragglers:
    """Feeds on rows of seconds, one number a process; names those that stay slow.

    A process is slow when the shortest of its latest `WINDOW` times is more than `SLOWER` times the median of
    everybody's shortest: whoever shares its machine for a while is not. Of two processes the faster one is the median.
    """

    def __init__(self) -> None:
        self.rows: collections.deque[Sequence[float]] = collections.deque(maxlen=WINDOW)
        self.known: set[int] = set()

    def feed(self, seconds: Sequence[float]) -> dict[int, float]:
        """Processes that have now become slow, and how many times the median they take."""
        self.rows.append(seconds)
        if len(self.rows) < WINDOW:
            return {}
        shortest = [min(column) for column in zip(*self.rows, strict=True)]
        middle = max(statistics.median_low(shortest), 1e-9)
        slow = {rank: s / middle for rank, s in enumerate(shortest) if s > SLOWER * middle}
        found = {rank: ratio for rank, ratio in slow.items() if rank not in self.known}
        self.known = set(slow)
        return found


def own_seconds(step: float, waits: Sequence[float], paces: Sequence[float]) -> list[float]:
    """What a step of `step` seconds would take each process alone.

    waits: seconds a step that each waited for data. paces: seconds of the same product. The step ends when the slowest
    is done: it is the largest of wait + c · pace, which gives c.
    """
    c = min(max(step - wait, 0.0) / pace for wait, pace in zip(waits, paces, strict=True))
    return [wait + c * pace for wait, pace in zip(waits, paces, strict=True)]


def pace(repeats: int = 5) -> float:
    """Seconds of a fixed product on this process's first device, the shortest of a few; milliseconds in all."""
    from min_llm import platform

    with platform.first_device():
        product, x = _product()
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            product(x).block_until_ready()
            times.append(time.perf_counter() - began)
    return min(times)


@functools.cache
def _product() -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    n = 512 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((n, n), jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()  # compiled
    return product, x
