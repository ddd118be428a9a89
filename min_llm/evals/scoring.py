"""What a model thinks of text: log-likelihoods of continuations after contexts, and of long texts in windows.

The conventions are those of lm-evaluation-harness 0.4.13 (api/model.py, utils.py), so that numbers compare: where a
continuation begins among the tokens, which token stands before a text, how much context a window has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from min_llm.config import UserError
from min_llm.infer.engine import Engine
from min_llm.infer.request import Output, Sampling, Token
from min_llm.tokenizers import Tokenizer

Pair = tuple[Sequence[int], Sequence[int]]  # tokens of a context, and of what follows

# the engine scores prompts; the token that it makes besides is not wanted
SCORED = Sampling(temperature=0, max_tokens=1, seed=0, prompt_logprobs=1)


@dataclasses.dataclass(frozen=True)
class Score:
    """Of a continuation. logprob: the sum over its tokens, in nats; greedy: each is the likeliest at its place."""

    logprob: float
    tokens: int
    greedy: bool


def outputs(
    engine: Engine, requests: Sequence[tuple[Sequence[int], Sampling]]
) -> Iterator[tuple[int, Output]]:
    """What an engine that has nothing else to do answers, as it comes, each output with the place of its request.
    UserError for requests that it cannot take, and where one fails."""
    places = {engine.add(*request): place for place, request in enumerate(requests)}
    while engine.busy:
        for output in engine.step():
            if output.error is not None:
                raise UserError(output.error)
            yield places[output.request], output


def scores(engine: Engine, pairs: Sequence[Pair]) -> list[Score]:
    """Of each continuation after its context, whose beginning is cut off where both do not fit the engine's model_len.
    UserError for one without context, or too long by itself."""
    room = engine.model_len - 1  # the token that is made needs a place
    requests = [([*_last(context, room - len(after)), *after], SCORED) for context, after in pairs]
    found: list[Score | None] = [None] * len(pairs)
    for place, output in outputs(engine, requests):
        if output.prompt is not None:
            found[place] = _score(output.prompt[len(output.prompt) - len(pairs[place][1]) :])
    assert None not in found
    return found  # type: ignore[return-value]


def _last(context: Sequence[int], room: int) -> Sequence[int]:
    if not context:
        raise UserError("A continuation can only be scored after at least one token; its context has none.")
    if room < 1:
        raise UserError(
            f"A continuation is {1 - room} tokens too long for the model's context. Shorten it, or score it in windows."
        )
    return context[-room:]


def _score(tokens: Sequence[Token]) -> Score:
    logprobs = [t.logprob for t in tokens if t.logprob is not None]
    greedy = all(p >= t.tops[0][1] for p, t in zip(logprobs, tokens, strict=True))
    return Score(math.fsum(logprobs), len(tokens), greedy)


def split(encode: Callable[[str], list[int]], context: str, after: str) -> Pair:
    """Tokens of a context that is not empty and of the text after it: those of both together, cut where the tokens of
    the context alone would end. Spaces at its end go to what follows, since tokens begin with spaces."""
    kept = context.rstrip()
    after = context[len(kept) :] + after
    before, whole = encode(kept), encode(kept + after)
    return before, whole[len(before) :]


def first_token(tokenizer: Tokenizer) -> int | None:
    """What stands before a text so that its first token can be scored too: the token that begins texts, else the one
    that ends them. None: this tokenizer has neither."""
    begin = getattr(tokenizer, "bos", None)
    return tokenizer.eos if begin is None else begin


def windows(text: Sequence[int], known: int, size: int, stride: int) -> Iterator[Pair]:
    """A text of any length as pairs of at most `size` tokens: all but its first `known` tokens are scored once.

    The first window is full; each one after it scores `stride` tokens (the last one: what is left) behind all the
    context that fits. stride size - 1 costs least, and its windows begin with one token of context, as lm-eval's do; a
    smaller one scores tokens more justly, at a cost that grows as size / stride.
    """
    if not 1 <= known < size or not 1 <= stride < size:
        raise UserError(
            f"Windows of {size} tokens with {known} before the text score 1 to {size - 1} tokens each; the stride is "
            f"{stride}."
        )
    at = known
    while at < len(text):
        end = min(len(text), size if at == known else at + stride)
        yield text[max(0, end - size) : at], text[at:end]
        at = end
