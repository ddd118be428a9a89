"""Lines that many documents share: menus, cookie notices, licences. Llama 3, section 3.1.1 (L3-1.5), after ccNet
(Wenzek et al. 2019)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from min_llm.config import UserError, option
from min_llm.data.curate.document import Document, Drop, Outcome
from min_llm.data.curate.exact import fingerprints
from min_llm.data.curate.keyed import Corpus, Keys, Names, Rows, first_of_each


@dataclass(frozen=True)
class Lines:
    """Remove every line that its bucket of documents has more than `most` times, apart from the white space around
    it."""

    most: int = option(6, "times that a line may occur in a bucket and stay")
    bucket: int = option(30_000_000, "documents of a bucket, counted in the order of the input")

    def __post_init__(self) -> None:
        if min(self.most, self.bucket) < 1:
            raise UserError("steps.lines: most and bucket must each be at least 1.")

    def keys(self, documents: list[Document]) -> Keys:
        lines = [[line for line in map(str.strip, d.text.split("\n")) if line] for d in documents]
        rows = np.repeat(np.arange(len(lines)), [len(found) for found in lines])
        return fingerprints(line for found in lines for line in found), rows

    def decide(self, corpus: Corpus) -> np.ndarray:
        """The lines to remove: uint64 [2, lines], bucket and key, sorted by bucket, then key."""
        found = [np.zeros((2, 0), np.uint64)]
        for keys, rows in corpus.ranges():
            buckets = (rows // self.bucket).astype(np.uint64)
            same_key = first_of_each(keys)
            first = np.maximum(same_key, first_of_each(buckets))  # sorted by key, then row: one run a pair
            begins, counts = np.unique(first, return_counts=True)
            often = begins[counts > self.most]
            found.append(np.stack([buckets[often], keys[often]]))
        lines = np.concatenate(found, axis=1)
        return lines[:, np.lexsort((lines[1], lines[0]))]

    def apply(
        self, documents: list[Document], rows: Rows, decision: np.ndarray, names: Names
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for document, row in zip(documents, rows.tolist(), strict=True):
            bucket = np.uint64(row // self.bucket)
            begin, end = np.searchsorted(decision[0], [bucket, bucket + np.uint64(1)])
            outcomes.append(_without(document, decision[1, begin:end]) if begin < end else document)
        return outcomes


def _without(document: Document, often: np.ndarray) -> Outcome:
    """The document without the lines that have these keys, sorted."""
    lines = document.text.split("\n")
    keys = fingerprints(line.strip() for line in lines)
    gone = np.take(often, np.searchsorted(often, keys), mode="clip") == keys
    if not gone.any():
        return document
    kept: list[str] = []
    blank = False  # the line after one that went would be a second blank line
    for line, out in zip(lines, gone.tolist(), strict=True):
        if out:
            blank = not kept or not kept[-1].strip()
        elif not blank or line.strip():
            kept.append(line)
            blank = False
    if not any(map(str.strip, kept)):
        return Drop("only repeated lines", f"{len(lines)} of them")
    return dataclasses.replace(document, text="\n".join(kept))
