"""Plain lines in a log; on a terminal a display that fits its width, follows a resize and obeys no model."""

import io
import math
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from min_llm import reporting
from min_llm.reporting import Reporter, chart, clock
from min_llm.reporting.terminal import Display, LoggedProgress, RichReporter, halved, lines_of

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


@pytest.fixture
def time_flies(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    return now


def plain():
    stream = io.StringIO()
    return Reporter(stream), stream


def lines(stream):
    return [line.partition(" ")[2] for line in stream.getvalue().splitlines()]


def test_every_line_has_the_time_of_day_and_reaches_the_log(tmp_path):
    reporter, stream = plain()
    with reporter.log_to(tmp_path / "log.txt"):
        reporter.info("one")
        reporter.warn("two")
    reporter.info("three")
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in stream.getvalue().splitlines())
    assert lines(stream) == ["one", "warning: two", "three"]
    assert (tmp_path / "log.txt").read_text().splitlines() == stream.getvalue().splitlines()[:2]


def test_a_long_task_in_a_log_is_a_line_every_ten_seconds(time_flies):
    reporter, stream = plain()
    with reporter.progress(100, "reading") as task:
        for _ in range(45):
            time_flies[0] += 1
            task.advance(note="x.txt")
    assert len(lines(stream)) == 4
    assert lines(stream)[0].startswith("reading: 10/100  x.txt")
    # 40 of 100 in 40 s at one a second: 60 s are left
    assert lines(stream)[3] == "reading: 40/100  x.txt  1:00 left"


def test_a_short_task_says_nothing(time_flies):
    reporter, stream = plain()
    with reporter.progress(3, "reading") as task:
        for _ in range(3):
            task.advance()
    assert lines(stream) == []


def test_a_training_shows_its_first_and_its_last_numbers(time_flies):
    reporter, stream = plain()
    with reporter.progress(30, "run") as task:
        for step in range(1, 31):
            time_flies[0] += 0.1
            if step % 10 == 0:
                task.metrics(step, loss=5 - step / 10, tokens_per_second=12_345.6, mfu=0.413)
            task.advance()
            if step == 20:
                task.metrics(step, val_loss=4.2, reward=0.12345)
    first, last = lines(stream)
    assert first.startswith("run: 10/30  loss 4.000  12,346 tok/s  MFU 41%")
    assert last.startswith("run: 30/30  loss 2.000  val 4.200  12,346 tok/s  MFU 41%  reward 0.1235")


def test_time_left_does_not_count_what_an_earlier_process_did(time_flies):
    reporter, _ = plain()
    with reporter.progress(1000, "run", 900) as task:
        for _ in range(10):
            time_flies[0] += 2
            task.advance()
        assert task.done == 910
        assert task.left() == pytest.approx(90 * 2, rel=0.01)


def test_an_interrupted_task_shows_its_last_numbers_and_lets_the_exception_through(time_flies):
    reporter, stream = plain()
    with pytest.raises(KeyboardInterrupt), reporter.progress(30, "run") as task:
        task.metrics(1, loss=3.0)
        task.advance()
        raise KeyboardInterrupt
    assert lines(stream)[-1].startswith("run: 1/30  loss 3.000")


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03"), (math.inf, "?")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_a_sample_is_one_line_in_a_log():
    reporter, stream = plain()
    reporter.sample(200, "KING.\n\x1b[31mWhat")
    assert lines(stream) == [r"step 200  sample: 'KING.\n\x1b[31mWhat'"]


def terminal(width=80, height=24):
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, width=width, height=height, emoji=False, highlight=False
    )
    return RichReporter(console), stream


def task_with(points, reporter=None, total=600):
    task = LoggedProgress(reporter or Reporter(io.StringIO()), total, "shakespeare")
    for step, loss in points:
        task.metrics(step, loss=loss, tokens_per_second=12_000.0, mfu=0.4)
    return task


def drawn(task, width, height=24, sample=None):
    """The display's lines without colours."""
    display = Display(task)
    display.sample = sample
    reporter, stream = terminal(width, height)
    reporter.console.print(display)
    return CONTROL.sub("", stream.getvalue()).splitlines()


FALLING = [(step, 3 + 4 * math.exp(-step / 100)) for step in range(10, 610, 10)]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("height", [5, 12, 24, 60])
def test_the_display_fits_every_terminal(width, height):
    task = task_with(FALLING)
    task.metrics(200, val_loss=3.4)
    for line in drawn(task, width, height, (200, "word " * 100 + "\n" + "漢字" * 80)):
        assert cell_len(line) <= width, line


def test_the_curve_falls_from_the_top_left_to_the_bottom_right():
    found = drawn(task_with(FALLING), 80)
    rows = [line.partition("┤" if "┤" in line else "│")[2] for line in found if "┤" in line or "│" in line]
    assert len(rows) == 8
    assert rows[0].strip() and rows[0][0] != " " and not rows[0][40:].strip()
    assert rows[-1][-1] != " " and not rows[-1][:20].strip()
    labels = [float(line.split()[0]) for line in found if "┤" in line]
    assert labels[0] == pytest.approx(FALLING[0][1], abs=0.005)
    assert labels[-1] == pytest.approx(FALLING[-1][1], abs=0.005)
    assert labels == sorted(labels, reverse=True)


def test_validations_are_diamonds_where_they_belong():
    task = task_with(FALLING)
    task.metrics(300, val_loss=min(loss for _, loss in FALLING))
    rows = [
        line.partition("┤" if "┤" in line else "│")[2]
        for line in drawn(task, 80)
        if "┤" in line or "│" in line
    ]
    places = [(i, row.index("◆")) for i, row in enumerate(rows) if "◆" in row]
    assert len(places) == 1 and places[0][0] == 7
    assert places[0][1] == pytest.approx(len(rows[0]) * (300 - 10) / 590, abs=1.5)


def test_a_terminal_too_low_for_a_curve_shows_the_numbers():
    found = drawn(task_with(FALLING), 80, height=10)
    assert any("loss 3.0" in line and "12,000 tok/s" in line and "MFU 40%" in line for line in found)
    assert not any("┤" in line for line in found)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_a_gap(bad):
    found = drawn(task_with([*FALLING[:30], (310, bad), *FALLING[31:]]), 80)
    assert sum("┤" in line for line in found) == 3
    assert drawn(task_with([(1, bad), (2, bad)]), 80)  # nothing to draw, nothing raised


def test_a_sample_cannot_command_the_terminal():
    found = drawn(task_with(FALLING), 80, sample=(200, "a\x1b[2Jb\x07\r\n[bold]c[/]\n\n\nd"))
    assert found[-3:] == ["  a [2Jb", "  [bold]c[/]", "  d"]
    assert lines_of("\n \n") == []


def test_markup_in_names_and_lines_is_text():
    reporter, stream = terminal()
    reporter.info("path [/tmp/x] [red]is[/red] :smile:")
    assert "path [/tmp/x] [red]is[/red] :smile:" in CONTROL.sub("", stream.getvalue())


def test_long_lines_continue_under_the_text():
    reporter, stream = terminal(width=40)
    reporter.info("word " * 20)
    found = CONTROL.sub("", stream.getvalue()).splitlines()
    assert len(found) > 2 and all(line.startswith(" " * 9 + "word") for line in found[1:])


def test_the_display_keeps_the_log_and_moves_old_samples_up(tmp_path, time_flies):
    reporter, stream = terminal()
    with reporter.log_to(tmp_path / "log.txt"), reporter.progress(30, "run") as task:
        task.metrics(1, loss=3.0)
        reporter.sample(1, "first words")
        reporter.sample(2, "second words")
        assert reporter.display.sample == (2, "second words")
        with reporter.progress(5, "inner") as inner:  # must not fight for the screen
            inner.advance()
    assert reporter.display is None
    log = (tmp_path / "log.txt").read_text()
    assert "run: 0/30  loss 3.000" in log and "'first words'" in log and "'second words'" in log
    assert "step 1  first words" in CONTROL.sub("", stream.getvalue())


def test_a_narrowed_terminal_is_wiped_as_far_as_its_wrapped_lines_reach():
    reporter, stream = terminal(width=100)
    with reporter.progress(600, "run") as task:
        for step, loss in FALLING:
            task.metrics(step, loss=loss)
        reporter.console.print("above")
        height = len(reporter.display.lengths)
        wide = sum(length > 50 for length in reporter.display.lengths)
        reporter.console.width = 50
        stream.seek(0), stream.truncate()
        reporter.console.print("above")
        assert wide > 2
        assert stream.getvalue().count("\x1b[1A") == height - 1 + wide


def test_the_curve_of_a_long_run_keeps_a_bounded_number_of_points():
    task = task_with((step, 10 - step / 10_000) for step in range(10_000))
    assert len(task.curve) <= 2000
    assert task.curve[-1] == (9999, 10 - 0.9999)
    assert [x for x, _ in task.curve] == sorted(x for x, _ in task.curve)
    assert halved([(0, 0.0), (2, 4.0), (4, 1.0)]) == [(1, 2.0), (4, 1.0)]


finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=50), st.integers(1, 60), st.integers(1, 10))
def test_a_drawing_has_its_size_and_a_dot_in_every_column(ys, width, height):
    points = [(float(i), y) for i, y in enumerate(ys)]
    rows = chart.draw(points, width, height, min(ys), max(ys))
    assert len(rows) == height and all(len(row) == width for row in rows)
    if len(points) > 1:
        for column in range(width):
            assert any(row[column] != "\u2800" for row in rows)


def test_a_straight_line_is_drawn_straight():
    rows = chart.draw([(0, 0.0), (7, 7.0)], 4, 2, 0.0, 7.0)
    assert rows == ["⠀⠀⡠⠊", "⡠⠊⠀⠀"]


def test_columns_average_and_interpolate():
    assert chart.columns_of([(0, 1.0), (10, 3.0)], 3) == [1.0, 2.0, 3.0]
    assert chart.columns_of([(0, 1.0), (0.1, 3.0), (10, 0.0)], 2) == [2.0, 0.0]
    assert chart.columns_of([], 3) == [None] * 3
    assert chart.columns_of([(5, 2.0)], 3) == [2.0, None, None]


CODE = """
import time
from min_llm.reporting import reporter
with reporter().progress(1000, "run") as task:
    for step in range(1, 1001):
        task.metrics(step, loss=5 - step / 250)
        task.advance()
        print("go", flush=True) if step == 20 else time.sleep(0.01)
"""


# a shell that runs the tests in the background has Ctrl-C ignored, and children inherit that
HEAR_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


def test_a_pipe_gets_plain_lines(run_python):
    done = run_python(CODE.replace("0.01", "0"))
    assert "\x1b" not in done.stderr and done.stdout == "go\n"
    found = [line.partition(" ")[2] for line in done.stderr.splitlines()]
    assert found[0].startswith("run: 1/1,000  loss 4.996") and found[-1].startswith(
        "run: 1,000/1,000  loss 1.000"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals on Windows")
def test_ctrl_c_leaves_the_terminal_as_it_was():
    main, side = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", HEAR_CTRL_C + CODE],
        stdout=subprocess.PIPE,
        stderr=side,
        stdin=side,
        env=env,
        text=True,
    )
    os.close(side)
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGINT)
    shown, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            block = os.read(main, 4096)
        except OSError:  # Linux: the other side is closed
            break
        if not block:
            break
        shown += block
    process.wait(60)
    os.close(main)
    assert process.returncode != 0
    assert b"loss" in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")  # the cursor is visible again


@pytest.mark.parametrize(
    "term, encoding, expected",
    [("xterm", "utf-8", True), ("dumb", "utf-8", False), ("xterm", "ascii", False)],
)
def test_the_live_display_needs_a_capable_terminal(monkeypatch, term, encoding, expected):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr(Terminal, "encoding", encoding)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(reporting, "_reporter", None)
    assert isinstance(reporting.reporter(), RichReporter) == expected
