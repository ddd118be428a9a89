"""Documents with too many words of a list: adult pages that domain block lists miss. Llama 3, section 3.1.1 (L3-1.7);
the idea is that of C4 (Raffel et al. 2020), which dropped a page for a single one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from min_llm.config import UserError, option
from min_llm.data.curate import words as words_lib
from min_llm.data.curate.document import Document, Drop, Outcome
from min_llm.data.curate.listing import Stamp, read_list, stamp

SETTING = "steps.dirty.file"
OWN = Path(__file__).with_name("dirty_words.txt")


@dataclass(frozen=True)
class Dirty:
    """Drop documents in which words and phrases of the list are too frequent."""

    file: str = option("", "file of words or phrases, one a line; empty: a short English list of our own")
    rate: float = option(0.01, "largest share of the words that may be on the list")
    least: int = option(3, "so many are needed, however short the document")

    def __call__(self, documents: list[Document]) -> list[Outcome]:
        words = words_lib.split([d.text for d in documents])
        counts = self.counts(words)
        totals = np.diff(words.offsets)
        bad = (counts >= self.least) & (counts > self.rate * totals)
        return [
            Drop("dirty words", f"{n} of {total} words") if drop else document
            for document, drop, n, total in zip(documents, bad, counts, totals, strict=True)
        ]

    def files(self) -> list[Path]:
        return [Path(self.file).expanduser() if self.file else OWN]

    def counts(self, words: words_lib.Words) -> Int64[np.ndarray, " texts"]:
        """How many words begin a word or phrase of the list, in each text."""
        ends = np.zeros(len(words.offsets), np.int64)
        (file,) = self.files()
        for n, listed in _listed(stamp(file, SETTING)).items():
            if n > len(words.hashes):
                continue
            grams = words.hashes if n == 1 else words_lib.grams(words.hashes, n)
            found = np.take(listed, np.searchsorted(listed, grams), mode="clip") == grams
            if n > 1:
                found &= words_lib.within(words.offsets, n)
            ends += np.searchsorted(np.flatnonzero(found), words.offsets)
        return np.diff(ends)


@lru_cache(maxsize=4)
def _listed(file: Stamp) -> dict[int, np.ndarray]:
    """Number of words -> sorted hashes of the entries that have so many."""
    entries = words_lib.split(read_list(file.path, SETTING))
    found: dict[int, list[int]] = {}
    for begin, end in itertools.pairwise(entries.offsets.tolist()):
        if n := end - begin:
            hashes = entries.hashes[begin:end]
            found.setdefault(n, []).append(int((hashes if n == 1 else words_lib.grams(hashes, n))[0]))
    if not found:
        raise UserError(f"steps.dirty.file: {file.path} holds no words. Write one word or phrase a line.")
    return {n: np.unique(np.array(hashes, np.uint64)) for n, hashes in found.items()}
