"""The step that labels documents with a classifier and keeps what is wanted: quality, kind of text, language, topic.
Llama 3, section 3.1.1 and 3.1.2 (L3-1.9 to L3-1.13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from min_llm.config import UserError, nearest, option
from min_llm.data.curate.document import Document, Drop, Outcome
from min_llm.data.curate.exact import fingerprints
from min_llm.data.curate.listing import stamp
from min_llm.data.curate.model_file import Classifier, loaded


@dataclass(frozen=True)
class Classify:
    """Write the label that a classifier gives each document into a column, and drop documents by their label."""

    file: str = option("", "the classifier: what `min-llm data classifier` wrote")
    keep: tuple[str, ...] = option((), "labels that stay; none: all")
    least: float = option(
        0.0, "smallest probability, of the kept labels together, with which a document stays"
    )
    shares: dict[str, float] = option({}, "label -> share of its documents that stays, drawn by their text")
    column: str = option("", "column for the label; empty: what the classifier is called")

    def __post_init__(self) -> None:
        if not self.file:
            raise UserError("A step that classifies needs `file`: what `min-llm data classifier` wrote.")
        if not all(0 <= share <= 1 for share in (self.least, *self.shares.values())):
            raise UserError("`least` and `shares` of a step that classifies must lie between 0 and 1.")
        if self.least and not self.keep:
            raise UserError("`least` is about the labels in `keep`; name some.")

    def __call__(self, documents: list[Document]) -> list[Outcome]:
        (file,) = self.files()
        model = loaded(stamp(file, "steps.*.file"))
        for label in (*self.keep, *self.shares):
            if label not in model.labels:
                raise UserError(f"{file} knows no label {label!r}.{nearest(label, model.labels)}")
        found = model.predict([d.text for d in documents])
        draws = fingerprints(d.text for d in documents) / 2.0**64
        return [
            self._outcome(model, document, of_document, float(draw))
            for document, of_document, draw in zip(documents, found, draws, strict=True)
        ]

    def files(self) -> list[Path]:
        return [Path(self.file).expanduser()]

    def _outcome(self, model: Classifier, document: Document, found: np.ndarray, draw: float) -> Outcome:
        label = model.labels[int(found.argmax())]
        wanted = float(sum(found[model.labels.index(name)] for name in self.keep))
        if self.keep and (wanted < self.least if self.least else label not in self.keep):
            return Drop(label, f"{' or '.join(self.keep)} with probability {wanted:.2f}")
        if draw >= self.shares.get(label, 1.0):
            return Drop(f"{label}, downsampled", f"one of those beyond {self.shares[label]:.0%}")
        column = self.column or str(model.about["name"])
        return dataclasses.replace(document, meta={**document.meta, column: label})


def shares_for(counts: Mapping[str, float], mix: Mapping[str, float]) -> dict[str, float]:
    """The `shares` that turn what there is of each label (documents or characters) into a mix with these proportions,
    dropping as little as possible: the scarcest label stays whole, labels outside the mix go."""
    lacking = [label for label, part in mix.items() if part > 0 and not counts.get(label)]
    if lacking:
        raise UserError(f"There is nothing with the label {lacking[0]!r} to mix.")
    full = max(part / counts[label] for label, part in mix.items() if part > 0)
    return {label: (mix.get(label, 0.0) / count / full if count else 0.0) for label, count in counts.items()}
