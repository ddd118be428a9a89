"""The part of a run's report about its mix: what each source gave, and how well the model knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from min_llm.train import figures
from min_llm.train.figures import Series, number, percent
from min_llm.train.history import Row, column

COLOURS = "abcdef"
HEAD = ("source", "tokens", "epochs", "share of its phase", "bits per byte", "5-gram", "xz -9")


def names(rows: Sequence[Row]) -> list[str]:
    """The sources of the mix, [] where the run has none."""
    last = next((row for row in reversed(rows) if row["kind"] == "mix"), {})
    return [key.removeprefix("share/") for key in last if key.startswith("share/")]


def table(rows: Sequence[Row], baselines: Any) -> list[tuple[str, ...]]:
    """A line a source below `HEAD`, by the latest rows; baselines: what baselines.json holds."""

    def latest(kinds: Sequence[str], name: str, fmt: figures.Format) -> str:
        found = [point for kind in kinds for point in column(rows, kind, name)]
        return fmt(max(found)[1]) if found else ""

    known = baselines.get("sources") if isinstance(baselines, dict) else None
    lines = []
    for name in names(rows):
        about = (known or {}).get(name) or {}
        peers = (about.get("kneser_ney") or {}).get("bits_per_byte"), (about.get("xz_9") or {}).get("alone")
        lines.append(
            (
                name,
                latest(["mix"], f"tokens/{name}", number),
                latest(["mix"], f"epochs/{name}", number),
                latest(["mix"], f"share/{name}", percent),
                latest(["val", "final"], f"bits_per_byte/{name}", "{:.3f}".format),
                *("" if bits is None else f"{bits:.3f}" for bits in peers),
            )
        )
    return [HEAD, *lines] if lines else []


def curves(rows: Sequence[Row]) -> list[str]:
    """The loss of each source's validation text, and its share of the tokens since its phase began."""

    def of(kind: str, what: str) -> list[Series]:
        found = [(name, column(rows, kind, f"{what}/{name}")) for name in names(rows)]
        coloured = enumerate((name, points) for name, points in found if points)
        return [Series(name, points, COLOURS[k % len(COLOURS)]) for k, (name, points) in coloured]

    return [
        figures.curve("Validation by source", of("val", "loss"), unit="nats a token"),
        figures.curve(
            "Mix", of("mix", "share"), unit="share of the tokens of the phase", fmt=percent, zero=True
        ),
    ]
