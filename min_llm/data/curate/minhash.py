"""Near duplicates by MinHash and locality-sensitive hashing, over the whole corpus (L3-1.4; Broder 1997).

A document is the set of its word 5-grams. The smallest value that a random permutation gives to a set is the same for
two sets with probability J, their Jaccard similarity. A band of r permutations agrees with probability J^r, and at
least one of b bands with 1 - (1 - J^r)^b: an S-curve with its threshold near (1/b)^(1/r). Documents that share a band
are joined, and of each connected component the first document is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt32

from min_llm.config import UserError, option
from min_llm.data.curate import words as words_lib
from min_llm.data.curate.document import Document
from min_llm.data.curate.keyed import Corpus, Duplicates, Keys, apart, first_of_each
from min_llm.data.curate.words import Words

AT_ONCE = 1 << 14  # shingles whose values stay in the cache under all permutations


@dataclass(frozen=True)
class MinHash(Duplicates):
    """Drop documents that nearly equal an earlier one. With 16 bands of 7, pairs of Jaccard similarity 0.8 are found
    with probability 0.98, those of 0.3 with 0.003."""

    kind = "near duplicate"

    bands: int = option(16, "groups of permutations, one of which must agree")
    rows: int = option(7, "permutations of a band, all of which must agree")
    words: int = option(5, "words of a shingle")
    seed: int = option(0, "of the permutations")
    within: str = option("", "column that duplicates must agree in, such as language; empty: none")

    def __post_init__(self) -> None:
        if min(self.bands, self.rows, self.words) < 1:
            raise UserError("steps.minhash: bands, rows and words must each be at least 1.")

    def keys(self, documents: list[Document]) -> Keys:
        having, signs = signatures([d.text for d in documents], self.words, self.bands * self.rows, self.seed)
        bands = signs.reshape(-1, self.bands, self.rows).astype(np.uint64)
        keys = np.broadcast_to(np.arange(self.bands, dtype=np.uint64), bands.shape[:2]).copy()
        for row in range(self.rows):
            keys = words_lib.mixed(keys * np.uint64(words_lib.BASE) + bands[:, :, row])
        return apart((keys.ravel(), np.repeat(np.flatnonzero(having), self.bands)), documents, self.within)

    def decide(self, corpus: Corpus) -> np.ndarray:
        parents = np.arange(len(corpus.alive))
        for keys, rows in corpus.ranges():
            join(parents, rows, rows[first_of_each(keys)])
        roots = find(parents, np.arange(len(parents)))
        return np.where(roots == np.arange(len(roots)), -1, roots)


def signatures(
    texts: list[str], words: int, permutations: int, seed: int = 0
) -> tuple[Bool[np.ndarray, " texts"], UInt32[np.ndarray, "having permutations"]]:
    """Which texts have any words, and the signatures of those.

    Permutations are x -> a·x + c modulo 2^32 with odd a, on 32 mixed bits of a shingle's hash: SIMD has this product,
    and it keeps one-to-one. The share of equal places of two signatures estimates J with the standard error
    sqrt(J (1 - J) / permutations).
    """
    values, counts = shingles(words_lib.split(texts), words)
    draws = np.random.default_rng(seed).integers(1 << 32, size=(2, permutations), dtype=np.uint32)
    having = counts > 0
    bounds = np.concatenate([[0], np.cumsum(counts[having])])
    signs = np.empty((len(bounds) - 1, permutations), np.uint32)
    first = 0
    while first < len(signs):  # as many texts as fit, at least one
        last = max(int(np.searchsorted(bounds, bounds[first] + AT_ONCE, "right")) - 1, first + 1)
        x = values[bounds[first] : bounds[last]]
        y, starts = np.empty_like(x), bounds[first:last] - bounds[first]
        for k in range(permutations):
            np.multiply(x, draws[0, k] | np.uint32(1), out=y)
            np.add(y, draws[1, k], out=y)
            signs[first:last, k] = np.minimum.reduceat(y, starts)
        first = last
    return having, signs


def shingles(words: Words, n: int) -> tuple[UInt32[np.ndarray, " shingles"], Int64[np.ndarray, " texts"]]:
    """The shingles of all texts one after another, as 32-bit hashes, and how many each text has. A text of fewer than
    n words is one shingle."""
    lengths = np.diff(words.offsets)
    counts = np.where(lengths >= n, lengths - n + 1, np.minimum(lengths, 1))
    found = np.zeros(len(words.hashes), np.uint64)
    taken = np.zeros(len(words.hashes), bool)
    whole = words_lib.grams(words.hashes, n)
    found[: len(whole)] = whole
    taken[: len(whole)] = words_lib.within(words.offsets, n)
    for short in np.flatnonzero((lengths > 0) & (lengths < n)).tolist():
        begin, end = words.offsets[short], words.offsets[short + 1]
        found[begin] = words_lib.grams(words.hashes[begin:end], int(end - begin))[0]
        taken[begin] = True
    return (found[taken] >> np.uint64(32)).astype(np.uint32), counts


def collision(similarity: float | Float64[np.ndarray, " n"], bands: int, rows: int) -> np.ndarray:
    """The probability that two documents of this Jaccard similarity share a band."""
    return 1 - (1 - np.asarray(similarity) ** rows) ** bands


# Union-find on arrays: a parent is never larger than its child, a root is its own parent.


def find(parents: Int64[np.ndarray, " rows"], rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The root above each row; shortens the paths to it."""
    roots = parents[rows]
    while not np.array_equal(above := parents[roots], roots):
        roots = above
    parents[rows] = roots
    return roots


def join(parents: Int64[np.ndarray, " rows"], a: Int64[np.ndarray, " n"], b: Int64[np.ndarray, " n"]) -> None:
    """Put a[i] and b[i] into one component, for every i."""
    a, b = a[a != b], b[a != b]
    while len(a):
        a, b = find(parents, a), find(parents, b)
        apart = a != b
        a, b = a[apart], b[apart]
        np.minimum.at(parents, np.maximum(a, b), np.minimum(a, b))
