"""What may be asked of the engine, and what it answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from min_llm.config import UserError

Finish = Literal["stop", "length", "abort", "error"]

MOST_CHOICES = 128
MOST_TOPS = 20
MOST_STOPS = 64
MOST_BIASES = 1024


@dataclasses.dataclass(frozen=True)
class Grammar:
    """What the answer must match: kind names the language in which `text` is written. "json": any JSON object;
    "lark": llguidance's grammar language."""

    kind: Literal["json", "json_schema", "regex", "lark"]
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the defaults leave the model's distribution whole.

    The order is fixed: repetition penalty (Keskar et al. 2019: positive logits of tokens seen in prompt or answer are
    divided by it, negative ones multiplied), then sums (logit_bias; presence and frequency of tokens in the answer;
    minus infinity for what min_tokens or the grammar forbids), then temperature, then min_p, typical_p, top_k and
    top_p, each on what the one before left.

    temperature 0 is greedy. seed: the same seed gives the same tokens whatever else runs; None: one is drawn.
    stop: strings that end the answer and are not part of it. stop_ids: tokens that do, beside the model's own.
    ignore_end: the model's own end tokens do not end the answer. max_tokens None: up to the model's context.
    logprobs: so many likeliest tokens are told beside each token's own log-probability; None tells nothing.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Any = ()  # token -> what is added to its logit; kept as pairs
    min_tokens: int = 0
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    ignore_end: bool = False
    n: int = 1
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprobs_of: Literal["raw", "processed"] = "raw"
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise UserError("stop is a list of strings.")
        pairs = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias
        fields: dict[str, Any] = {"logit_bias": pairs, "stop": self.stop, "stop_ids": self.stop_ids}
        for name, values in fields.items():
            object.__setattr__(self, name, tuple(values))  # hashable
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise UserError(f"{name} is {value!r}; it must be a finite number.")
            if not low <= value <= high:
                raise UserError(f"{name} is {value}; it must be from {low} to {high}.")
        if self.top_p <= 0 or self.typical_p <= 0 or self.repetition_penalty <= 0:
            raise UserError("top_p, typical_p and repetition_penalty must be above 0.")
        for name, low, most in _COUNTS:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise UserError(f"{name} is {value!r}; it must be a whole number.")
            if not low <= value <= most:
                raise UserError(f"{name} is {value}; it must be from {low} to {most}.")
        if len(self.stop) > MOST_STOPS or len(self.stop_ids) > MOST_STOPS:
            raise UserError(f"There may be at most {MOST_STOPS} stop strings and as many stop_ids.")
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise UserError("A stop string must be a string of at least one character.")
        if len(self.logit_bias) > MOST_BIASES:
            raise UserError(
                f"logit_bias has {len(self.logit_bias)} entries; at most {MOST_BIASES} are allowed."
            )
        for token, bias in self.logit_bias:
            if (
                not isinstance(bias, (int, float))
                or isinstance(bias, bool)
                or math.isnan(bias)
                or bias == math.inf
            ):
                raise UserError(f"logit_bias of token {token} is {bias!r}; it must be a number or -inf.")

    def check_ids(self, vocab: int) -> None:
        """A sentence where a token id is none of the model's."""
        biased = [token for token, _ in self.logit_bias]
        for name, ids in (("logit_bias", biased), ("stop_ids", self.stop_ids)):
            for token in ids:
                if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab:
                    raise UserError(f"{name} names token {token!r}; the model has tokens 0 to {vocab - 1}.")


_RANGES = (
    ("temperature", 0.0, 1e4),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("typical_p", 0.0, 1.0),
    ("repetition_penalty", 0.0, 1e4),
    ("presence_penalty", -100.0, 100.0),
    ("frequency_penalty", -100.0, 100.0),
)
_COUNTS = (
    ("top_k", 0, 2**31 - 1),
    ("min_tokens", 0, 2**31 - 1),
    ("max_tokens", 1, 2**31 - 1),
    ("n", 1, MOST_CHOICES),
    ("seed", -(2**63), 2**64 - 1),
    ("logprobs", 0, MOST_TOPS),
    ("prompt_logprobs", 0, MOST_TOPS),
)
_OPTIONAL = ("max_tokens", "seed", "logprobs", "prompt_logprobs")


@dataclasses.dataclass(frozen=True)
class Token:
    """logprob: of this token, in nats; tops: the likeliest tokens at this place with theirs, likeliest first."""

    id: int
    logprob: float | None = None
    tops: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Output:
    """What one step added to a choice of a request.

    text: characters that are certain: an incomplete UTF-8 sequence and the beginning of a stop string are held back.
    finish: why the choice ended, with its last output. stopped_by: the stop string or token that ended it. error: a
    sentence, with finish "error". prompt: with the first output of choice 0 of a request that asked for
    prompt_logprobs, a Token for each prompt token (the first without a logprob). cached: prompt tokens whose keys and
    values were found in the prefix cache.
    """

    request: int
    choice: int
    tokens: tuple[Token, ...] = ()
    text: str = ""
    finish: Finish | None = None
    stopped_by: str | int | None = None
    error: str | None = None
    prompt: tuple[Token, ...] | None = None
    cached: int = 0
