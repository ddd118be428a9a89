"""Probes: watch activations inside a jitted, scanned, rematerialised model without touching its results.

A model calls `probe("name", x)`. Outside `collecting()` that is nothing at all; inside, statistics of x join the
collected dictionary, which the function being traced must return as an ordinary output (`nn.layers` does so for
every layer). After Lingua's probe, without hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm.kernels.mask import Mask

Stats = dict[str, Array]

_collected: ContextVar[Stats | None] = ContextVar("probe", default=None)

ENTROPY_QUERIES = 128


def enabled() -> bool:
    return _collected.get() is not None


@contextmanager
def collecting(active: bool = True) -> Iterator[Stats]:
    """Collect the probes of the code traced inside, into the dictionary this yields."""
    stats: Stats = {}
    token = _collected.set(stats if active else None)
    try:
        yield stats
    finally:
        _collected.reset(token)


def statistics(x: Array) -> dict[str, Float[Array, ""]]:
    """mean, std, rms, largest magnitude and excess kurtosis of all entries, float32 scalars."""
    x = x.astype(jnp.float32)
    mean = x.mean()
    centred = x - mean
    var = (centred**2).mean()
    kurtosis = (centred**4).mean() / jnp.maximum(var**2, 1e-30) - 3
    return {
        "mean": mean,
        "std": jnp.sqrt(var),
        "rms": jnp.sqrt((x**2).mean()),
        "max": jnp.abs(x).max(),
        "kurtosis": kurtosis,
    }


def probe(name: str, x: Array) -> Array:
    """x, unchanged. Records its statistics as "name/mean" … while collecting."""
    stats = _collected.get()
    if stats is not None:
        stats |= {f"{name}/{key}": value for key, value in statistics(jax.lax.stop_gradient(x)).items()}
    return x


def probe_entropy(name: str, q: Float[Array, "b s h k"], k: Float[Array, "b t g k"], mask: Mask) -> None:
    """Records the mean entropy of the attention weights, in nats, over at most 128 queries of each row."""
    stats = _collected.get()
    if stats is None:
        return
    from min_llm.kernels.attention.reference import probabilities

    q, k = jax.lax.stop_gradient(q), jax.lax.stop_gradient(k)
    p = probabilities(q[:, -ENTROPY_QUERIES:], k, _last_queries(mask, q.shape[1]))
    entropy = -jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30)), 0).sum(-1)
    stats[f"{name}/mean"] = entropy.mean()
    stats[f"{name}/min"] = entropy.mean((0, 2)).min()  # the most focused head


def _last_queries(mask: Mask, s: int) -> Mask:
    import dataclasses

    q_index = jnp.arange(s)[None] if mask.q_index is None else mask.q_index
    kv_index = mask.kv_index if mask.kv_index is not None else None
    segments = None if mask.q_segments is None else mask.q_segments[:, -ENTROPY_QUERIES:]
    return dataclasses.replace(
        mask, q_index=q_index[:, -ENTROPY_QUERIES:], q_segments=segments, kv_index=kv_index
    )
