"""A plain sampler: prefill the prompts, then one token at a time, all inside one compiled loop."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from min_llm import models
from min_llm.config import UserError
from min_llm.infer import cache as caches
from min_llm.infer.choose import Rows, choose, mixed, rows
from min_llm.infer.prepare import rounded
from min_llm.infer.request import Sampling
from min_llm.models import ModelConfig
from min_llm.nn.batch import Batch
from min_llm.nn.leaves import unembed
from min_llm.nn.runtime import Runtime

TAKEN = ("temperature", "top_k", "top_p", "min_p", "typical_p")


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

    Prompt and continuation must fit max_seq_len together. sampling: temperature and filters; what else it may hold is
    the engine's. Equal prompts get different draws of the same seed. vocab: only ids below it are drawn, for a model
    whose vocabulary is padded beyond its tokenizer's. A row also ends where its logits are no longer finite.
    """
    _refuse(sampling)
    longest = check(cfg, prompts, max_tokens)
    lengths = np.array([len(p) for p in prompts], np.int32)
    tokens = np.zeros((len(prompts), min(_bucket(longest), cfg.max_seq_len)), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    seeds = [mixed(seed, i) for i in range(len(prompts))]
    ways = rows([sampling] * len(prompts), seeds, lengths.tolist(), len(prompts))
    out = _generate(params, cfg, runtime, tokens, lengths, _bucket(max_tokens), ways, eos, max_tokens, vocab)
    return [_until(row[:max_tokens], eos) for row in np.asarray(out).tolist()]


def _refuse(sampling: Sampling) -> None:
    """A sentence where sampling asks for more than temperature and filters."""
    for field in dataclasses.fields(Sampling):
        value = getattr(sampling, field.name)
        if field.name not in TAKEN and value != field.default:
            raise UserError(
                f"{field.name} is {value!r}, but generate only takes {', '.join(TAKEN)}. Leave it out, or give the "
                "request to the engine."
            )


def _bucket(n: int) -> int:
    """Round lengths up, so that few shapes are compiled."""
    return max(16, 1 << (n - 1).bit_length())


def _until(row: list[int], eos: int | None) -> list[int]:
    """The tokens before the first that ends the row."""
    return list(itertools.takewhile(lambda token: token not in (eos, -1), row))


@functools.partial(jax.jit, static_argnums=(1, 2, 5, 7, 9))
def _generate(
    params: Any,
    cfg: ModelConfig,
    runtime: Runtime,
    tokens: Int[Array, "b s"],
    lengths: Int[Array, " b"],
    n: int,
    ways: Rows,
    eos: int | None,
    limit: Int[Array, ""] | int,
    vocab: int | None,
) -> Int[Array, "b n"]:
    """Up to `limit` tokens a row, in a buffer of n."""
    b, s = tokens.shape
    params = rounded(params, cfg, runtime)
    cache = caches.empty(cfg, b, s + n, runtime.dtype)
    hidden, cache = models.forward(params, cfg, Batch(tokens), runtime, cache)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    token = choose(_logits(params, cfg, last)[:, :vocab], ways)
    out = jnp.zeros((b, n), jnp.int32).at[:, 0].set(token)

    def unfinished(carry: tuple) -> Array:
        i, _, _, _, done = carry
        return (i < limit) & ~done.all()

    def step(carry: tuple) -> tuple:
        i, token, out, cache, done = carry
        place = (lengths + i - 1)[:, None]
        batch = Batch(token[:, None], positions=place, index=place)
        hidden, cache = models.forward(params, cfg, batch, runtime, cache)
        token = choose(_logits(params, cfg, hidden)[:, :vocab], ways.at(lengths + i))
        return i + 1, token, out.at[:, i].set(token), cache, done | _ends(token, eos)

    carry = (jnp.int32(1), token, out, cache, _ends(token, eos))
    return jax.lax.while_loop(unfinished, step, carry)[2]


def _ends(token: Array, eos: int | None) -> Array:
    return (token == -1) | (False if eos is None else token == eos)


def _logits(params: Any, cfg: ModelConfig, hidden: Float[Array, "b 1 d"]) -> Float[Array, "b v"]:
    return unembed(hidden, models.of(cfg).head(params))[:, 0]
