"""The machine to oneself: benchmarks take a lock file, trainings wait while it is taken.

The lock is an advisory `flock` on $TMPDIR/min_llm.bench.lock, so it is gone when its holder dies,
however that happened. A
benchmark's own children are told through an environment variable and never wait for their parent.
Where there is no fcntl (Windows) nothing is locked and nothing waits.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HELD = "MIN_LLM_MACHINE_HELD"  # set for the holder and the processes it starts


def lock_file() -> Path:
    return Path(tempfile.gettempdir()) / "min_llm.bench.lock"


@contextmanager
def exclusive(on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the machine. Waits for another holder, telling `on_wait` so once. Nested use is free."""
    if os.environ.get(HELD) or not _can_lock():
        yield
        return
    import fcntl

    descriptor = os.open(lock_file(), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(descriptor, fcntl.LOCK_EX, on_wait)
        os.environ[HELD] = str(os.getpid())
        try:
            yield
        finally:
            del os.environ[HELD]
    finally:
        os.close(descriptor)  # and with it the lock


def wait_while_taken(on_wait: Callable[[str], None] | None = None) -> float:
    """Return when no benchmark holds the machine; the seconds waited (0.0 at once when none does).

    `on_wait` gets one sentence if there is a wait. About 10 us when the lock is free: a training loop may ask
    at every step.
    """
    if os.environ.get(HELD) or not _can_lock():
        return 0.0
    import fcntl

    try:
        descriptor = os.open(lock_file(), os.O_RDONLY)
    except FileNotFoundError:
        return 0.0
    try:
        return _take(descriptor, fcntl.LOCK_SH, on_wait)
    finally:
        os.close(descriptor)


def _can_lock() -> bool:
    return os.name == "posix"


def _take(descriptor: int, kind: int, on_wait: Callable[[str], None] | None) -> float:
    """Take the lock of this kind; the seconds it took, exactly 0.0 when it was free."""
    import fcntl

    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return 0.0
    except BlockingIOError:
        pass
    if on_wait is not None:
        on_wait(f"a benchmark holds this machine ({lock_file()}); waiting until it is done")
    began = time.monotonic()
    fcntl.flock(descriptor, kind)
    return time.monotonic() - began
