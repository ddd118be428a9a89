"""What each step did, in numbers and samples: a tally a shard, added up for the report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from min_llm.data.curate.document import Document, Drop, Outcome

SAMPLES = 5  # documents shown for each reason
SHOWN = 600  # characters of a sample


@dataclass
class Count:
    documents: int = 0
    characters: int = 0

    def add(self, documents: int, characters: int) -> None:
        self.documents += documents
        self.characters += characters


@dataclass
class Row:
    """One step and source."""

    seen: Count = field(default_factory=Count)
    kept: Count = field(default_factory=Count)  # as they leave: rewriting changes the characters
    changed: int = 0
    dropped: dict[str, Count] = field(default_factory=dict)  # by kind


@dataclass(order=True)
class Sample:
    """A dropped document. Those with the smallest hashes are shown, so that the choice is random, repeatable, and the
    same however the corpus is cut into shards."""

    draw: str
    kind: str
    name: str
    source: str
    detail: str
    text: str


class Tally:
    """Counts and samples of some documents, by step and source."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Row]] = {}
        self.samples: dict[str, dict[str, list[Sample]]] = {}
        self.seconds: dict[str, float] = {}

    def record(self, step: str, documents: Iterable[Document], outcomes: Iterable[Outcome]) -> list[Document]:
        """Count a batch; returns the documents that go on."""
        kept = []
        sources = self.rows.setdefault(step, {})
        for document, outcome in zip(documents, outcomes, strict=True):
            row = sources.setdefault(document.source, Row())
            row.seen.add(1, len(document.text))
            if isinstance(outcome, Drop):
                self._drop(step, row, document, outcome)
            else:
                row.kept.add(1, len(outcome.text))
                row.changed += outcome is not document
                kept.append(outcome)
        return kept

    def unreadable(self, step: str, source: str, name: str, drop: Drop) -> None:
        """Count what could not be read; its characters are not known."""
        row = self.rows.setdefault(step, {}).setdefault(source, Row())
        row.seen.add(1, 0)
        self._drop(step, row, Document(name, "", source), drop)

    def spent(self, step: str, seconds: float) -> None:
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds

    def _drop(self, step: str, row: Row, document: Document, drop: Drop) -> None:
        row.dropped.setdefault(drop.kind, Count()).add(1, len(document.text))
        draw = hashlib.blake2b(f"{document.source}\0{document.name}".encode(), digest_size=8).hexdigest()
        found = self.samples.setdefault(step, {}).setdefault(drop.kind, [])
        if len(found) < SAMPLES or draw < found[-1].draw:
            text = (document.text if drop.shown is None else drop.shown)[:SHOWN]
            found.append(Sample(draw, drop.kind, document.name, document.source, drop.detail, text))
            found.sort()
            del found[SAMPLES:]

    def add(self, other: Tally) -> None:
        for step, sources in other.rows.items():
            for source, theirs in sources.items():
                row = self.rows.setdefault(step, {}).setdefault(source, Row())
                row.seen.add(**asdict(theirs.seen))
                row.kept.add(**asdict(theirs.kept))
                row.changed += theirs.changed
                for kind, count in theirs.dropped.items():
                    row.dropped.setdefault(kind, Count()).add(**asdict(count))
        for step, kinds in other.samples.items():
            for kind, samples in kinds.items():
                found = self.samples.setdefault(step, {}).setdefault(kind, [])
                found[:] = sorted([*found, *samples])[:SAMPLES]
        for step, seconds in other.seconds.items():
            self.spent(step, seconds)

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": {s: {k: asdict(row) for k, row in rows.items()} for s, rows in self.rows.items()},
            "samples": {
                s: {k: [asdict(x) for x in found] for k, found in kinds.items()}
                for s, kinds in self.samples.items()
            },
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Tally:
        tally = cls()
        for step, sources in found["rows"].items():
            for source, row in sources.items():
                dropped = {kind: Count(**count) for kind, count in row["dropped"].items()}
                counts = Count(**row["seen"]), Count(**row["kept"])
                tally.rows.setdefault(step, {})[source] = Row(*counts, row["changed"], dropped)
        for step, kinds in found["samples"].items():
            tally.samples[step] = {kind: [Sample(**x) for x in samples] for kind, samples in kinds.items()}
        tally.seconds = dict(found["seconds"])
        return tally
