"""A deduplication step over texts in memory, and the similarity it goes by."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from min_llm.data.curate import words
from min_llm.data.curate.document import Document
from min_llm.data.curate.exact import Exact
from min_llm.data.curate.keyed import Corpus
from min_llm.data.curate.minhash import MinHash, shingles


def decided(step: Exact | MinHash, texts: Sequence[str]) -> tuple[Int64[np.ndarray, " texts"], float]:
    """For each text the number of the one that is kept instead, or -1; and the seconds that took."""
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    began = time.perf_counter()
    keys, rows = step.keys(documents)
    order = np.argsort(keys, kind="stable")
    records = np.stack([keys[order], rows[order].astype(np.uint64)])
    decision = step.decide(Corpus([(records, 0)], np.ones(len(texts), bool)))
    return decision, time.perf_counter() - began


def jaccard(a: str, b: str, n: int) -> float:
    """The similarity of the sets of word n-grams of two texts, counted."""
    first, second = (set(shingles(words.split([text]), n)[0].tolist()) for text in (a, b))
    return len(first & second) / max(len(first | second), 1)
