"""Byte-level byte-pair encoding: the plain encoder that explains it, and tiktoken's for speed.

A vocabulary is a list of byte strings; the place of a token in the list is its id and its rank. A piece of
text (see split.py) that is a token becomes that token. Any other piece starts as single bytes, and the two
neighbours whose joint bytes have the lowest rank are joined until no neighbours form a token. `encode_plain`
does just that; `encode` gives the same ids through tiktoken built from the same ranks (never through its
downloads). Llama 3, GPT-2 and the tokenizers trained by bpe_train.py are all this one class.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from min_llm.tokenizers import base, byte_level, split
from min_llm.tokenizers.base import TokenizerError

# Documents are handed to threads in groups of about this size: handing over each alone costs more than
# encoding it.
GROUP_CHARS = 200_000
# Bytes that are no UTF-8 lie outside the splitting expressions; they are merged among themselves in short
# runs.
_NOT_UTF8 = re.compile("[\udc80-\udcff]{1,64}")


def join(piece: bytes, ranks: Mapping[bytes, int], below: float = math.inf) -> list[bytes]:
    """The parts of a piece when neighbours whose joint rank is lowest (and under `below`) are joined, the
    leftmost first, until none is left."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        joint = [ranks.get(a + b, math.inf) for a, b in itertools.pairwise(parts)]
        lowest = min(joint)
        if lowest >= below:
            break
        at = joint.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def merge(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Ids of one piece."""
    return [ranks[piece]] if piece in ranks else [ranks[part] for part in join(piece, ranks)]


@dataclass(frozen=True, eq=False)
class BPE:
    """Tokens in the order of their ranks, the splitting expression, and special tokens behind them."""

    tokens: tuple[bytes, ...]
    pattern: str
    special_tokens: tuple[str, ...] = (base.END_OF_TEXT,)
    end_of_document: str | None = base.END_OF_TEXT
    name: str = "bpe"

    def __post_init__(self) -> None:
        base.check_names(self.name, self.special_tokens, self.end_of_document)
        split.compile_pattern(self.pattern)
        if len(self.ranks) != len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if self.ranks[token] != i)
            raise TokenizerError(f"The token {twice!r} is in the vocabulary of {self.name!r} twice.")
        missing = [byte for byte in range(256) if bytes([byte]) not in self.ranks]
        if missing or b"" in self.ranks:
            lack = f"the byte {missing[0]:#04x}" if missing else "only non-empty tokens"
            raise TokenizerError(f"The vocabulary of {self.name!r} lacks {lack}; it must hold all 256 bytes.")

    @cached_property
    def ranks(self) -> dict[bytes, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    @property
    def vocab_size(self) -> int:
        return len(self.tokens) + len(self.special_tokens)

    @cached_property
    def special(self) -> dict[str, int]:
        return base.special_ids(self.special_tokens, len(self.tokens))

    @property
    def eos(self) -> int | None:
        return None if self.end_of_document is None else self.special[self.end_of_document]

    @cached_property
    def _fast(self) -> Any:
        import tiktoken

        ranks = dict(self.ranks)
        return tiktoken.Encoding(self.name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return base.encode_with_special(text, self.special if allow_special else {}, self._encode)

    def _encode(self, text: str) -> list[int]:
        base.utf8(text)
        parts = split.cut_runs(text)
        if len(parts) == 1:
            return self._fast.encode_ordinary(text)
        return [i for part in parts for i in self._fast.encode_ordinary(part)]

    def encode_plain(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The same ids as `encode`, by the plain Python above: slow, and the definition of what is right."""

        def encode(part: str) -> list[int]:
            merged = (merge(base.utf8(piece), self.ranks) for piece in split.pieces(part, self.pattern))
            return list(itertools.chain.from_iterable(merged))

        return base.encode_with_special(text, self.special if allow_special else {}, encode)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes: what is UTF-8 as `encode` does, the rest byte by byte with merges in between."""
        text = data.decode("utf-8", errors="surrogateescape")
        ids: list[int] = []
        done = 0
        for run in _NOT_UTF8.finditer(text):
            ids += self._encode(text[done : run.start()])
            ids += merge(run.group().encode("utf-8", errors="surrogateescape"), self.ranks)
            done = run.end()
        return ids + self._encode(text[done:])

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        from concurrent.futures import ThreadPoolExecutor

        dtype = base.id_dtype(self.vocab_size)
        threads = os.cpu_count() or 1
        _ = self._fast  # built once, before the threads ask for it

        def encode_group(group: list[str]) -> list[np.ndarray]:
            encoded = (self._encode(text) for text in group)
            return [np.fromiter(ids, dtype, len(ids)) for ids in encoded]

        groups = grouped(texts, GROUP_CHARS)
        with ThreadPoolExecutor(threads) as pool:  # tiktoken works outside the interpreter's lock
            while batch := list(itertools.islice(groups, 4 * threads)):
                for arrays in pool.map(encode_group, batch):
                    yield from arrays

    @cached_property
    def spelled(self) -> dict[int, bytes]:
        return dict(enumerate((*self.tokens, *(name.encode("utf-8") for name in self.special_tokens))))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        spelled = self.spelled
        return b"".join([spelled[i] for i in base.check_ids(ids, self.vocab_size, self.name)])

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def merges(self) -> list[tuple[bytes, bytes]]:
        """The pair each token beyond the bytes was joined from, in the order of the ranks (for other
        formats).

        Raises TokenizerError when a token cannot be reached by merging lower ranks (Llama 3 has such tokens;
        only a piece that equals them yields them).
        """
        pairs = []
        for token in self.tokens:
            if len(token) > 1:
                parts = join(token, self.ranks, below=self.ranks[token])
                if len(parts) != 2:
                    raise TokenizerError(
                        f"The token {token!r} of {self.name!r} is not the merge of two tokens."
                    )
                pairs.append((parts[0], parts[1]))
        return pairs

    def definition(self) -> dict[str, Any]:
        return {
            "kind": "bpe",
            "name": self.name,
            "special": list(self.special_tokens),
            "end_of_document": self.end_of_document,
            "pattern": self.pattern,
            "tokens": [byte_level.printable(token) for token in self.tokens],
        }

    def fingerprint(self) -> str:
        return base.fingerprint(self.definition())

    def save(self, path: str | Path) -> Path:
        return base.write_definition(path, self.definition())


def grouped(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Consecutive texts in lists of at least `size` characters, except the last."""
    group: list[str] = []
    chars = 0
    for text in texts:
        group.append(text)
        chars += len(text)
        if chars >= size:
            yield group
            group, chars = [], 0
    if group:
        yield group


def from_definition(given: Mapping[str, Any]) -> BPE:
    tokens = tuple(byte_level.from_printable(token) for token in base.strings(given, "tokens"))
    return BPE(
        tokens, given["pattern"], base.strings(given, "special"), given["end_of_document"], given["name"]
    )
