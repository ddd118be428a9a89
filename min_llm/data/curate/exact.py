"""Exact duplicates: the first document with a text is kept. Llama 3, section 3.1.1 (L3-1.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from min_llm.config import option
from min_llm.data.curate.document import Document
from min_llm.data.curate.keyed import Corpus, Duplicates, Keys, apart, first_of_each


@dataclass(frozen=True)
class Exact(Duplicates):
    """Drop documents whose text, apart from the white space around it, an earlier document has."""

    kind = "exact duplicate"

    within: str = option("", "column that duplicates must agree in, such as language; empty: none")

    def keys(self, documents: list[Document]) -> Keys:
        keys = fingerprints(d.text.strip() for d in documents), np.arange(len(documents))
        return apart(keys, documents, self.within)

    def decide(self, corpus: Corpus) -> np.ndarray:
        kept = np.full(len(corpus.alive), -1, np.int64)
        for keys, rows in corpus.ranges():
            first = rows[first_of_each(keys)]
            kept[rows] = np.where(first == rows, -1, first)
        return kept


def fingerprints(texts: Iterable[str]) -> np.ndarray:
    """A 64-bit BLAKE2b hash of each text."""
    digests = [hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).digest() for t in texts]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
