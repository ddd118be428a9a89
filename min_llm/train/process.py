"""What surrounds the loop in its process: the clock, the profiler, the signals."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from min_llm.reporting import reporter
from min_llm.train.config import profile_steps


class Clock:
    """Training time, without what it is told to leave out."""

    def __init__(self) -> None:
        self.waited = self.left_out = 0.0
        self.start()

    def start(self) -> None:
        self.began = self.last = time.perf_counter()
        self.left_out = self.total_left_out = 0.0

    def pause(self, seconds: float) -> None:
        self.left_out += seconds
        self.total_left_out += seconds

    def lap(self) -> tuple[float, float]:
        """(seconds since the last lap, of which the loop waited for data)."""
        now = time.perf_counter()
        seconds, waited = now - self.last - self.left_out, self.waited
        self.last, self.left_out, self.waited = now, 0.0, 0.0
        return max(seconds, 1e-9), waited

    def elapsed(self) -> float:
        """Seconds of training so far in this process."""
        return time.perf_counter() - self.began - self.total_left_out


class Trace:
    """`train.profile=FIRST-LAST`: a JAX profiler trace of those steps, in profile/."""

    def __init__(self, steps: str, folder: Path) -> None:
        self.steps = profile_steps(steps) if steps else None
        self.folder, self.on = folder / "profile", False

    def at(self, done: int) -> None:
        if self.steps is None:
            return
        if not self.on and done + 1 == self.steps[0]:
            jax.profiler.start_trace(str(self.folder))
            self.on = True
        elif self.on and done == self.steps[1]:
            self.close()

    def close(self) -> None:
        if self.on:
            jax.profiler.stop_trace()
            self.on = False
            reporter().info(f"Profile written to {self.folder}")


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or SIGINT arrives; a second SIGINT interrupts at once."""
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)
        reporter().info(f"{signal.Signals(number).name}: finishing the step, then saving.")

    try:
        old = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are somebody else's
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
