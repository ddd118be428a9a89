"""Character-level tokenizer: the sorted characters of the training text, as nanoGPT's shakespeare_char."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from min_llm.tokenizers import base
from min_llm.tokenizers.base import TokenizerError


@dataclass(frozen=True, eq=False)
class Chars:
    """One id for each character of the alphabet, in its order; any other character is an error."""

    alphabet: str
    special_tokens: tuple[str, ...] = ()
    end_of_document: str | None = None
    name: str = "chars"

    def __post_init__(self) -> None:
        base.check_names(self.name, self.special_tokens, self.end_of_document)
        if not self.alphabet or len(set(self.alphabet)) != len(self.alphabet):
            raise TokenizerError(
                "The alphabet of a character tokenizer must be different characters, at least one."
            )
        base.utf8(self.alphabet)

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet) + len(self.special_tokens)

    @cached_property
    def special(self) -> dict[str, int]:
        return base.special_ids(self.special_tokens, len(self.alphabet))

    @property
    def eos(self) -> int | None:
        return None if self.end_of_document is None else self.special[self.end_of_document]

    @cached_property
    def _id_of(self) -> np.ndarray:
        """Code point -> id, -1 for what the alphabet lacks; the last entry stands for all beyond."""
        table = np.full(max(map(ord, self.alphabet)) + 2, -1, np.int32)
        table[[ord(char) for char in self.alphabet]] = np.arange(len(self.alphabet))
        return table

    def _encode(self, text: str) -> np.ndarray:
        base.utf8(text)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._id_of[np.minimum(points, len(self._id_of) - 1)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            place = int(unknown[0])
            raise TokenizerError(
                f"The character {text[place]!r} at position {place} is not among the "
                f"{len(self.alphabet)} characters of this tokenizer's training text; remove it, or train the "
                "tokenizer on text that has it."
            )
        return ids

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        special = self.special if allow_special else {}
        return base.encode_with_special(text, special, lambda part: self._encode(part).tolist())

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        for text in texts:
            yield self._encode(text).astype(base.id_dtype(self.vocab_size))

    def decode(self, ids: Iterable[int]) -> str:
        tokens = (*self.alphabet, *self.special_tokens)
        return "".join([tokens[i] for i in base.check_ids(ids, self.vocab_size, self.name)])

    @cached_property
    def spelled(self) -> dict[int, bytes]:
        return {i: token.encode("utf-8") for i, token in enumerate((*self.alphabet, *self.special_tokens))}

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self.decode(ids).encode("utf-8")

    def definition(self) -> dict[str, Any]:
        return {
            "kind": "chars",
            "name": self.name,
            "special": list(self.special_tokens),
            "end_of_document": self.end_of_document,
            "alphabet": list(self.alphabet),
        }

    def fingerprint(self) -> str:
        return base.fingerprint(self.definition())

    def save(self, path: str | Path) -> Path:
        return base.write_definition(path, self.definition())


def from_definition(given: Mapping[str, Any]) -> Chars:
    alphabet = "".join(base.strings(given, "alphabet"))
    return Chars(alphabet, base.strings(given, "special"), given["end_of_document"], given["name"])


def train_chars(
    texts: Iterable[str], special: tuple[str, ...] = (), end_of_document: str | None = None
) -> Chars:
    """The tokenizer of all characters that occur, in the order of their code points."""
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(text)
    return Chars("".join(sorted(alphabet)), special, end_of_document, f"chars-{len(alphabet) + len(special)}")
