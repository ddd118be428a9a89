"""docs/coverage.toml: which techniques and neighbouring systems are here, rendered and checked.

`render` is what `min-llm coverage` prints, `check` what `--check` and the tests run: a row that says `done`
needs a module that imports, tests that exist and do not skip, and result rows for the effects that it
claims.
"""

from __future__ import annotations

import ast
import importlib
import json
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from min_llm.config import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
COVERAGE = ROOT / "docs" / "coverage.toml"
STATUSES = ("done", "mechanism only", "planned")
KEYS = {"id", "title", "status", "module", "test", "effect", "note"}
Row = dict[str, Any]


def load(path: str | Path = COVERAGE) -> tuple[dict[str, str], list[Row]]:
    """Section titles and rows of a coverage file. Raises UserError where it is absent or no TOML."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is not there: the coverage list is part of a checkout, not of the wheel."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is no valid TOML: {error}.") from None
    return content.get("sections", {}), content.get("row", [])


def listed(value: str | list[str] | None) -> list[str]:
    """A field that holds one name or several."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def section_of(identity: str) -> str:
    """'L3-2.4b' is in 'L3-2', 'arch-gpt2' in 'arch'."""
    return identity.split(".")[0] if identity.startswith("L3-") else identity.split("-")[0]


def summary(rows: Collection[Row]) -> str:
    """'5 done, 1 mechanism only, 3 planned', without the zeros."""
    counts = Counter(row["status"] for row in rows)
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])


def render(path: str | Path = COVERAGE) -> str:
    """The list as text for a terminal: sections, a line a row, where to read it and what proves it."""
    sections, rows = load(path)
    lines = []
    for section, title in sections.items():
        inside = [row for row in rows if section_of(row["id"]) == section]
        if not inside:
            continue
        lines.append(f"{section}  {title}: {summary(inside)}")
        width = max(len(row["id"]) for row in inside)
        for row in inside:
            lines.append(f"  {row['id']:{width}}  {row['status']:14}  {row['title']}")
            blank = f"  {'':{width}}  {'':14}  "
            for name in ("module", "test", "effect"):
                lines += [f"{blank}{name}: {text}" for text in listed(row.get(name))]
            lines += [f"{blank}{row['note']}"] if row.get("note") else []
        lines.append("")
    return "\n".join([*lines, f"all: {summary(rows)}"])


def check(path: str | Path, collected: Collection[str], results: Collection[str]) -> list[str]:
    """What is wrong with a coverage file, as sentences.

    `collected` holds the ids of the tests that exist and do not always skip, without parameters
    (`collected_tests`); `results` holds the ids of all result rows (`result_ids`).
    """
    sections, rows = load(path)
    problems = []
    for identity, count in Counter(row.get("id") for row in rows).items():
        if identity is None:
            problems.append("a row has no id")
        elif count > 1:
            problems.append(f"{identity} has {count} rows")
        elif section_of(identity) not in sections:
            problems.append(f"{identity} is in no section of [sections]")
    for row in rows:
        problems += (f"{row.get('id')}: {text}" for text in _wrong(row, collected, results))
    return problems


def _wrong(row: Row, collected: Collection[str], results: Collection[str]) -> Iterator[str]:
    for key in sorted(row.keys() - KEYS):
        yield f"has a field {key!r}; there are {', '.join(sorted(KEYS))}"
    if not row.get("title"):
        yield "has no title"
    if row.get("status") not in STATUSES:
        yield f"its status is {row.get('status')!r}, not one of {', '.join(STATUSES)}"
    modules, tests = listed(row.get("module")), listed(row.get("test"))
    if row.get("status") in ("done", "mechanism only"):
        if not modules:
            yield f"is {row['status']} but names no module"
        if not tests:
            yield f"is {row['status']} but names no test"
    if row.get("status") == "mechanism only" and not row.get("note"):
        yield "is mechanism only; a note says what is missing"
    if row.get("status") == "planned" and (tests or row.get("effect")):
        yield "is planned but names tests or an effect"
    for module in modules:
        problem = _import_problem(module)
        if problem:
            yield problem
    for test in tests:
        if test.split("[")[0] not in collected:
            yield f"its test {test} does not exist or always skips"
    for effect in listed(row.get("effect")):
        if effect not in results:
            yield f"its effect {effect} is the id of no result row"


def _import_problem(name: str) -> str | None:
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return f"its module {module} does not import: {error}"
    return f"{module} has no {attribute}" if attribute and not hasattr(found, attribute) else None


def collected_tests(root: str | Path = ROOT) -> set[str]:
    """Ids of the tests in tests/, without parameters, read from the source: quick, and without plugins.

    Tests that are decorated with `pytest.mark.skip`, or whose file or class is, are left out.
    """
    root = Path(root)
    found = set()
    for path in sorted((root / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        if not any(isinstance(node, ast.Assign) and _skips_file(node) for node in tree.body):
            found |= {f"{path.relative_to(root).as_posix()}::{name}" for name in _tests(tree.body)}
    return found


def _tests(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not any(map(_is_skip, node.decorator_list)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                yield prefix + node.name
            elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                yield from _tests(node.body, f"{prefix}{node.name}::")


def _is_skip(decorator: ast.expr) -> bool:
    return ast.unparse(decorator).split("(")[0] == "pytest.mark.skip"


def _skips_file(node: ast.Assign) -> bool:
    named = any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)
    marks = node.value.elts if isinstance(node.value, (ast.List, ast.Tuple)) else [node.value]
    return named and any(map(_is_skip, marks))


def result_ids(root: str | Path = ROOT) -> set[str]:
    """Ids of all rows in bench/results/*.json and apps/*/results.json."""
    root = Path(root)
    files = [*(root / "bench" / "results").glob("*.json"), *root.glob("apps/*/results.json")]
    return {row["id"] for file in files for row in json.loads(file.read_text(encoding="utf-8"))}


def coverage(
    checked: Annotated[
        bool, typer.Option("--check", help="check the claims instead of showing them")
    ] = False,
) -> None:
    """The techniques of the Llama 3 paper and the neighbouring systems: which are here, where, proved by what."""
    if not checked:
        print(render())
        return
    problems = check(COVERAGE, collected_tests(), result_ids())
    print("\n".join(problems) or f"all claims of {COVERAGE.relative_to(ROOT)} are proved")
    if problems:
        raise typer.Exit(1)
