"""Fixtures of all tests, and the rule that a required test may not skip in CI.

tests/required.txt lists tests (a node id without parameters, a file, or a folder, one a line) that must
really run, and so must every test that docs/coverage.toml names: where CI=true, a skip of one of them counts
as a failure and shows the reason of the skip.
"""

import functools
import gc
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


def keep_recent_programs(n: int = 200) -> None:
    """Keep the last n programs that JAX compiled alive. jaxlib 0.12 aborts when a program with oneDNN products is
    freed while its last thunk returns (docs/decisions.md), which a test does that compiles, compares and forgets."""
    import collections

    from jax._src import compiler

    recent: collections.deque = collections.deque(maxlen=n)
    compile_program = compiler.compile_or_get_cached

    @functools.wraps(compile_program)
    def compile_and_keep(*args, **kwargs):
        program = compile_program(*args, **kwargs)
        recent.append(program)
        return program

    compiler.compile_or_get_cached = compile_and_keep


keep_recent_programs()


MAPPINGS = 25_000  # Linux allows a process 65,530, and dies of the next one


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """After a module, forget what JAX has compiled if that is a lot: every program holds a few mappings of memory."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


@functools.cache
def required_tests() -> list[str]:
    """The entries of required.txt, without comments, and the tests that docs/coverage.toml names."""
    lines = (ROOT / "tests" / "required.txt").read_text(encoding="utf-8").splitlines()
    entries = [entry for line in lines if (entry := line.split("#")[0].strip())]
    coverage = ROOT / "docs" / "coverage.toml"
    rows = tomllib.loads(coverage.read_text(encoding="utf-8"))["row"] if coverage.exists() else []
    for row in rows:
        tests = row.get("test", [])
        entries += [tests] if isinstance(tests, str) else tests
    return entries


def is_required(nodeid: str, entries: list[str]) -> bool:
    """Whether a node id, parameters aside, is an entry or lies under one (a file of a folder, a test of a file)."""
    plain = nodeid.split("[")[0]
    return any(
        plain == entry or plain.startswith((entry.rstrip("/") + "/", entry + "::")) for entry in entries
    )


def fail_if_required(report, entries: list[str]) -> None:
    """Turns the report of a skipped required test, or of a skipped file that holds one, into a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    holds_one = any(entry.startswith(report.nodeid + "::") for entry in entries) if report.nodeid else False
    if is_required(report.nodeid, entries) or holds_one:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} is or holds a required test and must not skip in CI: {reason}"


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("true", "1")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if in_ci():
        fail_if_required(outcome.get_result(), required_tests())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    outcome = yield
    if in_ci():
        fail_if_required(outcome.get_result(), required_tests())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ../shared/data beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: it is laid beside the checkout on the project's own machines")
    return SHARED


@pytest.fixture(scope="session")
def run_python():
    """Runs code (or a module, given by its dotted name) in a fresh interpreter.

    run_python(code_or_module, *arguments, devices=None, env=None, check=True, timeout=300) returns the
    CompletedProcess with text output. devices=8 gives JAX that many virtual CPU devices; they belong in
    processes of their own because they slow every other test and XLA reads the flag once. Warnings of the
    interpreter and the variables of the calling process are passed on. check=True fails the test with both
    outputs.
    """

    def run(code_or_module, *arguments, devices=None, env=None, check=True, timeout=300):
        variables = {**os.environ, **(env or {})}
        if devices is not None:
            flag = f"--xla_force_host_platform_device_count={devices}"
            variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {flag}".strip()
            variables["JAX_PLATFORMS"] = "cpu"
        is_module = all(part.isidentifier() for part in code_or_module.split("."))
        command = [sys.executable, "-m" if is_module else "-c", code_or_module, *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=variables,
            text=True,
            capture_output=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            pytest.fail(
                f"exit status {done.returncode} of {command[1:3]}\n"
                f"--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
            )
        return done

    return run
