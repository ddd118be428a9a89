"""The host's part of sampling: what each row of logits is to be drawn with, and what came out."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from min_llm.infer import choose
from min_llm.infer.answer import Answer
from min_llm.infer.request import MOST_TOPS, Token

FORBIDDEN = -1  # what a row gives whose every token is forbidden

_choose = jax.jit(choose.choose)
_edit = jax.jit(choose.edit)
_processed = jax.jit(choose.processed)


@jax.jit
def _scores(logits: Float[Array, "s v"], ids: Int[Array, " s"]) -> tuple[Array, Array, Array]:
    """Log-probabilities of the tokens, and the likeliest tokens with theirs."""
    return choose.logprobs(logits, ids[:, None])[:, 0], *choose.tops(logits, MOST_TOPS)


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
    edited = _edited(logits, answers, rows) if any(a.edited for a in answers) else logits
    drawn = _choose(edited, rows)
    scores = {
        kind: [np.asarray(a) for a in _scores(logits if kind == "raw" else _processed(edited, rows), drawn)]
        for kind in {a.sampling.logprobs_of for a in answers if a.sampling.logprobs is not None}
    }
    ids = np.asarray(drawn).tolist()
    tokens = []
    for i, answer in enumerate(answers):
        k = answer.sampling.logprobs
        if k is None:
            tokens.append(Token(ids[i]))
            continue
        own, likeliest, values = (part[i] for part in scores[answer.sampling.logprobs_of])
        tops = tuple(zip(likeliest[:k].tolist(), values[:k].tolist(), strict=True))
        tokens.append(Token(ids[i], float(own), tops))
    return tokens


def warm_up(logits: Float[Array, "s v"]) -> None:
    """Compile what `draw` may need for logits of this shape."""
    rows = choose.rows([], [], [], logits.shape[0])
    for some in (logits, _edited(logits, [], rows)):
        ids = _choose(some, rows)
        _scores(some, ids)
        _scores(_processed(some, rows), ids)


def _edited(logits: Float[Array, "s v"], answers: list[Answer], rows: choose.Rows) -> Float[Array, "s v"]:
    """By what came before: the repetition penalty of tokens seen, and what is added."""
    seen, bias = np.zeros(logits.shape, np.uint8), np.zeros(logits.shape, np.float32)
    for i, answer in enumerate(answers):
        if answer.edited:
            answer.edit(seen[i], bias[i])
    return _edit(logits, seen, rows.repetition_penalty, bias)
