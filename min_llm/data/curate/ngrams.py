"""A text as the bins of its word and character n-grams: what the linear classifiers see (the hashing trick; Joulin et
al. 2016, section 2.1).

The bin of an n-gram is the top of a polynomial hash modulo 2^32 (SIMD has this product) of its words' hashes (words.py)
or its code points, mixed as MurmurHash3 ends: the same in every process and release of Python. Words carry the topic;
characters carry what words leave out: punctuation, indentation, capitals, and languages, whose words are too many to
have been seen. All digits are one digit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt32

from min_llm.config import UserError, option
from min_llm.data.curate import words as words_lib

BASE = np.uint32(0x9E3779B1)
MIX = ((np.uint32(16), np.uint32(0x85EBCA6B)), (np.uint32(13), np.uint32(0xC2B2AE35)))
BATCH = 256  # texts whose n-grams are counted together: their number and a bin fit in 32 bits
ALPHABET = 1 << 31  # added to characters, of which none is so large

Bins = tuple[
    Int32[np.ndarray, " grams"], Int64[np.ndarray, " texts+1"]
]  # text t has those at offsets[t]:offsets[t+1]


@dataclass(frozen=True)
class NGrams:
    """Which n-grams of a text are looked at."""

    words: tuple[int, ...] = option((1, 2), "orders of n-grams of words")
    characters: tuple[int, ...] = option((2, 3), "orders of n-grams of characters")
    bits: int = option(18, "they fall into 2^bits bins")
    first: int = option(2000, "characters of a text that are looked at")

    def __post_init__(self) -> None:
        if not 8 <= self.bits <= 24:
            raise UserError(f"ngrams.bits is {self.bits}; it must lie between 8 and 24.")
        if not (self.words or self.characters) or min((*self.words, *self.characters)) < 1 or self.first < 1:
            raise UserError(
                "ngrams needs orders of 1 and more under words or characters, and first=1 or more."
            )

    def each(self, texts: list[str]) -> Iterator[Bins]:
        """The bins of a batch, one order after another."""
        texts = [text[: self.first] for text in texts]
        if self.words:
            words = words_lib.split(texts)
            for n in self.words:
                yield self._bins((words.hashes >> np.uint64(32)).astype(np.uint32), words.offsets, n, n)
        if self.characters:
            codes, offsets = _characters(texts)
            for n in self.characters:
                yield self._bins(codes, offsets, n, ALPHABET + n)

    def shares(self, texts: list[str]) -> tuple[Bins, Float32[np.ndarray, " grams"]]:
        """The different bins of each text, and the share of its n-grams that fall into each."""
        batches = [self._shares(texts[begin : begin + BATCH]) for begin in range(0, len(texts), BATCH)]
        bins, sizes, shares = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return (bins, np.concatenate([[0], np.cumsum(sizes)])), shares

    def _shares(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """bins, how many of them each text has, shares."""
        keys, total = [], np.zeros(len(texts), np.int64)
        for bins, offsets in self.each(texts):
            of_text = np.repeat(np.arange(len(texts), dtype=np.uint32), np.diff(offsets))
            keys.append((of_text << np.uint32(self.bits)) | bins.view(np.uint32))
            total += np.diff(offsets)
        found, times = np.unique(np.concatenate(keys), return_counts=True)
        of_text = found >> np.uint32(self.bits)
        shares = (times / total[of_text]).astype(np.float32)
        bins = (found & np.uint32((1 << self.bits) - 1)).view(np.int32)
        return bins, np.bincount(of_text, minlength=len(texts)), shares

    def _bins(self, units: UInt32[np.ndarray, " units"], offsets: np.ndarray, n: int, salt: int) -> Bins:
        """The n-grams of one order. `salt` keeps orders and alphabets apart."""
        inside = words_lib.within(offsets, n)
        count = len(inside)
        hashes = units[:count] + np.uint32(salt)
        for j in range(1, n):
            hashes *= BASE
            hashes += units[j : j + count]
        for shift, factor in MIX:
            hashes ^= hashes >> shift
            hashes *= factor
        bounds = np.concatenate([[0], np.cumsum(np.maximum(np.diff(offsets) - n + 1, 0))])
        return (hashes[inside] >> np.uint32(32 - self.bits)).view(np.int32), bounds


def _characters(texts: list[str]) -> tuple[UInt32[np.ndarray, " characters"], np.ndarray]:
    """Code points of all texts one after another, and where each text begins."""
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts], dtype=np.int64)])
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.where((codes >= ord("0")) & (codes <= ord("9")), np.uint32(ord("0")), codes), offsets
