"""Named operations served by a child process over its standard input and output; stdlib and NumPy only.

A message is one line of JSON and, after it, as many bytes of .npz as the line announces:

    {"op": "llama", "value": {"params": {"embed": {"__array__": "0"}}}, "bytes": 4711}\\n<4711 bytes of .npz>
    {"ok": true, "value": {"loss": 3.2}, "bytes": 0}\\n
    {"ok": false, "error": "ValueError: ...", "traceback": "..."}\\n

Values are trees of dicts with text keys, lists, numbers, texts, None and NumPy arrays. The child's own
prints, C libraries' included, go to its standard error, kept in a file by the parent and quoted in errors.
"""

import atexit
import contextlib
import ctypes
import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class ChildError(RuntimeError):
    """The child answered with an error, died, or did not answer in time."""


def pack(header: Mapping[str, Any], value: Any) -> bytes:
    """One message: `header` with the tree `value`, arrays moved to the .npz behind the line."""
    arrays: dict[str, np.ndarray] = {}

    def strip(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {str(key): strip(child) for key, child in node.items()}
        if isinstance(node, (list, tuple)):
            return [strip(child) for child in node]
        if isinstance(node, np.generic):
            return node.item()
        if hasattr(node, "__array__"):
            array = np.asarray(node)
            if array.dtype.kind not in "biuf":
                raise TypeError(
                    f"an array of dtype {array.dtype} does not fit in a message; send float32 instead"
                )
            name = str(len(arrays))
            arrays[name] = array
            return {"__array__": name}
        return node

    tree = strip(value)
    body = io.BytesIO()
    if arrays:
        np.savez(body, **arrays)  # type: ignore[arg-type]
    payload = body.getvalue()
    return json.dumps({**header, "value": tree, "bytes": len(payload)}).encode() + b"\n" + payload


def unpack(line: bytes, payload: bytes) -> dict[str, Any]:
    """The header of a message, with its "value" tree holding the arrays again."""
    header = json.loads(line)
    arrays = dict(np.load(io.BytesIO(payload), allow_pickle=False)) if payload else {}

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return arrays[node["__array__"]] if "__array__" in node else {k: fill(v) for k, v in node.items()}
        return [fill(child) for child in node] if isinstance(node, list) else node

    header["value"] = fill(header.get("value"))
    return header


def _take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipe's two ends for the protocol alone: from here on file descriptor 1 is standard error."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return requests, answers


def serve(operations: Mapping[str, Callable[..., Any]]) -> None:
    """Answer requests until the parent closes the pipe. Operations take keyword arguments, return trees."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no orphan keeps computing
    requests, answers = _take_standard_streams()
    while line := requests.readline():
        try:
            request = unpack(line, requests.read(json.loads(line)["bytes"]))
            if request["op"] not in operations:
                known = ", ".join(sorted(operations))
                raise KeyError(f"unknown operation {request['op']!r}; this child answers {known}")
            answer = pack({"ok": True}, operations[request["op"]](**request["value"]))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            answer = pack({"ok": False, "error": text, "traceback": traceback.format_exc()}, None)
        answers.write(answer)
        answers.flush()


class Child:
    """A running child process that answers `call`; leave the `with` block, or call `close`, to end it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        show_stderr: bool = False,
    ) -> None:
        self.name = name
        self._log = None if show_stderr else tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._buffer = bytearray()
        _living.add(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, op: str, *, timeout: float = 300.0, **value: Any) -> Any:
        """The answer's tree. ChildError carries the child's traceback, or tells of a time-out (seconds)."""
        deadline = time.monotonic() + timeout
        self._send(pack({"op": op}, value), op, deadline)
        while (end := self._buffer.find(b"\n")) < 0:
            self._receive(op, deadline)
        line = bytes(self._buffer[:end])
        size = json.loads(line)["bytes"]
        while len(self._buffer) < end + 1 + size:
            self._receive(op, deadline)
        payload = bytes(self._buffer[end + 1 : end + 1 + size])
        self._buffer.clear()
        answer = unpack(line, payload)
        if not answer["ok"]:
            raise ChildError(f"{self.name}: {op} failed: {answer['error']}\n{answer['traceback']}")
        return answer["value"]

    def close(self) -> None:
        """End the child and whatever it started (compile workers)."""
        _living.discard(self)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, data: bytes, op: str, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait([], [self._to], op, deadline)
            try:
                view = view[os.write(self._to, view) :]
            except BrokenPipeError:
                self._fail(f"{op}: the process ended with status {self._process.wait()}")

    def _receive(self, op: str, deadline: float) -> None:
        self._wait([self._from], [], op, deadline)
        data = os.read(self._from, 1 << 20)
        if not data:
            self._fail(f"{op}: the process ended with status {self._process.wait()}")
        self._buffer += data

    def _wait(self, reading: list[int], writing: list[int], op: str, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not any(select.select(reading, writing, [], left)):
            self._fail(f"{op}: no answer within the time limit")

    def _fail(self, reason: str) -> None:
        said = "(see above)"
        if self._log is not None:
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
            said = self._log.read().decode(errors="replace")
        self.close()
        raise ChildError(f"{self.name}: {reason}; its standard error ends with:\n{said}")


_living: "weakref.WeakSet[Child]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for child in list(_living):
        child.close()
