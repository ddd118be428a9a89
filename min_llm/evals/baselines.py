"""Bits per byte without a neural network: `xz -9` and an interpolated Kneser-Ney n-gram over bytes.

A language model is worth its name when it predicts held-out text better than a general compressor and better
than counting. Both work on bytes, so their numbers compare with any tokenizer's model.
"""

from __future__ import annotations

import json
import lzma
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from min_llm.config import UserError
from min_llm.reporting import reporter

if TYPE_CHECKING:
    from min_llm.data.prepare import Prepared

VERSION = 1  # of the numbers below; raise it when a definition changes


def xz_bits_per_byte(train: bytes, val: bytes) -> dict[str, float]:
    """Size of `xz -9` in bits per byte of `val`.

    alone: xz(val), the compressor starts cold. conditional: xz(train + val) - xz(train), the standard
    estimate of what val costs to somebody who has train (the window of -9 is 64 MiB).
    """
    size = lambda data: 8 * len(lzma.compress(data, preset=9))
    return {
        "alone": size(val) / len(val),
        "conditional": (size(train + val) - size(train)) / len(val),
    }


def ngram_bits_per_byte(train: bytes, val: bytes, order: int = 5) -> float:
    """Bits per byte of `val` under Kneser-Ney counts of `train`; the first bytes have less context."""
    return -float(np.mean(KneserNey.fit(train, order).log2_probabilities(val)))


@dataclass(frozen=True)
class Level:
    """Counts of one order n: n-grams packed big-endian into integers, and contexts (without the last byte).

    P_n(w | h) = max(c(hw) - D(c(hw)), 0) / c(h) + gamma(h) P_{n-1}(w | h without its first byte),
    gamma(h) = sum over w of min(D(c(hw)), c(hw)) / c(h); P_{n-1} alone where h was never seen.
    """

    grams: np.ndarray  # [G] uint64, sorted
    counts: np.ndarray  # [G] float64
    contexts: np.ndarray  # [C] uint64, sorted
    totals: np.ndarray  # [C] c(h)
    gammas: np.ndarray  # [C]
    discounts: tuple[float, float, float]  # D(1), D(2), D(3 or more)
    default_discounts: bool  # the text was too small to estimate them

    def mix(self, contexts: np.ndarray, words: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """P_n of `words` after `contexts` [M] (packed), where P_{n-1} is `lower` [M]."""
        place = np.minimum(np.searchsorted(self.contexts, contexts), len(self.contexts) - 1)
        seen = self.contexts[place] == contexts
        grams = contexts << np.uint64(8) | words.astype(np.uint64)
        gram = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        counts = np.where(self.grams[gram] == grams, self.counts[gram], 0.0)
        kept = np.maximum(counts - _discount(counts, self.discounts), 0.0)
        return np.where(seen, kept / self.totals[place] + self.gammas[place] * lower, lower)


@dataclass(frozen=True)
class KneserNey:
    """Interpolated modified Kneser-Ney (Chen & Goodman 1998, section 3) over bytes; P_0 is uniform, 1/256.

    The highest order counts occurrences, every lower one distinct left neighbours (continuation counts).
    """

    levels: tuple[Level, ...]  # orders 1, 2, ..., order

    @property
    def order(self) -> int:
        return len(self.levels)

    @classmethod
    def fit(cls, train: bytes, order: int = 5) -> KneserNey:
        if not 1 <= order <= 8:
            raise UserError(f"order is {order}; n-grams are packed into 64 bits, so it must be from 1 to 8.")
        if len(train) < order:
            raise UserError(
                f"The training text has {len(train)} bytes; an n-gram of order {order} needs more."
            )
        text = np.frombuffer(train, np.uint8)
        grams, counts = np.unique(_packed(text, order), return_counts=True)
        levels = [_level(grams, counts)]
        for n in range(order - 1, 0, -1):
            suffixes = grams & np.uint64(
                2 ** (8 * n) - 1
            )  # without the first byte: one for each left neighbour
            grams, counts = np.unique(suffixes, return_counts=True)
            levels.append(_level(grams, counts))
        return cls(tuple(reversed(levels)))

    def log2_probabilities(self, text: bytes) -> Float[np.ndarray, bytes]:
        """log2 P of each byte after the (order - 1) before it in `text`."""
        words = np.frombuffer(text, np.uint8)
        p = np.full(len(words), 1 / 256)
        for n, level in enumerate(self.levels, start=1):
            if len(words) >= n:
                contexts = _packed(words[:-1], n - 1) if n > 1 else np.zeros(len(words), np.uint64)
                p[n - 1 :] = level.mix(contexts, words[n - 1 :], p[n - 1 :])
        return np.log2(p)

    def distribution(self, context: bytes) -> Float[np.ndarray, 256]:
        """P of every byte after `context`: sums to one."""
        words, p = np.arange(256, dtype=np.uint64), np.full(256, 1 / 256)
        for n, level in enumerate(self.levels, start=1):
            if len(context) >= n - 1:
                packed = int.from_bytes(context[len(context) - n + 1 :], "big")
                p = level.mix(np.full(256, packed, np.uint64), words, p)
        return p


def _packed(text: np.ndarray, n: int) -> np.ndarray:
    """Every n-gram of `text` [T] as an integer: [T - n + 1] uint64."""
    packed = np.zeros(len(text) - n + 1, np.uint64)
    for k in range(n):
        packed = packed << np.uint64(8) | text[k : len(text) - n + 1 + k].astype(np.uint64)
    return packed


def _level(grams: np.ndarray, counts: np.ndarray) -> Level:
    discounts, default = _estimate_discounts(counts)
    contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
    totals = np.add.reduceat(counts, first).astype(np.float64)
    taken = np.minimum(_discount(counts, discounts), counts)
    gammas = np.add.reduceat(taken, first) / totals
    return Level(grams, counts.astype(np.float64), contexts, totals, gammas, discounts, default)


def _estimate_discounts(counts: np.ndarray) -> tuple[tuple[float, float, float], bool]:
    """D(1), D(2), D(3+) from the counts of counts; KenLM's defaults where too few n-grams leave one empty."""
    n1, n2, n3, n4 = (int(np.sum(counts == k)) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 <= d <= k for k, d in enumerate(found, start=1)):
            return found, False
    return (0.5, 1.0, 1.5), True


def _discount(counts: np.ndarray, discounts: tuple[float, float, float]) -> np.ndarray:
    return np.array([0.0, *discounts])[np.minimum(counts, 3).astype(np.int64)]


def baselines(prepared: Prepared, order: int = 5) -> dict[str, Any]:
    """Both numbers for the validation text of prepared data; computed once and kept beside it in baselines.json.

    {"xz_9": {"alone", "conditional"}, "kneser_ney": {"order", "bits_per_byte", "default_discounts": orders whose
    discounts could not be estimated}, "train_bytes", "val_bytes"}; takes half a minute for 5 MB.
    """
    path = prepared.folder / "baselines.json"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if (known.get("version"), known.get("kneser_ney", {}).get("order")) == (VERSION, order):
            return known
    train, val = prepared.text("train"), prepared.text("val")
    model = KneserNey.fit(train, order)
    found = {
        "version": VERSION,
        "train_bytes": len(train),
        "val_bytes": len(val),
        "xz_9": xz_bits_per_byte(train, val),
        "kneser_ney": {
            "order": order,
            "bits_per_byte": -float(np.mean(model.log2_probabilities(val))),
            "default_discounts": [n for n, level in enumerate(model.levels, 1) if level.default_discounts],
        },
    }
    part = path.with_suffix(f".part{os.getpid()}")
    try:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        reporter().warn(f"The baselines were computed but cannot be kept in {path}: {error.strerror}.")
        part.unlink(missing_ok=True)
    return found
