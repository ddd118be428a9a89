"""A required test that skips is a failure in CI and a skip elsewhere; the list of such tests is in order."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from min_llm.cli import coverage

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = """
import pytest

def test_required():
    pytest.skip("no data here")

def test_other():
    pytest.skip("no matter")

@pytest.mark.parametrize("n", [1])
def test_parametrised(n):
    pytest.skip("no data either")

@pytest.mark.xfail
def test_known():
    assert False

def test_works(): ...
"""


@pytest.mark.parametrize(("ci", "failed"), [("true", 3), ("", 0)])
def test_a_required_test_that_skips(tmp_path, ci, failed):
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tests)
    (tests / "test_a.py").write_text(TESTS)
    (tests / "test_b.py").write_text("import pytest\npytest.skip('all of it', allow_module_level=True)\n")
    (tests / "required.txt").write_text(
        "tests/test_a.py::test_required  # a comment\ntests/test_a.py::test_parametrised\n"
        "tests/test_a.py::test_known\ntests/test_b.py::test_gone\n"
    )
    options = "-q -ra --continue-on-collection-errors -p no:cacheprovider -p no:xdist".split()
    command = [sys.executable, "-m", "pytest", *options, str(tests)]
    environment = {"CI": ci, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    out = done.stdout
    assert ("is or holds a required test" in out) == bool(failed)
    assert out.count("\nFAILED ") + out.count("\nERROR ") == failed, out
    assert "1 passed" in out and "1 xfailed" in out
    assert "no data here" in out and "no data either" in out and "all of it" in out


def test_every_entry_of_the_list_exists():
    lines = (ROOT / "tests" / "required.txt").read_text().splitlines()
    entries = [entry for line in lines if (entry := line.split("#")[0].strip())]
    tests = coverage.collected_tests()
    missing = [
        entry
        for entry in entries
        if entry not in tests and not any(test.startswith((entry + "/", entry + "::")) for test in tests)
    ]
    assert missing == []
