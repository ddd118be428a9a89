"""`min-llm chat`: through pipes, and at a terminal where Ctrl-C stops an answer and not the program."""

import contextlib
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from min_llm.cli.main import app
from min_llm.config import UserError
from min_llm.infer.load import Loaded
from min_llm.nn.runtime import Runtime
from min_llm.reporting import Reporter
from min_llm.tokenizers.byte import Bytes
from min_llm.tokenizers.chat import ChatTemplate
from tests.conftest import ROOT
from tests.serve.fake import FakeEngine
from tests.toys import LLAMA

TEMPLATE = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>")


def loaded(template):
    return Loaded("toy", LLAMA, None, Runtime(), Bytes(), template=template)


@pytest.fixture
def piped(monkeypatch):
    """piped(text, *options) gives standard output; piped.told is what the reporter was told."""
    told = []
    monkeypatch.setattr(
        "min_llm.reporting._reporter", Reporter(io.StringIO())
    )  # CliRunner's stderr ends with it

    def run(text, *options, template=TEMPLATE):
        monkeypatch.setattr(
            "min_llm.reporting.Reporter._line", lambda self, text, style="": told.append(text)
        )
        monkeypatch.setattr("min_llm.infer.load.load", lambda *_: loaded(template))
        monkeypatch.setattr("min_llm.infer.engine.Engine", lambda *_, **__: FakeEngine(script=b"well\nyes"))
        result = CliRunner().invoke(app, ["chat", "toy", *options], input=text)
        if isinstance(result.exception, UserError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    run.told = told
    return run


def test_a_line_is_a_message_and_answers_alone_come_out(piped, tmp_path):
    file = tmp_path / "said.json"
    out = piped(f"hello\n\n  again \n/save {file}\n/reset\n/quit\nnever\n", "--system", "Be kind.")
    assert out == "well\nyes\n" * 2 and piped.told[1:] == [f"Saved to {file}.", "A new conversation."]
    said = json.loads(file.read_text())["messages"]
    assert [m["role"] for m in said] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in said[:4]] == ["Be kind.", "hello", "well\nyes", "again"]
    with pytest.raises(UserError, match="no chat template.*min-llm sample"):
        piped("hello\n", template=None)


@pytest.mark.parametrize(
    ("line", "said"), [("/nothing", "/help"), ("/save", "/help"), ("long" * 100, "context has 256")]
)
def test_what_goes_wrong_in_a_pipe_ends_it(piped, line, said):
    with pytest.raises(UserError, match=said):
        piped(f"{line}\nhello\n")


PROGRAM = """
import fcntl, signal, termios
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test in the background of a shell ignores
# So that ^C is a signal. Not between fork and exec, where code may hang beside JAX's threads.
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from min_llm.cli.main import main
from tests.cli import test_chat
from tests.serve.fake import FakeEngine
import min_llm.infer.engine, min_llm.infer.load
min_llm.infer.load.load = lambda *_: test_chat.loaded(test_chat.TEMPLATE)
min_llm.infer.engine.Engine = lambda *_, **__: FakeEngine(script=b"ab\\x1b[2J" + b"c" * 150, pace=0.02)
main()
"""


class Terminal:
    def __init__(self, folder):
        self.end, theirs = pty.openpty()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MIN_LLM_HOME": str(folder), "TERM": "xterm"}
        environment["MIN_LLM_NATIVE"] = "0"  # an empty home would have the kernels compiled first
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "chat", "toy"],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.bytes = b""

    @property
    def said(self):
        return self.bytes.decode(errors="replace")

    def type(self, text):
        self.bytes = b""
        os.write(self.end, text.encode())

    def wait(self, pattern, seconds=60.0):
        """Until what was said since the last `type` matches."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.said):
            assert time.monotonic() < end, self.said
            if select.select([self.end], [], [], 0.1)[0]:
                self.bytes += os.read(self.end, 65536)

    def interrupt(self, pattern):
        """^C at the prompt, again if need be: readline can miss one that falls between two of its waits."""
        for _ in range(20):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.wait(pattern, 2.0)
        pytest.fail(f"^C does not end the line: {self.said!r}")


@pytest.fixture
def terminal(tmp_path):
    made = Terminal(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()
    os.close(made.end)


def test_a_terminal(terminal, tmp_path):
    terminal.wait("(?s)256 tokens of context.*› ")
    terminal.type("hello\n")
    terminal.wait("ab\ufffd\\[2Jccc")  # what the terminal would obey is not
    assert "\x1b[2J" not in terminal.said
    terminal.type("\x03")
    terminal.wait("(?s)tokens/s · prompt 14, 3 cached · stopped.*› ")
    terminal.type("half a line")
    terminal.wait("half a line")
    terminal.interrupt("› $")
    terminal.type("/save said.json\n")
    terminal.wait("Saved to said.json")
    answer = json.loads((tmp_path / "said.json").read_text())["messages"][1]["content"]
    assert answer.startswith("ab\x1b[2Jc") and len(answer) < 150
    terminal.type("/save said.json\n")
    terminal.wait("exists")
    terminal.type("/system\n")
    terminal.wait("(?s)no system prompt.*› $")
    terminal.type("\x1b[A\x1b[A\n")  # up, up: history
    terminal.wait("(?s)exists.*› $")  # ^D is an end for who waits for a line
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
    assert "hello" in (tmp_path / "chat_history").read_text().splitlines()
