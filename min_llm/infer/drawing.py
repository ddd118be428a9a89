"""The host's part of sampling: what each row of logits is to be drawn with, and what came out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from min_llm.infer import choose
from min_llm.infer.answer import Answer
from min_llm.infer.request import MOST_TOPS, Token

FORBIDDEN = -1  # what a row gives whose every token is forbidden

_choose = jax.jit(choose.choose)
_tops = jax.jit(choose.tops, static_argnames="k")


@jax.jit
def _choose_edited(logits: Array, seen: Array, bias: Array, rows: choose.Rows) -> tuple[Array, ...]:
    """Edited logits, tokens drawn by them, log-probabilities by the model's own logits and by what they were drawn
    from."""
    edited = choose.edit(logits, seen, rows.repetition_penalty, bias)
    ids, _, drawn = choose.choose(edited, rows)
    return edited, ids, choose.logprobs(logits, ids[:, None])[:, 0], drawn


@functools.partial(jax.jit, static_argnames="k")
def _tops_drawn(logits: Array, rows: choose.Rows, k: int) -> tuple[Array, Array]:
    return choose.tops(choose.processed(logits, rows), k)


def draw(logits: Float[Array, "s v"], wanted: list[tuple[Answer, int]]) -> list[Token]:
    """The next token of each row; wanted: whose it is and its place in the sequence. Rows of `logits` beyond them are
    padding."""
    answers = [answer for answer, _ in wanted]
    rows = choose.rows(
        [a.sampling for a in answers],
        [a.seed for a in answers],
        [place for _, place in wanted],
        logits.shape[0],
    )
    edited = logits
    if any(a.edited for a in answers):
        edited, ids, raw, drawn = _choose_edited(logits, *_edits(answers, logits.shape), rows)
    else:
        ids, raw, drawn = _choose(logits, rows)
    kinds = {a.sampling.logprobs_of for a in answers if a.sampling.logprobs}
    tops = {}
    if "raw" in kinds:
        tops["raw"] = _host(_tops(logits, k=MOST_TOPS))
    if "processed" in kinds:
        tops["processed"] = _host(_tops_drawn(edited, rows, k=MOST_TOPS))
    ids, raw, drawn = _host((ids, raw, drawn))
    tokens = []
    for i, answer in enumerate(answers):
        k, kind = answer.sampling.logprobs, answer.sampling.logprobs_of
        if k is None:
            tokens.append(Token(int(ids[i])))
            continue
        likeliest = tuple(zip(*(part[i, :k].tolist() for part in tops[kind]), strict=True)) if k else ()
        tokens.append(Token(int(ids[i]), float((raw if kind == "raw" else drawn)[i]), likeliest))
    return tokens


def warm_up(logits: Float[Array, "s v"]) -> None:
    """Compile what `draw` may need for logits of this shape."""
    rows = choose.rows([], [], [], logits.shape[0])
    _choose(logits, rows)
    edited, *_ = _choose_edited(logits, *_edits([], logits.shape), rows)
    for some in (logits, edited):
        _tops(some, k=MOST_TOPS)
        _tops_drawn(some, rows, k=MOST_TOPS)


def _host(arrays: Any) -> list[np.ndarray]:
    return [np.asarray(a) for a in arrays]


def _edits(answers: list[Answer], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens the repetition penalty counts as seen, and what is added to the logits, [S, V] each."""
    seen, bias = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    for i, answer in enumerate(answers):
        if answer.edited:
            answer.edit(seen[i], bias[i])
    return seen, bias
