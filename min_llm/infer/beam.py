"""Beam search: the likeliest answers of a model, not draws from it (Graves 2012; Wu et al. 2016, section 7)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from min_llm import models
from min_llm.config import UserError
from min_llm.infer import cache as caches
from min_llm.infer.prepare import rounded
from min_llm.infer.sample import check
from min_llm.models import ModelConfig
from min_llm.nn.batch import Batch
from min_llm.nn.leaves import unembed
from min_llm.nn.runtime import Runtime


@dataclasses.dataclass(frozen=True)
class Beam:
    """tokens: with the one that ended it, if one did. logprob: of all of them together, in nats. score: what beams are
    ranked by, logprob / length^length_penalty."""

    tokens: tuple[int, ...]
    logprob: float
    score: float


def beam_search(
    params: Any,
    cfg: ModelConfig,
    runtime: Runtime,
    prompt: Sequence[int],
    beams: int,
    max_tokens: int,
    ends: Collection[int] = (),
    length_penalty: float = 1.0,
    vocab: int | None = None,
) -> list[Beam]:
    """The best `beams` answers found, best first, each ended by one of `ends` or after max_tokens.

    Every step extends the best unfinished beams by every token and keeps the best `beams` of the results; those that
    end are set aside. The search stops early when no unfinished beam can become better than the worst that is kept,
    which is certain only for length_penalty up to 1 (0 ranks by log-probability alone). vocab: only ids below it.
    """
    if beams < 1:
        raise UserError(f"beams is {beams}; it must be at least 1.")
    check(cfg, [prompt], max_tokens)
    params = rounded(params, cfg, runtime)
    cache = caches.empty(cfg, beams, len(prompt) + max_tokens, runtime.dtype)
    tokens = np.tile(np.array(prompt, np.int32), (beams, 1))
    parents, place = np.arange(beams), 0
    start: tuple[int, ...] = ()
    running = [(start, 0.0)] + [(start, -np.inf)] * (beams - 1)  # one prompt, not so many equal ones
    finished: list[Beam] = []
    for length in range(1, max_tokens + 1):
        sums = np.array([total for _, total in running], np.float32)
        few = 2 * beams if ends else beams  # beams stay when as many end at once
        found = _extend(
            params, cfg, runtime, cache, parents, tokens, place, sums, vocab, max(few, len(ends) + beams)
        )
        cache, candidates = found[0], zip(*(np.asarray(x).tolist() for x in found[1:]), strict=True)
        place += tokens.shape[1]
        kept: list[tuple[int, tuple[int, ...], float]] = []
        for parent, token, total in candidates:
            if total == -np.inf or len(kept) == beams:
                break
            answer = (*running[parent][0], token)
            if token in ends or length == max_tokens:
                finished.append(Beam(answer, total, total / length**length_penalty))
            else:
                kept.append((parent, answer, total))
        finished = sorted(finished, key=lambda beam: -beam.score)[:beams]
        if not kept:
            break
        best = (
            max(total for *_, total in kept) / max_tokens**length_penalty
        )  # if all that follows were certain
        if len(finished) == beams and best <= finished[-1].score:
            break
        kept += [(kept[0][0], kept[0][1], -np.inf)] * (beams - len(kept))
        parents = np.array([parent for parent, *_ in kept])
        tokens = np.array([[answer[-1]] for _, answer, _ in kept], np.int32)
        running = [(answer, total) for _, answer, total in kept]
    return finished


@functools.partial(jax.jit, static_argnums=(1, 2, 8, 9), donate_argnums=3)
def _extend(
    params: Any,
    cfg: ModelConfig,
    runtime: Runtime,
    cache: caches.DenseCache,
    parents: Int[Array, " b"],
    tokens: Int[Array, "b s"],
    place: Int[Array, ""],
    sums: Float[Array, " b"],
    vocab: int | None,
    k: int,
) -> tuple[caches.DenseCache, Int[Array, " k"], Int[Array, " k"], Float[Array, " k"]]:
    """The k best continuations of all beams by one token: beam, token, and log-probability of the whole. Row i goes on
    from what row parents[i] has in the cache."""
    cache = jax.tree.map(lambda x: x[:, parents], cache)
    places = jnp.broadcast_to(place + jnp.arange(tokens.shape[1])[None], tokens.shape)
    batch = Batch(tokens, positions=places, index=places)
    hidden, cache = models.forward(params, cfg, batch, runtime, cache)
    logits = unembed(hidden[:, -1:], models.of(cfg).head(params))[:, 0, :vocab]
    totals = sums[:, None] + jax.nn.log_softmax(logits)
    best, at = jax.lax.top_k(totals.reshape(-1), min(k, totals.size))
    return cache, at // totals.shape[1], at % totals.shape[1], best
