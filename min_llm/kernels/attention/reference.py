"""Attention as the paper writes it: softmax(q kᵀ / √K) v, in float32 (Vaswani et al. 2017, equation 1).

The plain version that every other implementation is compared with. Its score matrix takes B·H·S·T floats.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm.kernels.mask import Mask


def attention(
    q: Float[Array, "b s h k"], k: Float[Array, "b t g k"], v: Float[Array, "b t g k"], mask: Mask
) -> Float[Array, "b s h k"]:
    """Grouped-query attention; see the package docstring for shapes."""
    p = probabilities(q, k, mask)
    out = jnp.einsum("bgsrt,btgk->bsgrk", p, v.astype(jnp.float32))
    return out.reshape(q.shape).astype(q.dtype)


def probabilities(
    q: Float[Array, "b s h k"], k: Float[Array, "b t g k"], mask: Mask
) -> Float[Array, "b g s r t"]:
    """The attention weights, float32; r counts the query heads of one key-value head."""
    (b, s, h, d), (t, g) = q.shape, k.shape[1:3]
    q_bsgrk = q.reshape(b, s, g, h // g, d).astype(jnp.float32)
    scores = jnp.einsum("bsgrk,btgk->bgsrt", q_bsgrk, k.astype(jnp.float32)) / math.sqrt(d)
    visible = mask.visible(slice(0, s), slice(0, t))
    if visible is not None:
        scores = jnp.where(visible[:, None, :, None, :], scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)
