"""What flows through a model: the batch, and documents packed into it.

Training text is documents of all lengths; a batch is a rectangle. So documents are laid end to end in a row,
and three integers per place tell who is who:

    tokens       t h e _ c a t   s a t .      "the_cat" and "sat." without their last targets, padded
    index        0 1 2 3 4 5 6 7 8 9 ...      place in the row
    positions    0 1 2 3 4 5   0 1 2   0      place in the document: what RoPE or a position table sees
    segment_ids  1 1 1 1 1 1   2 2 2   0      which document; 0 is padding
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Batch(NamedTuple):
    """All [B,S]. The library has its own; the oracle reads the attributes of whatever it is given."""

    tokens: Any
    targets: Any  # the token that follows, in the same document
    positions: Any
    index: Any
    segment_ids: Any  # None: each row is one document
    weights: Any  # of each place in the loss


def complete(batch):
    """The batch in NumPy. Without positions or index places are counted; without weights each counts 1."""
    shape = np.shape(batch.tokens)
    count = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    absent = {"positions": count, "index": count, "weights": np.ones(shape, np.float32)}
    given = {field: getattr(batch, field) for field in Batch._fields}
    return Batch(**{f: absent.get(f) if value is None else np.asarray(value) for f, value in given.items()})


def pack(rows, seq_len):
    """A batch from `rows`, a list of rows, each a list of documents, each a sequence of two or more tokens.

    A document of n tokens takes n - 1 places: each but the last token predicts its follower.
    """
    tokens, targets, positions, segments = np.zeros((4, len(rows), seq_len), np.int32)
    for r, documents in enumerate(rows):
        start = 0
        for number, document in enumerate(documents, start=1):
            end = start + len(document) - 1
            if end > seq_len:
                raise ValueError(f"row {r} needs {end} places up to document {number}; seq_len is {seq_len}")
            tokens[r, start:end] = document[:-1]
            targets[r, start:end] = document[1:]
            positions[r, start:end] = np.arange(end - start)
            segments[r, start:end] = number
            start = end
    index = np.broadcast_to(np.arange(seq_len, dtype=np.int32), tokens.shape)
    return Batch(tokens, targets, positions, index, segments, (segments > 0).astype(np.float32))


def prompt(tokens, start=0):
    """A batch of one row to continue from: `tokens` at places start, start + 1, ...; no targets."""
    place = np.arange(start, start + len(tokens))[None]
    return Batch(np.array([tokens]), None, place, place, None, None)
