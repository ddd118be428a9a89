"""Tables of README and docs, generated from result files: `python -m scripts.tables [--check]`.

A table stands between two comments; what is between them is replaced:

    <!-- table: bench/train metric=tokens/s dtype=f32,bf16 columns=case,ours,peer,ratio -->
    <!-- end -->

The source is `bench/<bench>` (all machines: bench/results/<bench>.*.json) or `apps/<app>`
(apps/<app>/results.json). `name=a,b` keeps rows whose field matches one of the patterns (* and ? as in file
names); `columns=` chooses and orders the columns. One number inside a sentence is written the same way and
names a row by its id:

    <!-- value: bench/train a/tokens-per-s/bf16/torch ratio -->1.9<!-- end -->
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- (table|value): ([^>]*?) -->)(.*?)(<!-- end -->)", re.DOTALL)
COLUMNS = ("case", "metric", "dtype", "ours", "unit", "peer_name", "peer", "ratio", "runs", "machine")
TITLES = {
    "ours": "min_llm",
    "peer_name": "peer",
    "peer": "peer's value",
    "ratio": "ratio (above 1: min_llm better)",
    "xla": "XLA",
    "of_xla": "planned / XLA",
}


class TableError(ValueError):
    """A block that cannot be filled: what it asks for and what there is."""


def documents(root: Path = ROOT) -> list[Path]:
    """Markdown files that may hold tables."""
    patterns = ("*.md", "docs/**/*.md", "notes/**/*.md", "apps/**/*.md", "bench/**/*.md")
    return sorted({path for pattern in patterns for path in root.glob(pattern) if "runs" not in path.parts})


def rows_of(source: str, root: Path = ROOT) -> list[dict[str, Any]]:
    """All rows of `bench/<bench>` or `apps/<app>`."""
    kind, _, name = source.partition("/")
    if kind == "bench":
        files = sorted((root / "bench" / "results").glob(f"{name}.*.json"))
    elif kind == "apps":
        files = [path for path in (root / "apps" / name / "results.json",) if path.exists()]
    else:
        raise TableError(f"a table's source is bench/<bench> or apps/<app>, not {source!r}")
    if not files:
        raise TableError(f"{source} has no result file; run its command first")
    return [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]


def number(value: Any) -> str:
    """Three or four digits, thousands apart; integers whole; [low, high] as a range; nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return " to ".join(number(part) for part in value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{round(value):,}"
    digits = 4 if 0.1 < abs(value) < 10 else 3
    return f"{value:.{digits}g}"


def options(text: str) -> tuple[str, dict[str, list[str]]]:
    """'bench/x metric=a,b' as ('bench/x', {'metric': ['a', 'b']})."""
    source, *words = text.split()
    return source, {key: value.split(",") for key, _, value in (word.partition("=") for word in words)}


def table(text: str, root: Path = ROOT) -> str:
    """The markdown table a block's text asks for."""
    source, chosen = options(text)
    columns = chosen.pop("columns", None)
    rows = rows_of(source, root)
    for key, patterns in chosen.items():
        if not any(key in row for row in rows):
            raise TableError(f"{source} has no field {key!r}; its fields: {', '.join(rows[0])}")
        rows = [
            row for row in rows if any(fnmatch.fnmatch(str(row.get(key)), pattern) for pattern in patterns)
        ]
    if not rows:
        raise TableError(f"no row of {source} fits {text!r}")
    if columns is None:
        columns = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = [
        "| " + " | ".join(TITLES.get(name, name) for name in columns) + " |",
        "|" + " --- |" * len(columns),
    ]
    lines += ["| " + " | ".join(number(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def value(text: str, root: Path = ROOT) -> str:
    """One field of one row: 'bench/x ROW-ID [FIELD]'; the field is `ours` when not named."""
    source, identity, *field = text.split()
    found = [row for row in rows_of(source, root) if row["id"] == identity]
    if not found:
        raise TableError(f"{source} has no row {identity!r}")
    return number(found[0][field[0] if field else "ours"])


def filled(text: str, root: Path = ROOT) -> str:
    """A document with all its blocks made anew."""

    def fill(match: re.Match[str]) -> str:
        head, kind, asked, _, tail = match.groups()
        return (
            f"{head}\n{table(asked, root)}\n{tail}"
            if kind == "table"
            else f"{head}{value(asked, root)}{tail}"
        )

    return BLOCK.sub(fill, text)


def stale(root: Path = ROOT) -> list[str]:
    """Documents whose blocks are not what the result files say, or cannot be filled, as sentences."""
    problems = []
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        try:
            if filled(text, root) != text:
                problems.append(f"{path.relative_to(root)} is out of date: run `make tables`")
        except TableError as error:
            problems.append(f"{path.relative_to(root)}: {error}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing, exit 1 when a document is out of date"
    )
    if parser.parse_args().check:
        problems = stale()
        print("\n".join(problems) or "all tables are up to date")
        return 1 if problems else 0
    for path in documents():
        text = path.read_text(encoding="utf-8")
        made = filled(text)
        if made != text:
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(made, encoding="utf-8")
            os.replace(temporary, path)
            print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
