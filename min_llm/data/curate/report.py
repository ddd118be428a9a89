"""report.json and report.html of a curation: what was dropped, by what, with samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from min_llm.data.curate.tally import Count, Row, Tally
from min_llm.platform import write_atomic
from min_llm.reporting import page, reporter

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write(
    folder: Path, about: dict[str, Any], tally: Tally, steps: list[str], files: list[dict[str, Any]]
) -> None:
    """Both reports; the one for programs last, since it says that the run is complete."""
    content = summary(about, tally, steps, files)
    write_atomic(folder / "report.html", render(folder.name, content))
    write_atomic(folder / "report.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for line in warnings(content):
        reporter().warn(line)
    left, came = content["output"]["documents"], content["steps"][0]["seen"]["documents"]
    reporter().info(f"curate: {left:,} of {came:,} documents are left; {folder / 'report.html'} says why.")


def summary(
    about: dict[str, Any], tally: Tally, steps: list[str], files: list[dict[str, Any]]
) -> dict[str, Any]:
    """What report.json holds. All but `seconds` is the same for the same inputs and steps."""
    rows = [_step(name, tally) for name in ("read", *steps)]
    output = rows[-1]["kept"] | {"files": files}
    return about | {"output": output, "steps": rows, "seconds": tally.seconds}


def _step(name: str, tally: Tally) -> dict[str, Any]:
    sources = tally.rows.get(name, {})
    total = Row()
    for row in sources.values():
        total.seen.add(**dataclasses.asdict(row.seen))
        total.kept.add(**dataclasses.asdict(row.kept))
        total.changed += row.changed
        for kind, count in row.dropped.items():
            total.dropped.setdefault(kind, Count()).add(**dataclasses.asdict(count))
    samples = [
        dataclasses.asdict(s)
        for kind in sorted(total.dropped)
        for s in tally.samples.get(name, {}).get(kind, [])
    ]
    by_source = {source: dataclasses.asdict(row) for source, row in sources.items()}
    return {"name": name} | dataclasses.asdict(total) | {"sources": by_source, "samples": samples}


def warnings(content: dict[str, Any]) -> list[str]:
    """What a person should look at before using the result."""
    lines = []
    for source, row in content["steps"][0]["sources"].items():
        seen, kept = row["seen"]["documents"], row["kept"]["documents"]
        if kept < seen / 2 or (seen and not kept):
            worst = max(row["dropped"], key=lambda kind: row["dropped"][kind]["documents"])
            lines.append(f"{source}: {seen - kept:,} of {seen:,} documents could not be read ({worst}).")
        elif row["dropped"]:
            lines.append(
                f"{source}: {seen - kept:,} of {seen:,} documents could not be read; the report says why."
            )
    if not content["output"]["documents"]:
        lines.append("Nothing is left. The report says which step took it.")
    return lines


def render(name: str, content: dict[str, Any]) -> str:
    """The page: self-contained, it asks for nothing from anywhere."""
    sources = list(content["steps"][0]["sources"])
    return page.render(TEMPLATE, name=name, sources=sources, **content)
