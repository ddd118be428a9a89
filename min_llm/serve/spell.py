"""Log-probabilities in OpenAI's two shapes: tokens as text, with their bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from min_llm.infer.request import Token
from min_llm.infer.text_stream import TextStream
from min_llm.tokenizers import Tokenizer

LOWEST = -9999.0  # stands for minus infinity, which JSON lacks


class Spelling:
    """The tokens of one text, one after another, behind those `before`. The texts that `next` gives add up to the
    whole: a character spread over several tokens belongs to the last of them, and special tokens are no text."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        special = frozenset(tokenizer.special.values())
        own_text = not before or before[-1] in special  # as the engine has it
        self.tokenizer = tokenizer
        self.length = 0  # characters so far
        self._text = TextStream(tokenizer, hidden=special, before=() if own_text else before)

    def next(self, token: int) -> str:
        text = self._text.feed(token)
        self.length += len(text)
        return text


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of a token inside a text; none for an id without a token."""
    return tokenizer.spelled.get(token, b"")


def own(token: Token) -> float:
    """A token's log-probability, exactly as it stands among the likeliest if it is one of them."""
    return _number(dict(token.tops).get(token.id, token.logprob))


def _number(logprob: float | None) -> float:
    return max(logprob, LOWEST) if logprob is not None and not math.isnan(logprob) else LOWEST


def content(spelling: Spelling, tokens: Sequence[Token], tops: int) -> list[dict[str, Any]]:
    """The entries of a chat's `logprobs.content`."""

    def entry(text: str | None, token: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(spelling.tokenizer, token)
        text = data.decode("utf-8", "replace") if text is None else text
        return {"token": text, "bytes": list(data), "logprob": logprob}

    return [
        entry(spelling.next(token.id), token.id, own(token))
        | {"top_logprobs": [entry(None, i, _number(p)) for i, p in token.tops[:tops]]}
        for token in tokens
    ]


def legacy(spelling: Spelling, tokens: Sequence[Token], tops: int) -> dict[str, list[Any]]:
    """A completion's `logprobs`: lists side by side; null where a token, the first, follows nothing.

    Its objects are keyed by the tokens' text. Of several tokens that look the same the likeliest stays, and the token
    itself is always among them.
    """
    made: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        text = name(spelling.tokenizer, token.id)
        made["tokens"].append(text)
        made["text_offset"].append(spelling.length)
        spelling.next(token.id)
        if token.logprob is None:
            made["token_logprobs"].append(None)
            made["top_logprobs"].append(None)
            continue
        likeliest: dict[str, float] = {}
        for i, logprob in token.tops[:tops]:
            likeliest.setdefault(name(spelling.tokenizer, i), _number(logprob))
        likeliest.setdefault(text, own(token))
        made["token_logprobs"].append(own(token))
        made["top_logprobs"].append(likeliest)
    return made


def name(tokenizer: Tokenizer, token: int) -> str:
    """A token as text, or as OpenAI writes one that is no whole text: `bytes:\\xe2\\x80`."""
    data = token_bytes(tokenizer, token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def of_prompt(tokenizer: Tokenizer, tokens: Sequence[Token]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token, those told of its place by their ids; null for the first."""
    made: list[dict[str, Any] | None] = []
    for token in tokens:
        if token.logprob is None:
            made.append(None)
            continue
        places = {i: (_number(p), rank) for rank, (i, p) in enumerate(token.tops, 1)}
        places.setdefault(token.id, (own(token), None))  # type: ignore[arg-type]
        made.append({
            str(i): {"logprob": p, "rank": rank, "decoded_token": name(tokenizer, i)}
            for i, (p, rank) in places.items()
        })  # fmt: skip
    return made
