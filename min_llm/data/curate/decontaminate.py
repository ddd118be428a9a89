"""Training documents that hold evaluation texts: 8-gram overlap, as Llama 3 measures contamination (section 5.1.4,
after Singh et al. 2024), turned around to remove it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from min_llm.config import UserError, option
from min_llm.data import readers
from min_llm.data.curate import words as words_lib
from min_llm.data.curate.document import Document, Drop, Outcome
from min_llm.data.curate.listing import Stamp, stamp

SETTING = "steps.decontaminate.against"


class Index(NamedTuple):
    """Every n-gram of the evaluation texts, sorted by hash."""

    grams: np.ndarray  # [grams] uint64
    texts: np.ndarray  # [grams] which text
    places: np.ndarray  # [grams] at which of its words
    lengths: np.ndarray  # [texts] words
    names: list[str]


@dataclass(frozen=True)
class Decontaminate:
    """Drop documents that hold too much of an evaluation text: the share of its words that lie in n-grams which the
    document has, too. Texts shorter than n words cannot be looked for."""

    against: tuple[str, ...] = option(
        (), "files of evaluation texts: .jsonl, .parquet, .txt, or folders of them"
    )
    field: str = option("text", "field of .jsonl and .parquet rows that holds the text")
    share: float = option(0.5, "largest share of an evaluation text that a document may hold")
    words: int = option(8, "n: words of a gram")

    def __post_init__(self) -> None:
        if not self.against:
            raise UserError(
                "steps.decontaminate looks for nothing. Name files in steps.decontaminate.against."
            )

    def __call__(self, documents: list[Document]) -> list[Outcome]:
        index = self._index()
        words = words_lib.split([d.text for d in documents])
        grams = words_lib.grams(words.hashes, self.words)
        found = np.take(index.grams, np.searchsorted(index.grams, grams), mode="clip") == grams
        found &= words_lib.within(words.offsets, self.words)
        hits = np.flatnonzero(found)
        outcomes: list[Outcome] = list(documents)
        bounds = np.searchsorted(hits, words.offsets)
        for i in np.flatnonzero(np.diff(bounds)).tolist():
            share, name = _worst(index, self.words, np.unique(grams[hits[bounds[i] : bounds[i + 1]]]))
            if share > self.share:
                outcomes[i] = Drop("evaluation text", f"holds {share:.0%} of {name}")
        return outcomes

    def files(self) -> list[Path]:
        return [Path(path).expanduser() for path in self.against]

    def _index(self) -> Index:
        files = [stamp(file, SETTING) for path in self.files() for file in readers.user_files(path)]
        return _index(tuple(files), self.field, self.words)


def _worst(index: Index, n: int, grams: np.ndarray) -> tuple[float, str]:
    """The evaluation text of which these n-grams cover most: how much, and its name."""
    begins = np.searchsorted(index.grams, grams, "left").tolist()
    ends = np.searchsorted(index.grams, grams, "right").tolist()
    covered: dict[int, set[int]] = defaultdict(set)
    for begin, end in zip(begins, ends, strict=True):
        for k in range(begin, end):
            place = int(index.places[k])
            covered[int(index.texts[k])].update(range(place, place + n))
    shares = {text: len(places) / int(index.lengths[text]) for text, places in covered.items()}
    text = max(shares, key=lambda t: (shares[t], -t))
    return shares[text], index.names[text]


@lru_cache(maxsize=4)
def _index(files: tuple[Stamp, ...], field: str, n: int) -> Index:
    pairs = [pair for file in files for pair in readers.user_file(file.path, field)]
    words = words_lib.split([text for _, text in pairs])
    lengths = np.diff(words.offsets)
    inside = words_lib.within(words.offsets, n)
    if not inside.any():
        raise UserError(
            f"steps.decontaminate: none of the {len(pairs):,} evaluation texts has {n} words. Give longer texts or a "
            "smaller steps.decontaminate.words."
        )
    grams = words_lib.grams(words.hashes, n)[inside]
    place = np.flatnonzero(inside)
    texts = np.repeat(np.arange(len(pairs)), lengths)[place]
    order = np.argsort(grams, kind="stable")
    places = place - words.offsets[texts]
    return Index(grams[order], texts[order], places[order], lengths, [name for name, _ in pairs])
