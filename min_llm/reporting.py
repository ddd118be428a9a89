"""One reporter for the whole library: rich on a terminal, plain lines in a log, always on standard error.

Library code never prints; it calls `reporter()`. Standard output belongs to results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class Reporter:
    """Plain lines with the time of day; `log_to` copies every line into a run's log.txt."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream or sys.stderr
        self.log: IO[str] | None = None

    @property
    def on_terminal(self) -> bool:
        return self.stream.isatty()

    def info(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(text, style="yellow", mark="warning: ")

    def _line(self, text: str, style: str = "", mark: str = "") -> None:
        line = f"{time.strftime('%H:%M:%S')} {mark}{text}"
        if self.log is not None:
            self.log.write(line + "\n")
            self.log.flush()
        self._show(line, style)

    def _show(self, line: str, style: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()

    @contextmanager
    def progress(self, total: int, title: str) -> Iterator[Progress]:
        """A task of `total` units: `with reporter().progress(10, "reading") as p: p.advance()`."""
        yield PlainProgress(self, total, title)

    @contextmanager
    def log_to(self, path: Path) -> Iterator[None]:
        with path.open("a", encoding="utf-8") as log:
            self.log = log
            try:
                yield
            finally:
                self.log = None


class Progress:
    """Handle of one running task."""

    def advance(self, n: int = 1, note: str = "") -> None: ...


class PlainProgress(Progress):
    """A line every ten seconds: enough to see that a long task lives, little enough for a log."""

    def __init__(self, reporter: Reporter, total: int, title: str) -> None:
        self.reporter, self.total, self.title = reporter, total, title
        self.done, self.last = 0, time.monotonic()

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        if time.monotonic() - self.last >= 10:
            self.last = time.monotonic()
            self.reporter.info(f"{self.title}: {self.done}/{self.total} {note}".rstrip())


class RichReporter(Reporter):
    """Colours and a live progress bar with throughput and time left."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)

    def _show(self, line: str, style: str) -> None:
        self.console.print(line, style=style or None, markup=False)

    @contextmanager
    def progress(self, total: int, title: str) -> Iterator[Progress]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns: tuple[Any, ...] = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self.console, expand=True) as bars:
            yield RichProgress(bars, bars.add_task(title, total=total, note=""))


class RichProgress(Progress):
    def __init__(self, bars: Any, task: Any) -> None:
        self.bars, self.task = bars, task

    def advance(self, n: int = 1, note: str = "") -> None:
        self.bars.update(self.task, advance=n, **({"note": note} if note else {}))


_reporter: Reporter | None = None


def reporter() -> Reporter:
    """The process's reporter: rich when standard error is a terminal, plain otherwise."""
    global _reporter
    if _reporter is None:
        _reporter = RichReporter() if sys.stderr.isatty() else Reporter()
    return _reporter
