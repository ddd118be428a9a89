"""Words as 64-bit hashes: what near duplicates, repetition, word lists, KL and decontamination all work on.

A word is a run of letters, marks and digits, lower-cased; scripts that are written without spaces (Chinese, Japanese,
Thai, …) count each character as a word. Everything happens on arrays over the characters of a whole batch:

    characters -> lower-case code points, 0 for what separates -> sum of code · p^i over each word, times p^-start

The sum is a polynomial hash modulo 2^64 (p is odd, so it has an inverse), mixed at the end. It is a hash for honest
text: who knows p can construct collisions.
"""

from __future__ import annotations

import itertools
import unicodedata
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt32, UInt64

BASE = 0x9E3779B97F4A7C15  # odd
MIX = 0xBF58476D1CE4E5B9  # of splitmix64
ALONE = 1 << 31  # set on the characters that are words by themselves
PIECE = 1 << 17  # characters hashed at a time, so that the arrays stay in the cache

TABLED = 0x20000  # code points beyond are ideographs, nearly all
UNSPACED = (  # scripts without spaces between words
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
)


class Words(NamedTuple):
    """The words of a batch of texts, in order."""

    hashes: UInt64[np.ndarray, " words"]
    lengths: Int64[np.ndarray, " words"]  # in characters
    offsets: Int64[np.ndarray, " texts+1"]  # text t has the words offsets[t]:offsets[t+1]


def split(texts: list[str]) -> Words:
    """All words of all texts. Equal words have equal hashes, whatever the batch."""
    sizes = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
    folded = _fold("\n".join(texts) + "\n" if texts else "")
    hashes, starts, ends = [], [], []
    for begin, end in _pieces(folded):
        piece = folded[begin:end]
        first, last = _bounds(piece)
        if len(first):
            hashes.append(_hash(piece, first))
            starts.append(first + begin)
            ends.append(last + begin)
    if not hashes:
        nothing = np.zeros(0, np.int64)
        return Words(nothing.astype(np.uint64), nothing, np.zeros(len(texts) + 1, np.int64))
    begins = np.concatenate(starts)
    offsets = np.searchsorted(begins, np.concatenate([[0], np.cumsum(sizes)]))
    return Words(np.concatenate(hashes), np.concatenate(ends) - begins, offsets)


def grams(hashes: UInt64[np.ndarray, " words"], n: int) -> UInt64[np.ndarray, " grams"]:
    """The hash of the n words that begin at each word; the last n - 1 words begin none."""
    count = len(hashes) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    found = hashes[:count].copy()
    for j in range(1, n):
        found *= np.uint64(BASE)
        found += hashes[j : j + count]
    return mixed(found)


def within(offsets: Int64[np.ndarray, " texts+1"], n: int) -> np.ndarray:
    """Which of the `grams` lie inside one text: bool [grams]."""
    count = max(int(offsets[-1]) - n + 1, 0)
    inside = np.ones(count, bool)
    across = (offsets[1:-1, None] - np.arange(1, n)).ravel()
    inside[across[(across >= 0) & (across < count)]] = False
    return inside


def mixed(hashes: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Every bit of the result depends on every bit of the hash. Changes its argument."""
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(MIX)
    hashes ^= hashes >> np.uint64(29)
    return hashes


def _fold(text: str) -> UInt32[np.ndarray, " characters"]:
    """Each character lower-cased, as a code point; 0 where it belongs to no word."""
    table = _table()
    if text.isascii():
        return table[np.frombuffer(text.encode("ascii"), np.uint8)]
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    folded = table[np.minimum(codes, TABLED - 1)]
    beyond = codes >= TABLED
    if beyond.any():
        folded[beyond] = codes[beyond] | np.uint32(ALONE)
    return folded


@cache
def _table() -> UInt32[np.ndarray, " codes"]:
    table = np.zeros(TABLED, np.uint32)
    for code in range(TABLED):
        character = chr(code)
        if unicodedata.category(character)[0] in "LMN":
            lower = character.lower()
            table[code] = ord(lower) if len(lower) == 1 else code
    for first, last in UNSPACED:
        letters = table[first : last + 1]
        letters[letters > 0] |= np.uint32(ALONE)
    return table


def _pieces(folded: np.ndarray) -> list[tuple[int, int]]:
    """Cuts between words, about PIECE characters apart. The text ends with a separator."""
    if len(folded) <= PIECE:
        return [(0, len(folded))]
    gaps = np.flatnonzero(folded == 0) + 1
    cuts = gaps[np.searchsorted(gaps, np.arange(PIECE, len(folded), PIECE))]
    bounds = np.unique(np.concatenate([[0], cuts, [len(folded)]])).tolist()
    return list(itertools.pairwise(bounds))


def _bounds(piece: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First character of each word, and the one after its last."""
    inside = np.zeros(len(piece) + 2, bool)
    inside[1:-1] = piece != 0
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    first, last = edges[0::2], edges[1::2]
    if not (len(piece) and piece.max() >= ALONE):
        return first, last
    alone = np.zeros(len(piece) + 1, bool)
    alone[:-1] = piece >= ALONE
    after = np.zeros(len(piece) + 1, bool)
    after[1:] = alone[:-1]
    after &= inside[1:]
    cuts = np.flatnonzero((alone | after) & inside[1:] & inside[:-1])
    return np.sort(np.concatenate([first, cuts])), np.sort(np.concatenate([last, cuts]))


def _hash(piece: np.ndarray, first: np.ndarray) -> np.ndarray:
    powers, inverses = _powers(-(-len(piece) // PIECE))
    sums = np.add.reduceat(piece * powers[: len(piece)], first)
    sums *= inverses[first]
    return mixed(sums)


@lru_cache(maxsize=2)
def _powers(pieces: int) -> tuple[np.ndarray, np.ndarray]:
    """p^i and p^-i modulo 2^64, for every place in so many pieces."""
    n = pieces * PIECE
    each = np.full(n, BASE, np.uint64)
    back = np.full(n, pow(BASE, -1, 1 << 64), np.uint64)
    each[0] = back[0] = 1
    return np.multiply.accumulate(each), np.multiply.accumulate(back)
