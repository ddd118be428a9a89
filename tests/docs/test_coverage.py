"""docs/coverage.toml holds every technique and system once, and what it calls done is proved."""

import re

import pytest

from min_llm.cli import coverage

# Rows of each section of the coverage list: the last number, and the ids with a letter.
SECTIONS = {
    "L3-0": (1, 3, ""), "L3-1": (1, 17, ""), "L3-2": (1, 10, "4b"), "L3-3": (1, 12, ""),
    "L3-4": (1, 6, ""), "L3-5": (1, 6, "4a 4b 4c"), "L3-6": (1, 9, ""), "L3-7": (1, 11, ""),
    "L3-8": (1, 10, ""), "L3-9": (1, 3, ""), "L3-10": (1, 11, ""), "L3-11": (1, 11, ""),
}  # fmt: skip
SYSTEMS = (
    "gpt2 gpt3 mixtral mamba mamba2 ssm-speech pixtral vlm-families gemini rt2 openvla pi0 fast smolvla "
    "bahdanau graves transformer bert"
)
EXPECTED = [f"{s}.{n}" for s, (low, high, _) in SECTIONS.items() for n in range(low, high + 1)]
EXPECTED += [f"{s}.{n}" for s, (_, _, extra) in SECTIONS.items() for n in extra.split()]
EXPECTED += [f"arch-{name}" for name in SYSTEMS.split()]


def test_every_technique_and_system_has_one_row():
    _, rows = coverage.load()
    assert sorted(row["id"] for row in rows) == sorted(EXPECTED)


def test_the_ids_are_those_of_the_coverage_list(shared_data):
    text = (shared_data.parent / "reference" / "llama3-techniques.md").read_text(encoding="utf-8")
    wanted = re.findall(r"^\| (L3-\d+\.\d+[a-z]?) \|", text, flags=re.MULTILINE)
    assert sorted(wanted) == sorted(identity for identity in EXPECTED if identity.startswith("L3-"))


def test_what_is_claimed_is_proved():
    assert coverage.check(coverage.COVERAGE, coverage.collected_tests(), coverage.result_ids()) == []


def test_render_shows_every_row():
    shown = coverage.render()
    assert all(re.search(rf"^ +{re.escape(identity)} ", shown, re.MULTILINE) for identity in EXPECTED)
    assert shown.splitlines()[-1].startswith("all: ")


GOOD = {
    "id": "L3-2.4", "title": "RoPE", "status": "done", "module": "min_llm.config:UserError",
    "test": "tests/x/test_x.py::test_one", "effect": "bench/a/tokens",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"test": "tests/x/test_x.py::test_one[3-a]"}, None),
        ({"status": "ready"}, "status is 'ready'"),
        ({"module": None}, "names no module"),
        ({"module": "min_llm.no_such_room"}, "does not import"),
        ({"module": "min_llm.config:NoSuchThing"}, "has no NoSuchThing"),
        ({"test": None}, "names no test"),
        (
            {"test": ["tests/x/test_x.py::test_one", "tests/x/test_x.py::test_gone"]},
            "test_gone does not exist",
        ),
        ({"effect": "bench/a/none"}, "id of no result row"),
        ({"status": "mechanism only"}, "a note says"),
        ({"status": "planned"}, "planned but names tests"),
        ({"status": "planned", "test": None, "effect": None, "module": None}, None),
        ({"tests": "x"}, "has a field 'tests'"),
        ({"id": "L9-1.1"}, "in no section"),
    ],
)
def test_check_finds(tmp_path, change, says):
    row = {key: value for key, value in (GOOD | change).items() if value is not None}
    problems = check_rows(tmp_path, row)
    assert problems == [] if says is None else any(says in problem for problem in problems)


def test_check_finds_a_second_row(tmp_path):
    assert check_rows(tmp_path, GOOD, GOOD) == ["L3-2.4 has 2 rows"]


def check_rows(folder, *rows):
    lines = ['[sections]\nL3-2 = "Architecture"']
    lines += ["[[row]]\n" + "\n".join(f"{key} = {value!r}" for key, value in row.items()) for row in rows]
    path = folder / "coverage.toml"
    path.write_text("\n".join(lines))
    return coverage.check(path, {"tests/x/test_x.py::test_one"}, {"bench/a/tokens"})


def test_collected_tests_reads_the_source(tmp_path):
    folder = tmp_path / "tests" / "nn"
    folder.mkdir(parents=True)
    (folder / "test_norm.py").write_text(
        "import pytest\n"
        "def helper(): ...\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_scale(n): ...\n"
        "@pytest.mark.skip(reason='later')\n"
        "def test_later(): ...\n"
        "class TestShapes:\n"
        "    def test_odd(self): ...\n"
    )
    (folder / "test_off.py").write_text(
        "import pytest\npytestmark = [pytest.mark.skip]\ndef test_it(): ...\n"
    )
    assert coverage.collected_tests(tmp_path) == {
        "tests/nn/test_norm.py::test_scale",
        "tests/nn/test_norm.py::TestShapes::test_odd",
    }


def test_the_command_shows_the_list_and_fails_on_a_claim_without_proof(monkeypatch, tmp_path, capsys):
    coverage.coverage(False)
    assert "L3-2.4b" in capsys.readouterr().out
    check_rows(tmp_path, GOOD | {"module": "min_llm.no_such_room"})
    monkeypatch.setattr(coverage, "COVERAGE", tmp_path / "coverage.toml")
    with pytest.raises(coverage.typer.Exit):
        coverage.coverage(True)
    assert "L3-2.4: its module min_llm.no_such_room does not import" in capsys.readouterr().out


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(coverage.UserError, match="part of a checkout"):
        coverage.render(tmp_path / "coverage.toml")
