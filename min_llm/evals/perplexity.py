"""Perplexity and bits per byte of any text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from min_llm.config import UserError
from min_llm.evals.intervals import Interval, ratio
from min_llm.evals.scoring import Pair, first_token, scores, windows
from min_llm.infer.engine import Engine
from min_llm.train import evaluate


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """nats: of all tokens together. interval: of bits_per_byte, at 95 %; its units are windows, of which those of one
    long document are not quite independent. None for a single window."""

    nats: float
    tokens: int
    bytes: int
    documents: int
    interval: Interval | None

    @property
    def perplexity(self) -> float:
        """Per token: it compares only models with the same tokenizer."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """It compares any models."""
        return evaluate.bits_per_byte(self.nats / self.tokens, self.tokens, self.bytes)


def perplexity(engine: Engine, texts: Iterable[str], stride: int = 0) -> Perplexity:
    """Each text by itself, in windows of the engine's model_len; stride as in `scoring.windows`, 0: the cheapest.

    The bytes are those of the texts in UTF-8. Before each text stands `scoring.first_token`; a tokenizer without one
    leaves the first token of each text unscored, and its bytes uncounted. Raises UserError for texts with nothing to
    score.
    """
    tokenizer, size = engine.tokenizer, engine.model_len - 1
    begin = first_token(tokenizer)
    pairs: list[Pair] = []
    documents = size_of_texts = 0
    for text in texts:
        tokens = tokenizer.encode(text)
        unscored = len(tokenizer.decode_bytes(tokens[:1])) if begin is None else 0
        found = list(windows(tokens if begin is None else [begin, *tokens], 1, size, stride or size - 1))
        if found:
            pairs += found
            documents, size_of_texts = documents + 1, size_of_texts + len(text.encode()) - unscored
    if not pairs:
        raise UserError("There is nothing to score: the texts are empty, or of one token each.")
    found_scores = scores(engine, pairs)
    nats = np.array([-score.logprob for score in found_scores])
    sizes = np.array([float(len(tokenizer.decode_bytes(after))) for _, after in pairs])
    return Perplexity(
        math.fsum(nats),
        sum(score.tokens for score in found_scores),
        size_of_texts,
        documents,
        ratio(nats / math.log(2), sizes),
    )
