"""A token file: one long memory-mapped array of token ids and the places where documents start.

Documents lie end to end. A tokenizer with an end-of-document token (EOS) puts one before the first document
and one after each; the EOS that ends a document also *opens* the next one and belongs to its segment (GPT-2
uses its <|endoftext|> this way):

    tokens    ⏎ t h e ⏎ a ⏎ c a t ⏎          ⏎ is EOS
    starts    0       4   6                   the document's opening EOS
    segment   1 1 1 1 2 2 3 3 3 3             of each input; the last token is only ever a target

So every token of every document is predicted exactly once, from its own document alone, and the opening EOS
is what a sampler starts from. Without EOS, `starts` are the first tokens themselves, which nothing can
predict: the loader gives these targets weight 0 and `scored_bytes` leaves their bytes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt

from min_llm.config import UserError


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, else uint32; little-endian, as files are."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


@dataclass(frozen=True, eq=False)
class TokenFile:
    """Token ids of one split. `len` is the number of tokens N; a window of S inputs reads S + 1 of them."""

    tokens: UInt[np.ndarray, tokens]  # memory-mapped or in memory
    starts: Int[np.ndarray, documents]  # int64, strictly increasing, the first is 0
    vocab_size: int
    eos: int | None = None  # the token that opens every document and ends the last
    text_bytes: int = 0  # UTF-8 bytes of the text
    scored_bytes: int = 0  # bytes the N - 1 targets spell: the denominator of bits per byte
    name: str = "tokens"  # for messages

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_targets(self) -> int:
        """Places that have a next token: every token but the last is an input."""
        return max(len(self.tokens) - 1, 0)

    @property
    def n_documents(self) -> int:
        return len(self.starts)

    # The same memory as plain arrays: slicing np.memmap objects costs microseconds each time.

    @cached_property
    def plain(self) -> np.ndarray:
        return np.asarray(self.tokens)

    @cached_property
    def places(self) -> np.ndarray:
        return np.asarray(self.starts)

    def windows(self, length: int) -> np.ndarray:
        """Every run of `length` tokens as a [N - length + 1, length] view that copies nothing."""
        if length > len(self):
            raise UserError(
                f"{self.name} holds {len(self):,} tokens; a window needs {length:,}. Use a shorter seq_len."
            )
        step = self.plain.strides[0]
        shape = (len(self) - length + 1, length)
        return np.lib.stride_tricks.as_strided(self.plain, shape, (step, step), writeable=False)

    def document(self, k: int) -> np.ndarray:
        """Token ids of document k without its EOS."""
        begin = int(self.starts[k])
        end = int(self.starts[k + 1]) if k + 1 < len(self.starts) else len(self)
        if self.eos is not None:
            begin += 1
            end -= 1 if k + 1 == len(self.starts) else 0
        return self.plain[begin:end]


def open_token_file(
    path: Path, n_tokens: int, dtype: np.dtype, starts: Path, n_documents: int, **fields: object
) -> TokenFile:
    """Map `path` after checking that both files have the size and form their meta.json says."""
    expected = n_tokens * dtype.itemsize
    try:
        size = path.stat().st_size
        places = np.load(starts, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path.parent} is incomplete: {error}.") from error
    if size != expected:
        raise UserError(
            f"{path} has {size:,} bytes, {expected:,} were written: it is cut off or overwritten."
        )
    if places.shape != (n_documents,) or places.dtype != np.int64:
        raise UserError(f"{starts} does not hold the {n_documents:,} document starts that were written.")
    return TokenFile(np.memmap(path, dtype, "r"), places, name=str(path), **fields)  # type: ignore[arg-type]


def join(
    documents: Sequence[np.ndarray | Sequence[int]],
    vocab_size: int,
    eos: int | None = None,
    name: str = "tokens",
) -> TokenFile:
    """A token file in memory from the ids of each document (toy tasks, tests); its text is unknown."""
    pieces: list[np.ndarray] = [] if eos is None else [np.array([eos])]
    starts, place = [], 0
    for ids in documents:
        starts.append(place)
        pieces += [np.asarray(ids)] if eos is None else [np.asarray(ids), np.array([eos])]
        place += len(ids) + (eos is not None)
    tokens = np.concatenate(pieces).astype(token_dtype(vocab_size))
    return TokenFile(tokens, np.array(starts, np.int64), vocab_size, eos, name=name)
