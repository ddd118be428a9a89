"""Chromium without a window, spoken to over its debugging pipe: messages of the DevTools protocol, one after another,
each ended by a zero byte."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
FLAGS = (
    "--headless=new --remote-debugging-pipe --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
    "--disable-extensions --disable-background-networking --disable-component-update --mute-audio --hide-scrollbars"
).split()
# Chromium reads commands from descriptor 3 and writes to 4.
START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Failed(Exception):
    """A command that the browser refused, or an exception in the page."""


class Page:
    """One tab. logged: what the page wrote to its console, its uncaught exceptions included."""

    def __init__(self, commands: int, events: int) -> None:
        self.commands, self.events, self.rest = commands, events, b""
        self.number, self.session = 0, None
        self.logged: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters) -> dict:
        """The result of a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (reply := self._next()).get("id") != self.number:
            self._note(reply)
        if "error" in reply:
            raise Failed(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def _next(self, seconds: float = 20.0) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.events], [], [], max(end - time.monotonic(), 0))
            data = os.read(self.events, 1 << 20) if ready else b""
            if not data:
                raise Failed("The browser does not answer.")
            self.rest += data
        one, _, self.rest = self.rest.partition(b"\0")
        return json.loads(one)

    def _note(self, event: dict) -> None:
        told = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.logged.append(json.dumps(told["exceptionDetails"].get("exception", told))[:500])
        elif event.get("method") == "Log.entryAdded":
            self.logged.append(told["entry"]["text"])

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState == 'complete'")

    def run(self, script: str):
        """The value of an expression in the page; what it promises is waited for."""
        reply = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise Failed(reply["exceptionDetails"].get("exception", {}).get("description", script))
        return reply["result"].get("value")

    def until(self, script: str, seconds: float = 8.0) -> None:
        """Waits for an expression to be true."""
        end = time.monotonic() + seconds
        while not self.run(f"!!({script})"):
            assert time.monotonic() < end, (
                f"not in time: {script}\n{self.run('document.body.innerText')}\n{self.logged}"
            )
            time.sleep(0.02)

    def size(self, width: int, height: int, phone: bool = False) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )  # fmt: skip

    def place(self, script: str) -> tuple[float, float]:
        """The middle of the element that an expression gives."""
        x, y = self.run(
            f"(() => {{ const r = ({script}).getClientRects()[0]; return [r.x + r.width / 2, r.y + r.height / 2] }})()"
        )
        return x, y

    def point(self, script: str) -> None:
        x, y = self.place(script)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, script: str) -> None:
        self.point(script)
        x, y = self.place(script)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        codes = {
            "Enter": (13, "\r"),
            "Escape": (27, ""),
            "ArrowRight": (39, ""),
            "ArrowLeft": (37, ""),
            "Tab": (9, ""),
        }
        code, text = codes[key]
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "", modifiers=8 if shift else 0,
            )  # fmt: skip

    def screenshot(self) -> bytes:
        """PNG of what is seen."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def browser(folder):
    """A page of a fresh browser that keeps its files in `folder`."""
    assert CHROMIUM is not None
    theirs_in, commands = os.pipe()
    events, theirs_out = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", START, str(theirs_in), str(theirs_out), CHROMIUM, *FLAGS,
         f"--user-data-dir={folder}", "about:blank"],
        pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Page(commands, events)
        yield page
        with contextlib.suppress(Failed):
            page.session = None
            page.send("Browser.close")
    finally:
        os.close(commands)
        os.close(events)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
