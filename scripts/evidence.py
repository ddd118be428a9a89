"""Evidence of the acceptance parts: docs/evidence/<part>.json, written by the run that proved it; its check.

A file says what was claimed, what was measured, the bound, and when, where, on which commit and by which
command. Evidence counts when its commit is an ancestor of HEAD, the tree had no other changes, and no claim
failed.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.results import machine_name, own_versions

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = ROOT / "docs" / "evidence"
PARTS = ROOT / "tests" / "acceptance"
# What runs write themselves: a changed file here does not make the measured code another one.
OUTPUTS = (
    "docs/evidence",
    "bench/results",
    "apps/*/results*",
    "apps/*/*.png",
    "README.md",
    "apps/*/README.md",
)
FIELDS = ("part", "passed", "date", "commit", "machine", "versions", "command", "seconds", "claims")
Claim = dict[str, Any]


def claim(text: str, figure: Any, bound: str, passed: bool | None, unit: str = "") -> Claim:
    """One line of evidence: a sentence, the figure, what was required; passed=None: could not be measured."""
    return {
        "claim": text,
        "figure": figure,
        "unit": unit,
        "bound": bound,
        "passed": None if passed is None else bool(passed),
    }


def git(*words: str, root: Path = ROOT) -> str:
    return subprocess.run(
        ["git", *words], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()


def commit(root: Path = ROOT) -> str:
    """HEAD, with "+changes" when tracked files other than `OUTPUTS` differ from it.

    $MIN_LLM_COMMIT names it where the tree is a copy of a commit that git knows nothing of (bench/gpu.py on a card)."""
    if given := os.environ.get("MIN_LLM_COMMIT"):
        return given
    outputs = [f":(exclude,glob){path}{'' if '*' in path or '.' in path else '/**'}" for path in OUTPUTS]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *outputs, root=root)
    return git("rev-parse", "HEAD", root=root) + ("+changes" if changed else "")


def parts(folder: Path = PARTS) -> list[str]:
    """Names of the acceptance parts: the files of tests/acceptance/ that are neither private nor pytest's."""
    return sorted(
        path.stem for path in folder.glob("*.py") if not path.stem.startswith(("_", "test_", "conftest"))
    )


def write(
    part: str,
    claims: Iterable[Claim],
    *,
    command: str,
    seconds: float,
    measured_commit: str | None = None,
    folder: Path = EVIDENCE,
) -> Path:
    """Write the evidence of a part, atomically. It passed when it has claims and none of them failed."""
    rows = list(claims)
    found = {
        "part": part,
        "passed": bool(rows) and all(row["passed"] is not False for row in rows),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": measured_commit or commit(),
        "machine": machine_name(),
        "versions": own_versions(),
        "command": command,
        "seconds": round(seconds, 1),
        "claims": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{part}.json"
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, file)
    return file


def check(names: Iterable[str], folder: Path = EVIDENCE, root: Path = ROOT) -> list[str]:
    """What is wrong with the evidence of these parts, as sentences; nothing when all of it holds."""
    wanted = list(names)
    problems = [
        f"docs/evidence/{file.name} belongs to no acceptance part"
        for file in sorted(folder.glob("*.json"))
        if file.stem not in wanted
    ]
    for part in wanted:
        file = folder / f"{part}.json"
        if not file.exists():
            problems.append(f"{part}: no evidence; run `make acceptance PART={part}` and commit {file.name}")
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        missing = [field for field in FIELDS if field not in found]
        if missing:
            problems.append(f"{part}: the evidence lacks {', '.join(missing)}")
            continue
        if not found["passed"]:
            failed = [row["claim"] for row in found["claims"] if row["passed"] is False]
            problems.append(f"{part}: did not pass: {'; '.join(failed) or 'it has no claims'}")
        if found["commit"].endswith("+changes"):
            problems.append(f"{part}: was measured with uncommitted changes, which proves no commit")
        elif not is_ancestor(found["commit"], root):
            problems.append(f"{part}: commit {found['commit'][:12]} is not an ancestor of HEAD")
    return problems


def is_ancestor(name: str, root: Path = ROOT) -> bool:
    """Whether HEAD contains the commit."""
    done = subprocess.run(["git", "merge-base", "--is-ancestor", name, "HEAD"], cwd=root, capture_output=True)
    return done.returncode == 0
