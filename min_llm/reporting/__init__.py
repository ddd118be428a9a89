"""One reporter for the whole library: rich on a terminal, plain lines in a log, always on standard error.

Library code never prints; it calls `reporter()`. Standard output belongs to results. This file is the plain half and
imports nothing heavy; terminal.py is the live display, chart.py draws its curve.
"""

from __future__ import annotations

import collections
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LINE_EVERY = 10.0  # seconds between a task's lines in a log
RATE_WINDOW = 60  # the time left is estimated from so many seconds

# How the numbers of a running task are shown; others are shown under their own name with four digits.
SHOWN = {
    "loss": "loss {:.3f}",
    "val_loss": "val {:.3f}",
    "tokens_per_second": "{:,.0f} tok/s",
    "mfu": "MFU {:.0%}",
}


class Reporter:
    """Plain lines with the time of day; `log_to` copies every line into a run's log.txt."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        """stream: standard error without one, whatever that is when a line is written."""
        self._given = stream
        self.log: IO[str] | None = None

    @property
    def stream(self) -> IO[str]:
        return self._given or sys.stderr

    def info(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}", style="yellow")

    def sample(self, step: int, text: str) -> None:
        """Text that the model of this step wrote."""
        self._line(f"step {step}  sample: {text[:160]!r}")

    def _line(self, text: str, style: str = "") -> None:
        line = f"{time.strftime('%H:%M:%S')} {text}"
        self._log(line)
        self._show(line, style)

    def _log(self, line: str) -> None:
        if self.log is not None:
            self.log.write(line + "\n")
            self.log.flush()

    def _show(self, line: str, style: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()

    @contextmanager
    def progress(self, total: int, title: str, done: int = 0) -> Iterator[Progress]:
        """A task of `total` units, `done` of them by an earlier process:
        `with reporter().progress(10, "reading") as p: p.advance()`."""
        task = Progress(self, total, title, done)
        try:
            yield task
        finally:
            task.finish()

    @contextmanager
    def log_to(self, path: Path) -> Iterator[None]:
        with path.open("a", encoding="utf-8") as log:
            self.log = log
            try:
                yield
            finally:
                self.log = None


class Progress:
    """Handle of one running task. In a log: a line every ten seconds, enough to see that a long task lives, little
    enough to read; the first numbers and the last ones are always there."""

    def __init__(self, reporter: Reporter, total: int, title: str, done: int = 0) -> None:
        self.reporter, self.total, self.title, self.done = reporter, total, title, done
        self.note, self.values = "", dict[str, float]()
        self.began = self.lined = time.monotonic()
        self.marks: collections.deque[tuple[float, int]] = collections.deque(maxlen=RATE_WINDOW)
        self.unsaid = False

    def advance(self, n: int = 1, note: str = "") -> None:
        """n more units are done."""
        now = time.monotonic()
        self.done, self.note = self.done + n, note or self.note
        if not self.marks or now - self.marks[-1][0] >= 1:
            self.marks.append((now, self.done))
        self.unsaid = True
        if now - self.lined >= LINE_EVERY:
            self.say()

    def metrics(self, step: int, **values: float) -> None:
        """The latest numbers of a training: loss, val_loss, tokens_per_second, mfu or others."""
        if not self.values:  # the first numbers are worth a line of their own: with the next unit
            self.lined = -math.inf
        self.values |= values
        self.unsaid = True

    def finish(self) -> None:
        """The task is over, done or not. One that showed numbers shows the last ones."""
        if self.values and self.unsaid:
            self.say()

    def say(self) -> None:
        self.lined, self.unsaid = time.monotonic(), False
        left = self.left()
        parts = [f"{self.title}: {self.done:,}/{self.total:,}", *self.numbers(), self.note]
        parts += [f"{clock(left)} left"] if left else []
        self._put("  ".join(p for p in parts if p))

    def _put(self, line: str) -> None:
        self.reporter.info(line)

    def numbers(self) -> list[str]:
        """The latest numbers as text."""
        names = [n for n in SHOWN if n in self.values] + [n for n in self.values if n not in SHOWN]
        return [(SHOWN.get(n) or n + " {:.4g}").format(self.values[n]) for n in names]

    def left(self) -> float | None:
        """Seconds left at the rate of the last minute; None when that cannot be known yet."""
        if not self.marks:
            return None
        (then, had), now = self.marks[0], time.monotonic()
        if self.done <= had or now - then < 1:
            return None
        return max(self.total - self.done, 0) * (now - then) / (self.done - had)


def clock(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


class Silent(Reporter):
    """Says nothing: for a process that repeats what another one reports."""

    def _log(self, line: str) -> None:
        pass

    def _show(self, line: str, style: str) -> None:
        pass

    @contextmanager
    def log_to(self, path: Path) -> Iterator[None]:
        yield


_reporter: Reporter | None = None


def silence() -> None:
    """From now on the process's reporter says nothing."""
    global _reporter
    _reporter = Silent()


def _can_draw() -> bool:
    """Standard error is a terminal that moves its cursor and speaks Unicode."""
    unicode = (sys.stderr.encoding or "").lower().startswith("utf")
    return sys.stderr.isatty() and unicode and os.environ.get("TERM") != "dumb"


def reporter() -> Reporter:
    """The process's reporter: a live display when standard error is a terminal, plain lines otherwise."""
    global _reporter
    if _reporter is None:
        if _can_draw():
            from min_llm.reporting.terminal import RichReporter

            _reporter = RichReporter()
        else:
            _reporter = Reporter()
    return _reporter
