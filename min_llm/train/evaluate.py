"""Validation: the mean loss over fixed windows of held-out text, each token scored once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from min_llm import models
from min_llm.models import ModelConfig
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime


class Evaluator:
    """Scores batches of equal shape; compiled once."""

    def __init__(self, cfg: ModelConfig, runtime: Runtime) -> None:
        def sums(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
            weights = jnp.ones(batch.tokens.shape) if batch.weights is None else batch.weights
            return models.loss_sum(params, cfg, batch, runtime), weights.sum()

        self._sums = jax.jit(sums)

    def __call__(self, params: Any, batches: Iterable[Batch]) -> tuple[float, int]:
        """(nats per token, tokens scored)."""
        parts = [self._sums(params, batch) for batch in batches]
        total, count = (math.fsum(float(x) for x in xs) for xs in zip(*parts, strict=True))
        return total / count, int(count)


def bits_per_byte(nats_per_token: float, tokens: int, bytes_of_text: int) -> float:
    """Comparable across tokenizers: nats · tokens / bytes / ln 2."""
    return nats_per_token * tokens / bytes_of_text / math.log(2)
