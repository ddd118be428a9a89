"""What every tokenizer is, and what all of them share: special tokens, checks of ids, fingerprint, file.

A tokenizer is a small immutable object. Its ordinary tokens have the ids 0 .. n-1, its special tokens the ids
behind them. Text that spells a special token is ordinary text: only `allow_special=True` (templates written
by the program, never text of a user) gives the special id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from min_llm import platform
from min_llm.config import UserError

FORMAT = "min_llm.tokenizer"
VERSION = 1
FILE_NAME = "tokenizer.json"
END_OF_TEXT = "<|end_of_text|>"


class TokenizerError(UserError):
    """Text, ids or a file that this tokenizer cannot take; the message names the place."""


class Tokenizer(Protocol):
    """The interface that data, training and sampling rely on."""

    @property
    def name(self) -> str:
        """For logs; the fingerprint is what identifies a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""

    @property
    def special(self) -> dict[str, int]:
        """Special token -> id, in the order of the ids."""

    @property
    def eos(self) -> int | None:
        """The id that ends a document, or None when there is none (plain characters)."""

    @property
    def spelled(self) -> Mapping[int, bytes]:
        """The bytes of each id as they stand inside a text; ids that are holes in the vocabulary are missing."""

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of a text. Raises TokenizerError for text outside the vocabulary, naming the place."""

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Ids of each text as `id_dtype(vocab_size)`, without special tokens or eos; the fast path."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD. Raises TokenizerError for ids out of range."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 text of ids, exact even where a character is cut in the middle."""

    def fingerprint(self) -> str:
        """sha256 of everything that decides the ids; the name does not."""

    def save(self, path: str | Path) -> Path:
        """Write a file that `load` reads (in a folder: `tokenizer.json`); returns its path."""


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds the ids of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def special_ids(names: Sequence[str], first: int) -> dict[str, int]:
    """Special token -> id, counted from `first`."""
    return {name: first + i for i, name in enumerate(names)}


def check_names(name: str, special: Sequence[str], end_of_document: str | None) -> None:
    """Refuse special tokens that are empty, doubled or (the end of a document) missing, and a name that is no text."""
    if not isinstance(name, str):
        raise TokenizerError(f"The name of a tokenizer must be a string, got {name!r}.")
    if any(not isinstance(token, str) or not token for token in special) or len(set(special)) != len(special):
        raise TokenizerError(f"Special tokens must be different non-empty strings, got {list(special)!r}.")
    if end_of_document is not None and end_of_document not in special:
        raise TokenizerError(f"The end of a document {end_of_document!r} is not among the special tokens.")


def encode_with_special(
    text: str, special: Mapping[str, int], encode: Callable[[str], list[int]]
) -> list[int]:
    """Ids of a text in which spelled special tokens are special; `encode` takes the text between them."""
    if not special:
        return encode(text)
    longest_first = sorted(special, key=len, reverse=True)
    ids: list[int] = []
    for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text):
        if part in special:
            ids.append(special[part])
        elif part:
            ids.extend(encode(part))
    return ids


def utf8(text: str) -> bytes:
    """The text as UTF-8. Raises TokenizerError naming the position of a lone surrogate."""
    if not isinstance(text, str):
        raise TokenizerError(f"A tokenizer encodes str, but got {type(text).__name__}.")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise TokenizerError(
            f"The character at position {error.start} is the lone surrogate U+{code:04X}, which no UTF-8 "
            "text contains; was the text read with errors='surrogateescape'? Clean it first."
        ) from error


def check_ids(ids: Iterable[int], vocab_size: int, name: str) -> list[int]:
    """Ids (list, NumPy or JAX array, one axis) as a list of ints, all within the vocabulary."""
    array = np.asarray(ids if hasattr(ids, "__array__") else list(ids))
    if array.size == 0:
        return []
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TokenizerError(f"Ids must be a list of integers, got {array.dtype} of shape {array.shape}.")
    wrong = np.flatnonzero((array < 0) | (array >= vocab_size))
    if wrong.size:
        raise TokenizerError(
            f"Id {array[wrong[0]]} at position {wrong[0]} is outside the vocabulary of {name!r}, "
            f"whose ids are 0 to {vocab_size - 1}."
        )
    return array.tolist()


def chars_per_token(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """Compression: characters of the texts over tokens of the texts (Llama 3, section 3.2, quotes 3.94)."""
    chars = tokens = 0

    def counted() -> Iterator[str]:
        nonlocal chars
        for text in texts:
            chars += len(text)
            yield text

    for ids in tokenizer.encode_documents(counted()):
        tokens += len(ids)
    if tokens == 0:
        raise TokenizerError("Characters per token of no text at all are undefined; give some text.")
    return chars / tokens


def fingerprint(definition: Mapping[str, Any]) -> str:
    """sha256 of a definition; the order of keys and the name do not count."""
    content = {key: value for key, value in definition.items() if key != "name"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def write_definition(path: str | Path, definition: Mapping[str, Any]) -> Path:
    """Write our format in one step: a reader sees the old file or the new one. Returns the file's path."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **definition}, ensure_ascii=False, indent=0)
    return write_text(path, text + "\n")


def write_text(path: str | Path, text: str) -> Path:
    """Replace a tokenizer's file (in a folder: `tokenizer.json`) in one step. Returns the file's path."""
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    try:
        with platform.replacing(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise TokenizerError(f"The tokenizer cannot be written to {path}: {error.strerror}.") from error
    return path


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises TokenizerError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TokenizerError(f"{path} is not a tokenizer file: it is not JSON ({error}).") from error


def check_definition(given: Any, path: Path) -> dict[str, Any]:
    """A definition in our format. Raises TokenizerError when the file is another or a newer one."""
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        raise TokenizerError(f'{path} lacks "format": "{FORMAT}", so min_llm did not write it.')
    if given.get("version") != VERSION:
        raise TokenizerError(
            f"{path} has version {given.get('version')!r} of the tokenizer format, this min_llm reads "
            f"{VERSION}; update min_llm or train the tokenizer again."
        )
    return given


def strings(given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of strings out of a definition that was read."""
    value = given[key]
    if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
        raise TokenizerError(f"'{key}' must be a list of strings.")
    return tuple(value)
