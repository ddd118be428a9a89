"""Every acceptance part has evidence that holds, and the check notices evidence that does not."""

import json
import subprocess

import pytest

from scripts import evidence


def test_the_evidence_of_every_part_holds():
    if evidence.git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a shallow clone does not hold the commits that the evidence names")
    assert evidence.check(evidence.parts()) == []


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit; returns (folder, run git, evidence folder)."""
    root = tmp_path / "repo"
    root.mkdir()

    def git(*words):
        who = ["-c", "user.name=n", "-c", "user.email=e@example.invalid", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (root / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return root, git, root / "docs" / "evidence"


def write(repository, *claims):
    root, _, folder = repository
    claims = claims or (evidence.claim("loss", 1.5, "at most 1.6", True, "nats"),)
    at = evidence.commit(root)
    return evidence.write("kill", claims, command="x", seconds=2.0, measured_commit=at, folder=folder)


def test_good_evidence_passes(repository):
    root, git, folder = repository
    found = json.loads(write(repository).read_text())
    assert list(found) == list(evidence.FIELDS)
    assert found["commit"] == git("rev-parse", "HEAD")
    assert evidence.check(["kill"], folder, root) == []


def test_a_missing_or_foreign_file_is_named(repository):
    root, _, folder = repository
    write(repository)
    problems = evidence.check(["speed"], folder, root)
    assert "kill.json belongs to no acceptance part" in problems[0]
    assert "speed: no evidence" in problems[1]


@pytest.mark.parametrize("passed", [(False,), (True, False), ()])
def test_a_failed_or_empty_part_does_not_count(repository, passed):
    root, _, folder = repository
    evidence.write(
        "kill",
        [evidence.claim("loss", 2.0, "at most 1.6", p) for p in passed],
        command="x",
        seconds=1.0,
        measured_commit=evidence.commit(root),
        folder=folder,
    )
    assert "did not pass" in evidence.check(["kill"], folder, root)[0]


def test_what_could_not_be_measured_does_not_fail(repository):
    root, _, folder = repository
    write(repository, evidence.claim("a", 1, "1", True), evidence.claim("MFU", None, "a GPU", None))
    assert evidence.check(["kill"], folder, root) == []


def test_uncommitted_changes_do_not_count(repository):
    root, _, folder = repository
    (root / "code.py").write_text("x = 2\n")
    write(repository)
    assert "uncommitted changes" in evidence.check(["kill"], folder, root)[0]


def test_results_that_a_run_writes_are_no_changes(repository):
    root, git, _ = repository
    write(repository)
    git("add", "-f", ".")
    git("commit", "-q", "-m", "evidence")
    write(repository, evidence.claim("loss", 1.4, "at most 1.6", True))
    assert git("status", "--porcelain") and not evidence.commit(root).endswith("+changes")


def test_a_commit_outside_the_history_does_not_count(repository):
    root, git, folder = repository
    git("checkout", "-q", "-b", "side")
    (root / "code.py").write_text("x = 3\n")
    git("commit", "-q", "-a", "-m", "side")
    write(repository)
    git("checkout", "-q", "-")
    assert "not an ancestor" in evidence.check(["kill"], folder, root)[0]


def test_parts_are_the_files_of_the_acceptance_folder(tmp_path):
    for name in ("kill.py", "speed.py", "_common.py", "test_parts.py", "conftest.py", "notes.md"):
        (tmp_path / name).touch()
    assert evidence.parts(tmp_path) == ["kill", "speed"]
