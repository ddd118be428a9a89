"""The host's part of sampling: what each row of logits is to be drawn with, and what came out."""

from __future__ import annotations

from typing import Any

import numpy as np

from min_llm.infer import choose
from min_llm.infer.answer import Answer
from min_llm.infer.request import MOST_TOPS, Token

FORBIDDEN = -1  # what a row gives whose grammar allows no token


def draw(logits: Any, rows: list[tuple[Answer, int]]) -> list[Token]:
    """The next token of each row; rows: whose it is and its place in the sequence. The rows of `logits` beyond them are
    padding."""
    size = logits.shape[0]
    arrays = choose.rows([a.sampling for a, _ in rows], [a.seed for a, _ in rows], [p for _, p in rows], size)
    if any(a.edited for a, _ in rows):
        edited = choose.edit(logits, *_edits([a for a, _ in rows], logits.shape))
        ids, _, processed = choose.choose(edited, arrays)
        raw = choose.logprobs_at(logits, ids)
    else:
        ids, raw, processed = choose.choose(logits, arrays)
        edited = logits
    wanted = {a.sampling.logprobs_of for a, _ in rows if a.sampling.logprobs}
    tops = {kind: _host(choose.tops(logits if kind == "raw" else edited, MOST_TOPS)) for kind in wanted}
    ids, raw, processed = _host((ids, raw, processed))
    tokens = []
    for i, (answer, _) in enumerate(rows):
        k, kind = answer.sampling.logprobs, answer.sampling.logprobs_of
        if k is None:
            tokens.append(Token(int(ids[i])))
            continue
        best = tuple(zip(*(part[i, :k].tolist() for part in tops[kind]), strict=True)) if k else ()
        tokens.append(Token(int(ids[i]), float((raw if kind == "raw" else processed)[i]), best))
    return tokens


def warm_up(logits: Any) -> None:
    """Compile what `draw` may need for logits of this shape."""
    neutral = choose.rows([], [], [], logits.shape[0])
    shape = logits.shape
    edited = choose.edit(
        logits, np.zeros(shape, np.uint8), np.ones(shape[0], np.float32), np.zeros(shape, np.float32)
    )
    for some in (logits, edited):
        ids, _, _ = choose.choose(some, neutral)
        choose.logprobs_at(some, ids)
        choose.tops(some, MOST_TOPS)


def _host(arrays: Any) -> list[np.ndarray]:
    return [np.asarray(a) for a in arrays]


def _edits(answers: list[Answer], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """seen [S, V], repetition penalty [S] and what is added to the logits [S, V]."""
    seen, repetition, bias = (
        np.zeros(shape, np.uint8),
        np.ones(shape[0], np.float32),
        np.zeros(shape, np.float32),
    )
    for i, answer in enumerate(answers):
        if answer.edited:
            answer.edit(seen[i], bias[i])
            repetition[i] = answer.sampling.repetition_penalty
    return seen, repetition, bias
