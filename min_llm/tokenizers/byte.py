"""Byte-level tokenizer: the 256 bytes and a few special tokens; nothing to train, nothing unknown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from min_llm.tokenizers import base


@dataclass(frozen=True, eq=False)
class Bytes:
    """The id of a byte is its value; special tokens follow from 256."""

    special_tokens: tuple[str, ...] = (base.END_OF_TEXT,)
    end_of_document: str | None = base.END_OF_TEXT
    name: str = "byte"

    def __post_init__(self) -> None:
        base.check_names(self.name, self.special_tokens, self.end_of_document)

    @property
    def vocab_size(self) -> int:
        return 256 + len(self.special_tokens)

    @cached_property
    def special(self) -> dict[str, int]:
        return base.special_ids(self.special_tokens, 256)

    @property
    def eos(self) -> int | None:
        return None if self.end_of_document is None else self.special[self.end_of_document]

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        special = self.special if allow_special else {}
        return base.encode_with_special(text, special, lambda part: list(base.utf8(part)))

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes, UTF-8 or not."""
        return list(data)

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        for text in texts:
            yield np.frombuffer(base.utf8(text), np.uint8).astype(base.id_dtype(self.vocab_size))

    @cached_property
    def spelled(self) -> dict[int, bytes]:
        special = (name.encode("utf-8") for name in self.special_tokens)
        return dict(enumerate([*(bytes([byte]) for byte in range(256)), *special]))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        spelled = self.spelled
        return b"".join([spelled[i] for i in base.check_ids(ids, self.vocab_size, self.name)])

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def definition(self) -> dict[str, Any]:
        return {
            "kind": "byte",
            "name": self.name,
            "special": list(self.special_tokens),
            "end_of_document": self.end_of_document,
        }

    def fingerprint(self) -> str:
        return base.fingerprint(self.definition())

    def save(self, path: str | Path) -> Path:
        return base.write_definition(path, self.definition())


def from_definition(given: Mapping[str, Any]) -> Bytes:
    return Bytes(base.strings(given, "special"), given["end_of_document"], given["name"])
