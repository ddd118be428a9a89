"""Repeated n-grams: logs, listings, generated pages. Llama 3, section 3.1.1 (L3-1.6), after Rae et al. 2021 (Gopher),
table A1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from min_llm.config import UserError, option
from min_llm.data.curate import words as words_lib
from min_llm.data.curate.document import Document, Drop, Outcome
from min_llm.data.curate.words import Words

SHORTEST = 5  # words of the first n-gram


@dataclass(frozen=True)
class Repetition:
    """Drop documents in which n-grams that occur more than once cover too much."""

    limits: tuple[float, ...] = option(
        (0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
        "largest share of the words' characters covered, for n = 5, 6, …",
    )

    def __post_init__(self) -> None:
        if not self.limits or not all(0 <= limit <= 1 for limit in self.limits):
            raise UserError(
                "steps.repetition.limits must be shares between 0 and 1, the first of them for n = 5."
            )

    def __call__(self, documents: list[Document]) -> list[Outcome]:
        found = coverage(words_lib.split([d.text for d in documents]), len(self.limits))
        over = found > np.array(self.limits)
        worst = over.argmax(axis=1)
        return [
            Drop(f"repeated {SHORTEST + n}-grams", f"cover {share[n]:.2f}, more than {self.limits[n]:.2f}")
            if bad[n]
            else document
            for document, bad, n, share in zip(documents, over, worst.tolist(), found, strict=True)
        ]


def coverage(words: Words, orders: int) -> Float64[np.ndarray, "texts orders"]:
    """For n = 5, 6, …: the share of the characters of each text's words that lie in an n-gram which occurs more than
    once in that text; a character that several of them cover counts once, and so do all occurrences. 0 for a text
    without words."""
    texts = len(words.offsets) - 1
    of_text = np.repeat(np.arange(texts), np.diff(words.offsets))
    ends = np.concatenate([[0], np.cumsum(words.lengths)])
    totals = ends[words.offsets[1:]] - ends[words.offsets[:-1]]
    shares = np.zeros((texts, orders))
    own = words.hashes + words_lib.mixed(of_text.astype(np.uint64))  # equal only within a text
    places = np.flatnonzero(words_lib.within(words.offsets, SHORTEST))
    for order in range(orders):
        n = SHORTEST + order
        places = _repeated(own, places, n)
        if not len(places):
            break
        covered = np.zeros(len(own) + 1, np.int64)
        covered[places] += 1
        np.subtract.at(covered, places + n, 1)
        inside = np.cumsum(covered[:-1]) > 0
        shares[:, order] = np.bincount(of_text[inside], words.lengths[inside], texts)
        # An (n+1)-gram occurs twice only where the n-grams at both of its ends do.
        places = places[:-1][np.diff(places) == 1]
        places = places[of_text[places] == of_text[np.minimum(places + n, len(own) - 1)]]
    return shares / np.maximum(totals, 1)[:, None]


def _repeated(own: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    """Those places at which an n-gram begins that begins at another of them, too."""
    if len(places) == len(own) - n + 1:
        keys = words_lib.grams(own, n)
    else:
        keys = own[places]
        for j in range(1, n):
            keys = keys * np.uint64(words_lib.BASE) + own[places + j]
        keys = words_lib.mixed(keys)
    order = np.sort(keys)
    twice = np.unique(order[1:][order[1:] == order[:-1]])
    if not len(twice):
        return places[:0]
    return places[np.take(twice, np.searchsorted(twice, keys), mode="clip") == keys]
