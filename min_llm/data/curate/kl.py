"""Documents whose words are not the corpus's: encoded data, word lists, garbage. Llama 3, section 3.1.1 (L3-1.8).

KL(d ‖ c) = sum over words w of p_d(w) ln(p_d(w) / p_c(w)), in nats a word, with the corpus's counts over hashed words,
smoothed by one half for each bin. It is 0 for the corpus itself (but for the smoothing) and grows with every word that
is more frequent in the document. Short documents cannot be near any distribution: theirs is large whatever they say,
so one number holds for documents that are long enough to judge. Of those with 100 words and more in a mix of
encyclopedia (English, French), code and plays, 3.7 million words, 99.9% lie below 6.2 nats; encoded data lie above 6.8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from min_llm.config import UserError, option
from min_llm.data.curate import words as words_lib
from min_llm.data.curate.document import Document, Drop, Outcome
from min_llm.data.curate.words import Words

SMOOTHING = 0.5  # added to every bin


@dataclass(frozen=True)
class KL:
    """Drop documents with too many outlying words."""

    nats: float = option(6.5, "largest divergence from the corpus, in nats a word")
    words: int = option(100, "shorter documents stay")
    bits: int = option(20, "words are counted in 2^bits bins")

    def __post_init__(self) -> None:
        if not 8 <= self.bits <= 30:
            raise UserError(f"steps.kl.bits is {self.bits}; it must lie between 8 and 30.")

    def count(self, documents: list[Document]) -> Int64[np.ndarray, " bins"]:
        """How often each bin occurs in a batch."""
        return np.bincount(self.bins(words_lib.split([d.text for d in documents])), minlength=1 << self.bits)

    def apply(self, documents: list[Document], counts: Int64[np.ndarray, " bins"]) -> list[Outcome]:
        """The outcomes of a batch, given the counts of the whole corpus."""
        words = words_lib.split([d.text for d in documents])
        found = divergence(self.bins(words), words.offsets, counts)
        bad = (found > self.nats) & (np.diff(words.offsets) >= self.words)
        return [
            Drop("outlying words", f"{nats:.1f} nats a word from the corpus") if drop else document
            for document, drop, nats in zip(documents, bad.tolist(), found.tolist(), strict=True)
        ]

    def bins(self, words: Words) -> Int64[np.ndarray, " words"]:
        return (words.hashes >> np.uint64(64 - self.bits)).astype(np.int64)


def divergence(
    bins: Int64[np.ndarray, " words"],
    offsets: Int64[np.ndarray, " texts+1"],
    counts: Int64[np.ndarray, " bins"],
) -> Float64[np.ndarray, " texts"]:
    """KL(text ‖ corpus) in nats; 0 for a text without words."""
    lengths = np.diff(offsets)
    texts = np.repeat(np.arange(len(lengths)), lengths)
    pairs, times = np.unique((texts << 32) | bins, return_counts=True)
    text, bin_ = pairs >> 32, pairs & 0xFFFFFFFF
    share = times / lengths[text]
    corpus = (counts[bin_] + SMOOTHING) / (counts.sum() + SMOOTHING * len(counts))
    return np.bincount(text, share * np.log(share / corpus), len(lengths))
