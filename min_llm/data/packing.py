"""Separate documents (conversations, examples) packed into the rows of a batch.

Pretraining text is cut into windows (loader.py); fine-tuning keeps every example whole, so rows are bins and
packing is bin packing: "best_fit" (longest first, each into the fullest row it fits) wastes least, "greedy"
(in the order given, a new row when the next does not fit) keeps the order. Segment ids keep documents apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from min_llm.config import UserError
from min_llm.nn.batch import Batch


def pack(lengths: Sequence[int], seq_len: int, method: str = "best_fit") -> list[list[int]]:
    """Which documents go into which row: lists of indices whose lengths sum to at most `seq_len`.

    Best-fit decreasing needs at most 11/9 of the optimal number of rows, plus one (Johnson 1974).
    """
    for k, length in enumerate(lengths):
        if not 0 < length <= seq_len:
            raise UserError(
                f"document {k} takes {length:,} places; a row has {seq_len:,}. Shorten or drop it."
            )
    if method == "greedy":
        return _greedy(lengths, seq_len)
    if method == "best_fit":
        return _best_fit(lengths, seq_len)
    raise UserError(f"method is {method!r}; it must be 'best_fit' or 'greedy'.")


def _greedy(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room = 0
    for k, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = seq_len
        rows[-1].append(k)
        room -= length
    return rows


def _best_fit(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(seq_len + 1)]  # room left -> rows
    occupied = 0  # bit r is set where with_room[r] has a row: the best fit is the lowest bit from `length` up
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        fits = occupied >> lengths[k]
        if fits:
            room = lengths[k] + (fits & -fits).bit_length() - 1
            row = with_room[room].pop()
            occupied &= ~(1 << room) if not with_room[room] else -1
        else:
            room, row = seq_len, len(rows)
            rows.append([])
        rows[row].append(k)
        with_room[room - lengths[k]].append(row)
        occupied |= 1 << (room - lengths[k])
    return rows


def pack_documents(
    documents: Sequence[Sequence[int] | np.ndarray],
    seq_len: int,
    *,
    weights: Sequence[Sequence[float] | np.ndarray] | None = None,
    method: str = "best_fit",
) -> Batch:
    """All documents in as few rows as the method finds: a Batch of [rows, seq_len].

    documents: token ids, two or more each; n tokens take n - 1 places, because the last is only a target.
    weights: of each token as a *target* (a masked prompt has 0), so weights[k][0] is never used; default 1.
    Padding has weight 0 and segment 0.
    """
    for k, document in enumerate(documents):
        if len(document) < 2:
            raise UserError(
                f"document {k} has {len(document)} tokens; it needs two, one to predict the other."
            )
        if weights is not None and len(weights[k]) != len(document):
            raise UserError(f"document {k} has {len(document)} tokens and {len(weights[k])} weights.")
    rows = pack([len(document) - 1 for document in documents], seq_len, method)
    fields: Any = np.zeros((4, len(rows), seq_len), np.int32)
    tokens, targets, positions, segments = fields
    scored: Any = np.zeros((len(rows), seq_len), np.float32)
    for r, members in enumerate(rows):
        begin = 0
        for number, k in enumerate(members, start=1):
            end = begin + len(documents[k]) - 1
            tokens[r, begin:end] = documents[k][:-1]
            targets[r, begin:end] = documents[k][1:]
            positions[r, begin:end] = np.arange(end - begin)
            segments[r, begin:end] = number
            scored[r, begin:end] = 1 if weights is None else weights[k][1:]
            begin = end
    return Batch(tokens, targets, positions=positions, segment_ids=segments, weights=scored)
