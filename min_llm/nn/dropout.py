"""Dropout (Srivastava et al. 2014), for settings that repeat small data many times. Llama 3 trains without."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from min_llm.nn import axes


def dropout(x: Array, rate: float, key: jax.Array | None) -> Array:
    """x with a fraction `rate` of its entries zeroed and the rest scaled up; x itself without a key or a rate."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    if axes.on_mesh():
        keep = jax.reshard(keep, axes.partition(x))
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def split(key: jax.Array | None, n: int) -> list[jax.Array | None]:
    """n keys from one; n Nones from None (evaluation)."""
    return [None] * n if key is None else list(jax.random.split(key, n))
