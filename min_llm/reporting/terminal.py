"""The live display of a terminal: a bar for any task; for a training also its numbers, the loss as a curve that
falls, and what the model wrote last. It is redrawn four times a second, so it follows a terminal that is resized."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderResult
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment
from rich.table import Table
from rich.text import Text

from min_llm.reporting import SHOWN, Progress, Reporter, chart, clock

WIDEST = 110  # columns; a wider terminal gains nothing
SPARE = 2  # columns on the right, for the ^C that a terminal writes there
CHART_ROWS = (3, 8)
KEPT_POINTS = 2000
SAMPLE_LINES = 3
FROM, TO = (240, 138, 75), (64, 190, 160)  # the colour of a high loss and of a low one


class RichReporter(Reporter):
    """Colours, and one live display at a time; lines appear above it."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console(stderr=True, highlight=False, emoji=False)
        self.display: Display | None = None

    def _show(self, line: str, style: str) -> None:
        stamp, _, text = line.partition(" ")
        table = Table.grid(padding=(0, 1))  # what does not fit goes on under the text, not under the time
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row(Text(stamp, "dim"), Text(text, style))
        self.console.print(table)

    def sample(self, step: int, text: str) -> None:
        """The latest sample stands in the display; the one before moves up into the lines."""
        if self.display is None:
            super().sample(step, text)
            return
        self._log(f"{time.strftime('%H:%M:%S')} step {step}  sample: {text[:160]!r}")
        if before := self.display.sample:
            line = Text(f"step {before[0]}  " + " / ".join(lines_of(before[1])), "dim italic", no_wrap=True)
            line.truncate(self.console.width, overflow="ellipsis")
            self.console.print(line)
        self.display.sample = (step, text)

    @contextmanager
    def progress(self, total: int, title: str, done: int = 0) -> Iterator[Progress]:
        if self.display is not None:  # a task within a task: the outer one has the screen
            yield LoggedProgress(self, total, title, done)
            return
        task = LoggedProgress(self, total, title, done)
        self.display = Display(task)
        try:
            # Results printed meanwhile stay on standard output where that is a file or a pipe.
            stdout = sys.stdout.isatty()
            with Resizable(self.display, console=self.console, refresh_per_second=4, redirect_stdout=stdout):
                yield task
                self.display.over = True
        finally:
            task.finish()
            self.display = None


class LoggedProgress(Progress):
    """The numbers behind the display, and the curve; its lines go to the log only."""

    def __init__(self, reporter: Reporter, total: int, title: str, done: int = 0) -> None:
        super().__init__(reporter, total, title, done)
        self.curve: list[chart.Point] = []
        self.validations: list[chart.Point] = []

    def metrics(self, step: int, **values: float) -> None:
        super().metrics(step, **values)
        if "val_loss" in values:
            self.validations.append((step, values["val_loss"]))
        if "loss" in values:
            self.curve.append((step, values["loss"]))
            if len(self.curve) > KEPT_POINTS:
                self.curve = halved(self.curve)

    def _put(self, line: str) -> None:
        self.reporter._log(f"{time.strftime('%H:%M:%S')} {line}")


def halved(points: list[chart.Point]) -> list[chart.Point]:
    """Every two neighbours as their mean; the last points stay as they are."""
    even = len(points) // 2 * 2
    pairs = zip(points[:even:2], points[1:even:2], strict=True)
    return [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in pairs] + points[even:]


class Resizable(Live):
    """Rich moves the cursor up by as many lines as it drew. A terminal that was made narrower has wrapped them, so
    there are more by now, and what is not overwritten would stay as rubbish."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        width, display = self.console.width, self.get_renderable()
        lengths = display.lengths if isinstance(display, Display) else []
        more = sum(math.ceil(length / width) - 1 for length in lengths if length > width)
        out = super().process_renderables(renderables)
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * more
        return [out[0], Control(*up), *out[1:]] if more and out else out


class Display:
    """What is drawn for a task, at whatever width the terminal has now."""

    def __init__(self, task: LoggedProgress) -> None:
        self.task, self.over = task, False
        self.sample: tuple[int, str] | None = None
        self.lengths: list[int] = []  # of the lines drawn last, in columns

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        group = Group(*self.parts(console, min(max(options.max_width - SPARE, 1), WIDEST)))
        lines = console.render_lines(group, options, pad=False)
        self.lengths = [Segment.get_line_length(line) for line in lines]
        for i, line in enumerate(lines):
            yield from [Segment.line(), *line] if i else line

    def parts(self, console: Console, width: int) -> Iterator[ConsoleRenderable]:
        if not self.task.values:
            yield self.bar_line(width)
            return
        yield from self.heading(width)
        rows = min(CHART_ROWS[1], console.height - 10)
        if len(self.task.curve) > 1 and rows >= CHART_ROWS[0] and width >= 40:
            yield from self.curve(width, rows)
        if self.sample:
            yield Text(f"wrote at step {self.sample[0]:,}:", "dim")
            for line in lines_of(self.sample[1])[:SAMPLE_LINES]:
                text = Text("  " + line, "italic", no_wrap=True)
                text.truncate(width, overflow="ellipsis")
                yield text

    def bar_line(self, width: int) -> Table:
        """One line: title, bar, count, note, time."""
        task = self.task
        table = Table.grid(padding=(0, 1), expand=False)
        table.width = width
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(ratio=1)
        for _ in range(3):
            table.add_column(no_wrap=True)
        bar = ProgressBar(max(task.total, 1), task.done)
        table.add_row(Text(task.title, "bold"), bar, f"{task.done:,}/{task.total:,}", task.note, self.times())
        return table

    def heading(self, width: int) -> Iterator[Table | Text]:
        """Title and time; the bar; the latest numbers."""
        task = self.task
        top = Table.grid(expand=False)
        top.width = width
        top.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        top.add_column(justify="right", no_wrap=True)
        title = Text.assemble((task.title, "bold"), f"  step {task.done:,} of {task.total:,}")
        top.add_row(title, Text(self.times(), "dim"))
        yield top
        bar = Table.grid(padding=(0, 1), expand=False)
        bar.width = width
        bar.add_column(ratio=1)
        bar.add_column(justify="right", width=4)
        bar.add_row(ProgressBar(max(task.total, 1), task.done), f"{task.done / max(task.total, 1):.0%}")
        yield bar
        numbers = Text("   ").join(Text.from_markup(n) for n in self.styled_numbers())
        numbers.truncate(width, overflow="ellipsis")
        yield numbers

    def styled_numbers(self) -> list[str]:
        values = self.task.values
        names = [n for n in SHOWN if n in values] + [n for n in values if n not in SHOWN]
        styles = {"loss": f"bold {colour(1.0)}", "val_loss": "bold yellow"}
        texts = self.task.numbers()
        return [f"[{styles.get(n, 'default')}]{t}[/]" for n, t in zip(names, texts, strict=True)]

    def times(self) -> str:
        elapsed, left = clock(time.monotonic() - self.task.began), self.task.left()
        return elapsed if self.over or left is None else f"{elapsed}  {clock(left)} left"

    def curve(self, width: int, rows: int) -> Iterator[Text]:
        """The loss, coloured by its height, and the validations as diamonds; below it the first and last step."""
        points, validations = list(self.task.curve), list(self.task.validations)
        values = [y for _, y in points + validations if math.isfinite(y)]
        if not values:
            return
        lo, hi = min(values), max(values)
        margin = max(len(f"{hi:.2f}"), len(f"{lo:.2f}"))
        inner = width - margin - 2
        lines = [list(row) for row in chart.draw(points, inner, rows, lo, hi)]
        diamonds = set()
        for x, y in validations:
            if math.isfinite(y) and points[0][0] <= x <= points[-1][0]:
                share = (hi - y) / (hi - lo) if hi > lo else 0.5
                diamonds.add((round(share * (rows - 1)), chart.place(x, points, inner)))
        labels = {0: hi, rows // 2: hi + (lo - hi) * (rows // 2) / (rows - 1), rows - 1: lo}
        for i, line in enumerate(lines):
            label = f"{labels[i]:.2f}" if i in labels else ""
            text = Text(f"{label:>{margin}} {'┤' if label else '│'}", "dim", no_wrap=True)
            style = colour(i / (rows - 1))
            for column, cell in enumerate(line):
                mark = (i, column) in diamonds
                text.append("◆" if mark else " " if cell == "\u2800" else cell, "yellow" if mark else style)
            yield text
        first, last = f"{points[0][0]:,.0f}", f"{points[-1][0]:,.0f}"
        gap = max(inner - len(first) - len(last), 1)
        yield Text(" " * (margin + 2) + first + " " * gap + last, "dim", no_wrap=True)


def colour(share: float) -> str:
    """From FROM (0) to TO (1)."""
    return "rgb({},{},{})".format(*(round(a + (b - a) * share) for a, b in zip(FROM, TO, strict=True)))


def lines_of(text: str) -> list[str]:
    """The lines of a sample that are not blank, without anything a terminal would obey."""
    lines = ("".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines())
    return [line for line in lines if line]
