"""A plain sampler: prefill the prompts, then one token at a time, all inside one compiled loop."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from min_llm import models
from min_llm.config import UserError
from min_llm.infer import cache as caches
from min_llm.infer.request import Sampling
from min_llm.models import ModelConfig
from min_llm.nn.batch import Batch
from min_llm.nn.leaves import unembed
from min_llm.nn.runtime import Runtime
from min_llm.spec import map_spec


def choose(logits: Float[Array, "b v"], key: jax.Array, sampling: Sampling) -> Int[Array, " b"]:
    """One token a row."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.top_p < 1:
        logits = nucleus(logits, sampling.top_p)
    return jax.random.categorical(key, logits)


def nucleus(logits: Float[Array, "b v"], top_p: float) -> Float[Array, "b v"]:
    """Only the most likely tokens whose probabilities together reach top_p (Holtzman et al. 2019)."""
    order = jnp.argsort(-logits, axis=-1)
    p = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), axis=-1)
    keep = jnp.cumsum(p, axis=-1) - p < top_p
    rank = jnp.argsort(order, axis=-1)
    return jnp.where(jnp.take_along_axis(keep, rank, -1), logits, -jnp.inf)


def check(cfg: ModelConfig, prompts: Sequence[Sequence[int]], max_tokens: int) -> int:
    """The length of the longest prompt; a sentence where `generate` cannot continue them."""
    if not prompts or any(len(p) == 0 for p in prompts):
        raise UserError("Every prompt needs at least one token to continue.")
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}; it must be at least 1.")
    longest = max(len(p) for p in prompts)
    if longest + max_tokens > cfg.max_seq_len:
        raise UserError(
            f"A prompt of {longest} tokens and {max_tokens} new ones do not fit the model's max_seq_len of "
            f"{cfg.max_seq_len}. Shorten the prompt or ask for fewer tokens."
        )
    return longest


def generate(
    params: Any,
    cfg: ModelConfig,
    runtime: Runtime,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    eos: int | None = None,
    vocab: int | None = None,
) -> list[list[int]]:
    """Continuations of token prompts (each at least one token), up to max_tokens each, cut before `eos`.

    Prompt and continuation must fit max_seq_len together. vocab: only ids below it are drawn, for a model whose
    vocabulary is padded beyond its tokenizer's.
    """
    longest = check(cfg, prompts, max_tokens)
    lengths = np.array([len(p) for p in prompts], np.int32)
    tokens = np.zeros((len(prompts), min(_bucket(longest), cfg.max_seq_len)), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    room = _bucket(max_tokens)
    out = _generate(
        params, cfg, runtime, tokens, lengths, room, sampling, jax.random.key(seed), eos, max_tokens, vocab
    )
    return [_until(row[:max_tokens], eos) for row in np.asarray(out).tolist()]


def _bucket(n: int) -> int:
    """Round lengths up, so that few shapes are compiled."""
    return max(16, 1 << (n - 1).bit_length())


def _until(row: list[int], eos: int | None) -> list[int]:
    return row[: row.index(eos)] if eos is not None and eos in row else row


@functools.partial(jax.jit, static_argnums=(1, 2, 5, 6, 8, 10))
def _generate(
    params: Any,
    cfg: ModelConfig,
    runtime: Runtime,
    tokens: Int[Array, "b s"],
    lengths: Int[Array, " b"],
    n: int,
    sampling: Sampling,
    key: jax.Array,
    eos: int | None,
    limit: Int[Array, ""] | int,
    vocab: int | None,
) -> Int[Array, "b n"]:
    """Up to `limit` tokens a row, in a buffer of n."""
    rows, s = tokens.shape
    params = rounded(params, cfg, runtime)
    cache = caches.empty(cfg, rows, s + n, runtime.dtype)
    hidden, cache = models.forward(params, cfg, Batch(tokens), runtime, cache)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    token = choose(_logits(params, cfg, last)[:, :vocab], jax.random.fold_in(key, 0), sampling)
    out = jnp.zeros((rows, n), jnp.int32).at[:, 0].set(token)

    def unfinished(carry: tuple) -> Array:
        i, _, _, _, done = carry
        return (i < limit) & ~done.all()

    def step(carry: tuple) -> tuple:
        i, token, out, cache, done = carry
        place = (lengths + i - 1)[:, None]
        batch = Batch(token[:, None], positions=place, index=place)
        hidden, cache = models.forward(params, cfg, batch, runtime, cache)
        token = choose(_logits(params, cfg, hidden)[:, :vocab], jax.random.fold_in(key, i), sampling)
        return i + 1, token, out.at[:, i].set(token), cache, done | _is(token, eos)

    carry = (jnp.int32(1), token, out, cache, _is(token, eos))
    return jax.lax.while_loop(unfinished, step, carry)[2]


def rounded(params: Any, cfg: ModelConfig, runtime: Runtime) -> Any:
    """Parameters with everything that enters a product in the compute dtype: the same numbers that `dot` would round
    them to at each use, half the bytes to read for each token."""
    used = map_spec(lambda p: p.role in ("matrix", "head", "embedding"), models.spec(cfg))
    return jax.tree.map(lambda p, round_it: p.astype(runtime.dtype) if round_it else p, params, used)


def _is(token: Array, eos: int | None) -> Array:
    return jnp.zeros(token.shape, bool) if eos is None else token == eos


def _logits(params: Any, cfg: ModelConfig, hidden: Float[Array, "b 1 d"]) -> Float[Array, "b v"]:
    return unembed(hidden, models.of(cfg).head(params))[:, 0]
