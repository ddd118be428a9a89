"""Ring attention (Liu et al. 2023): keys and values travel round the devices of cp, a portion at a time.

The contrast to gathering them (`context`), written plainly: every mask is evaluated piece by piece. A forward pass
never holds more than one portion. The derivative of the loop below keeps the portions it has seen, so training holds
what gathering does; a backward pass that sends them round again would not.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm.kernels.mask import Mask

HIDDEN = -1e30  # finite, so that no NaN can arise where a query has seen nothing yet


def attention(
    q: Float[Array, "b s h k"], k: Float[Array, "b s g k"], v: Float[Array, "b s g k"], mask: Mask
) -> Float[Array, "b s h k"]:
    """This device's queries against the keys of all, inside a shard_map over cp. The mask's kv fields travel too.

    A piece rescales the running maximum m, sum l and output o of each query as in FlashAttention (Dao et al. 2022,
    algorithm 1). The scores of a piece are computed again in the backward pass, which sends the gradients of keys and
    values round the ring the other way.
    """
    (b, s, h, d), g, n = q.shape, k.shape[2], jax.lax.axis_size("cp")
    queries = q.reshape(b, s, g, h // g, d).transpose(0, 2, 1, 3, 4)
    ring = [(i, (i + 1) % n) for i in range(n)]

    @jax.checkpoint
    def piece(carry: tuple, _: None) -> tuple[tuple, None]:
        (m, total, out), travelling = carry
        k, v, kv_index, kv_segments = travelling
        scores = jnp.einsum("bgsrk,btgk->bgsrt", queries, k).astype(jnp.float32) / math.sqrt(d)
        here = dataclasses.replace(mask, kv_index=kv_index, kv_segments=kv_segments)
        visible = here.visible(slice(0, s), slice(0, k.shape[1]))
        if visible is not None:
            scores = jnp.where(visible[:, None, :, None, :], scores, HIDDEN)
        new = jnp.maximum(m, scores.max(-1))
        p = jnp.where(scores > HIDDEN / 2, jnp.exp(scores - new[..., None]), 0.0)
        shrink = jnp.exp(m - new)
        pv = jnp.einsum("bgsrt,btgk->bgsrk", p.astype(v.dtype), v).astype(jnp.float32)
        state = (new, total * shrink + p.sum(-1), out * shrink[..., None] + pv)
        return (state, jax.tree.map(lambda x: jax.lax.ppermute(x, "cp", ring), travelling)), None

    empty = jnp.zeros_like(queries[..., 0], jnp.float32)
    start = (empty + HIDDEN, empty, jnp.zeros_like(queries, jnp.float32))
    ((_, total, out), _), _ = jax.lax.scan(
        piece, (start, (k, v, mask.kv_index, mask.kv_segments)), None, length=n
    )
    out = out / jnp.where(total == 0, 1.0, total)[..., None]
    return out.transpose(0, 2, 1, 3, 4).reshape(q.shape).astype(q.dtype)
