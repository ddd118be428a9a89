"""Texts with labels that somebody else gave: the source a text is from, a column, a topic of Wikipedia. None of them is
the judgement of a model that is trained or tested here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from min_llm.config import UserError, nearest, option
from min_llm.data import readers, sources, split
from min_llm.data.curate.exact import fingerprints

SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")

Labelled = dict[str, str | tuple[str, ...]]


class Text(NamedTuple):
    text: str
    label: int
    held_out: bool


@dataclass(frozen=True)
class LabelledConfig:
    """Which texts have which label, and which of them are held out for the test."""

    sources: Labelled = option({}, "label -> names of sources, files or folders")
    tested: Labelled = option({}, "the same for a second test: sources that nothing is learnt from")
    rows: tuple[str, ...] = option(
        (), "instead: .jsonl files whose rows have a label, or wiki-en, wiki-fr, wiki-es"
    )
    text: str = option("text", "field of the text in .jsonl and .parquet files")
    label: str = option("label", "field of the label in `rows`")
    without: tuple[str, ...] = option((), "labels in `rows` that mean nothing, such as Uncategorized")
    unit: Literal["document", "sentence"] = option("document", "what is classified")
    shortest: int = option(20, "characters; shorter texts are left out")
    most: int = option(10_000, "texts of a label, drawn by their hash; 0: all")
    held_out: float = option(0.2, "share of the documents for the test")

    def __post_init__(self) -> None:
        if bool(self.sources) == bool(self.rows):
            raise UserError(
                "A classifier learns from texts: give data.sources (label -> texts) or data.rows."
            )
        if not 0 < self.held_out < 1:
            raise UserError(f"data.held_out is {self.held_out}; it must lie between 0 and 1.")

    def teacher(self) -> str:
        """Who gave the labels, for the record."""
        return "the source of each text" if self.sources else f"the column {self.label!r} of each row"

    def origins(self) -> dict[str, list[str]]:
        """label, or "rows" -> what the texts are and whose: title, licence, attribution."""
        named = self.sources or {"rows": self.rows}
        known = {label: map(sources.resolve, _listed(names)) for label, names in named.items()}
        return {
            label: [f"{s.title} ({s.licence}; {s.attribution})" for s in found]
            for label, found in known.items()
        }


def read(cfg: LabelledConfig, seed: int) -> tuple[tuple[str, ...], list[Text]]:
    """The labels in their order, and the texts in an order drawn by `seed`."""
    found = _split(_documents(cfg), cfg, seed, cfg.held_out)
    labels = tuple(sorted(found))
    if len(labels) < 2:
        raise UserError(f"A classifier needs two labels and more; there are {', '.join(labels) or 'none'}.")
    texts = _drawn(found, labels, cfg.most, seed)
    for number, label in enumerate(labels):
        if len({text.held_out for text in texts if text.label == number}) < 2:
            raise UserError(f"There are too few texts of {label!r} to hold out some: give more of them.")
    return labels, texts


def read_tested(cfg: LabelledConfig, labels: tuple[str, ...], seed: int) -> list[Text]:
    """The texts of the sources that are for the test alone."""
    for label in cfg.tested:
        if label not in labels:
            raise UserError(
                f"data.tested has a label {label!r} that nothing is learnt of.{nearest(label, labels)}"
            )
    return _drawn(_split(_of_sources(cfg.tested, cfg.text), cfg, seed, 1.0), labels, cfg.most, seed)


def _split(
    documents: Iterator[tuple[str, str]], cfg: LabelledConfig, seed: int, share: float
) -> dict[str, dict[str, bool]]:
    """label -> text -> whether it is held out.

    The split is of documents, by their hash, so that sentences of one document are on one side. A text that occurs
    more than once counts once; one that is on both sides is for training only, and one that has several labels has
    none: pages hold what nobody has translated."""
    found: dict[str, dict[str, bool]] = {}
    labels: dict[str, str | None] = {}
    for label, document in documents:
        held = split.draw(document, seed) < share * 2**64
        texts = found.setdefault(label, {})
        for text in SENTENCE.split(document) if cfg.unit == "sentence" else [document]:
            if len(text) >= cfg.shortest:
                texts[text] = texts.get(text, True) and held
                if labels.setdefault(text, label) != label:
                    labels[text] = None
    return {
        label: {text: held for text, held in texts.items() if labels[text]} for label, texts in found.items()
    }


def _drawn(found: dict[str, dict[str, bool]], labels: tuple[str, ...], most: int, seed: int) -> list[Text]:
    """At most so many texts of each label, in an order that depends on the texts and the seed alone."""
    drawn: list[tuple[int, Text]] = []
    for label, texts in found.items():
        draws = fingerprints(f"{seed}\n{text}" for text in texts).tolist()
        known = zip(
            draws, (Text(text, labels.index(label), held) for text, held in texts.items()), strict=True
        )
        drawn += sorted(known)[: most or None]
    return [text for _, text in sorted(drawn)]


def _documents(cfg: LabelledConfig) -> Iterator[tuple[str, str]]:
    """(label, text)."""
    yield from _of_sources(cfg.sources, cfg.text)
    for name in cfg.rows:
        rows = sources.topics(name) if name in sources.registry() else _of_rows(Path(name), cfg)
        yield from ((label, text) for label, text in rows if label not in cfg.without)


def _of_sources(given: Labelled, field: str) -> Iterator[tuple[str, str]]:
    for label, names in given.items():
        for name in _listed(names):
            yield from ((label, text) for text in sources.documents(name, field))


def _of_rows(path: Path, cfg: LabelledConfig) -> Iterator[tuple[str, str]]:
    for file in readers.user_files(path):
        labels, texts = readers.user_file(file, cfg.label), readers.user_file(file, cfg.text)
        yield from ((label, text) for (_, label), (_, text) in zip(labels, texts, strict=True))


def _listed(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given
