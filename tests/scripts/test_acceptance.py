"""The runner of acceptance parts writes evidence whatever a part does."""

import json
import sys
from types import ModuleType

import pytest

from scripts import acceptance, evidence


@pytest.fixture
def part(monkeypatch):
    """Installs a part whose run() is the function given."""

    def install(run):
        module = ModuleType("tests.acceptance.made_up")
        module.__doc__ = "A part made up for this test."
        module.run = run
        monkeypatch.setitem(sys.modules, "tests.acceptance.made_up", module)
        monkeypatch.setattr(acceptance.importlib, "import_module", lambda name: sys.modules[name])

    return install


def test_claims_become_evidence(part, tmp_path, capsys):
    part(lambda: [evidence.claim("loss", 1.5, "at most 1.6", True, "nats")])
    assert acceptance.run_part("made_up", tmp_path)
    found = json.loads((tmp_path / "made_up.json").read_text())
    assert found["passed"] and found["command"] == "make acceptance PART=made_up"
    assert found["claims"][0]["figure"] == 1.5
    assert "ok: loss: 1.5 nats (required: at most 1.6)" in capsys.readouterr().out


def test_a_part_that_breaks_leaves_a_failed_claim(part, tmp_path, capsys):
    def run():
        yield evidence.claim("first", 1, "1", True)
        raise RuntimeError("out of disk")

    part(run)
    assert not acceptance.run_part("made_up", tmp_path)
    found = json.loads((tmp_path / "made_up.json").read_text())
    assert not found["passed"] and [row["passed"] for row in found["claims"]] == [True, False]
    assert "out of disk" in found["claims"][1]["figure"]


def test_a_part_without_claims_does_not_pass(part, tmp_path):
    part(list)
    assert not acceptance.run_part("made_up", tmp_path)


def test_an_unknown_part_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["acceptance", "no_such_part"])
    assert acceptance.main() == 2
    assert "there is no acceptance part 'no_such_part'" in capsys.readouterr().out
