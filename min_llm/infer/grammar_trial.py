"""A grammar is tried in a process of its own before the engine's process compiles it.

llguidance bounds the work of a mask, but not that of compiling: a chain of a thousand rules (or of `$ref`s, in 64 KiB
of JSON) overflows its stack, which ends the process, and 18 patterns that must all hold take it 40 seconds, three times
that with each one more (measured with 1.9.1). So `refusal` starts this file as a program, which imports llguidance
alone, and lets it have so much time, memory and stack.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any

SECONDS = 5.0  # 0.1 of which are Python's and the library's start
BYTES = 2 << 30
STACK = 4 << 20  # half of what threads have on Linux: what passes here has room there
_AT_ONCE = threading.BoundedSemaphore(2)


def refusal(lark: str) -> str | None:
    """Why a grammar cannot be used, or None when it can."""
    command = [sys.executable, "-P", __file__]  # -P: this folder's modules are not the library's
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        with _AT_ONCE:
            tried = subprocess.run(
                command, input=lark.encode(), env=env, capture_output=True, timeout=SECONDS
            )
    except subprocess.TimeoutExpired:
        return f"it is not compiled after {SECONDS:g} seconds"
    if tried.returncode < 0:
        return "it is nested too deep or needs too much memory"
    if not tried.stdout:
        said = tried.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return f"its trial failed: {said[-200:]}"
    return json.loads(tried.stdout)


def matcher(tokenizer: Any, lark: str) -> Any:
    """llguidance's matcher (LLMatcher) of a grammar in its Lark, for its tokenizer (LLTokenizer); never raises."""
    from llguidance import LLMatcher, LLParserLimits

    return LLMatcher(tokenizer, lark, log_level=0, limits=LLParserLimits(verbose_errors=False))


def error(matcher: Any) -> str | None:
    """What is wrong with a matcher whose mask was computed, in a line; None when nothing is."""
    if not matcher.is_error():
        return None
    message = matcher.get_error().partition("<")[0].strip()
    if message == "NoExtensionBias":
        return "no token can follow"
    return " ".join(message.split("\n   1 |")[0].split())[:300]


def _try(lark: str) -> None:
    from llguidance import LLTokenizer

    made = matcher(LLTokenizer("byte"), lark)
    if not made.is_error():
        made.compute_bitmask()  # finds out that nothing matches
    sys.stdout.write(json.dumps(error(made)))


def _main() -> None:
    try:
        import resource
    except ImportError:  # Windows: the time limit alone
        pass
    else:
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lark = sys.stdin.buffer.read().decode()
    threading.stack_size(STACK)
    thread = threading.Thread(target=_try, args=(lark,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    _main()
