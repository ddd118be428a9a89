"""Attention in memory linear in the sequence: online softmax over blocks of keys (FlashAttention, Dao et al. 2022).

While blocks of keys stream past, each query keeps a running maximum m, a running sum l = Σ exp(s − m) and a running
output o; a new block with larger maximum m' rescales both by exp(m − m'). Nothing of size S x T is ever stored: the
backward pass keeps only the log-sum-exp and computes the scores of each block again (algorithm 4 there).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm import platform
from min_llm.kernels.mask import Mask

KEY_BLOCK = 128
HIDDEN = -1e30


def attention(
    q: Float[Array, "b s h k"], k: Float[Array, "b t g k"], v: Float[Array, "b t g k"], mask: Mask
) -> Float[Array, "b s h k"]:
    """Grouped-query attention; see the package docstring for shapes. The last block of keys is padded."""
    (b, s, h, d), (t, g) = q.shape, k.shape[1:3]
    block = min(KEY_BLOCK, t)
    pad = -t % block
    k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (k, v))
    q_bgsrk = q.reshape(b, s, g, h // g, d).transpose(0, 2, 1, 3, 4)
    # blocks lead, for the scan: [n, b, g, block, k]
    k_blocks, v_blocks = (x.reshape(b, -1, block, g, d).transpose(1, 0, 3, 2, 4) for x in (k, v))
    out = _online(q_bgsrk, k_blocks, v_blocks, _explicit(mask, s, t), t)
    return out.transpose(0, 2, 1, 3, 4).reshape(b, s, h, d)


def _explicit(mask: Mask, s: int, t: int) -> Mask:
    """The mask with indices written out and the key side padded and cut into blocks [n, b, block]."""
    q_index = jnp.arange(s)[None] if mask.q_index is None else mask.q_index
    kv_index = jnp.arange(t)[None] if mask.kv_index is None else mask.kv_index
    return dataclasses.replace(
        mask, q_index=q_index, kv_index=_cut(kv_index, t), kv_segments=_cut(mask.kv_segments, t)
    )


def _cut(x: Array | None, t: int) -> Array | None:
    if x is None:
        return None
    block = min(KEY_BLOCK, t)
    x = jnp.pad(x, ((0, 0), (0, -t % block)))
    return x.reshape(x.shape[0], -1, block).transpose(1, 0, 2)


def _scores(
    q: Array, k: Array, mask: Mask, kv_index: Array, kv_segments: Array | None, place: Array
) -> Array:
    """Masked float32 scores of one block: [b, g, s, r, block]. place [block] < 0 marks padding."""
    scores = jnp.einsum("bgsrk,bgtk->bgsrt", q, k, preferred_element_type=platform.emit_dtype(q.dtype))
    scores = scores.astype(jnp.float32) * (1 / math.sqrt(q.shape[-1]))
    part = dataclasses.replace(mask, kv_index=kv_index, kv_segments=kv_segments)
    visible = part.visible(slice(0, q.shape[2]), slice(0, k.shape[2]))
    real = (place >= 0)[None, None, :]
    visible = real if visible is None else visible & real
    return jnp.where(visible[:, None, :, None, :], scores, HIDDEN)


def _places(n: int, block: int, t: int) -> Array:
    place = jnp.arange(n * block)
    return jnp.where(place < t, place, -1).reshape(n, block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _online(q: Array, k: Array, v: Array, mask: Mask, t: int) -> Array:
    return _forward(q, k, v, mask, t)[0]


def _forward(q: Array, k: Array, v: Array, mask: Mask, t: int) -> tuple[Array, tuple]:
    """q [b,g,s,r,k], k and v [n,b,g,block,k]."""

    def step(carry: tuple, xs: tuple) -> tuple:
        m, total, out = carry
        k_i, v_i, kv_index, kv_segments, place = xs
        scores = _scores(q, k_i, mask, kv_index, kv_segments, place)
        m_new = jnp.maximum(m, scores.max(-1))
        # mask again: where a query has seen nothing yet, HIDDEN - m_new is 0 and its exp would count
        p = jnp.where(scores > HIDDEN / 2, jnp.exp(scores - m_new[..., None]), 0.0)
        shrink = jnp.exp(m - m_new)
        pv = jnp.einsum("bgsrt,bgtk->bgsrk", p.astype(v_i.dtype), v_i)
        return (m_new, total * shrink + p.sum(-1), out * shrink[..., None] + pv.astype(jnp.float32)), None

    # derived from q so that the carry has q's sharding on a mesh
    empty = jnp.zeros_like(q[..., 0], jnp.float32)
    start = (empty + HIDDEN, empty, jnp.zeros_like(q, jnp.float32))
    blocks = (k, v, mask.kv_index, mask.kv_segments, _places(k.shape[0], k.shape[3], t))
    (m, total, out), _ = jax.lax.scan(step, start, blocks)
    total = jnp.where(total == 0, 1.0, total)
    out = (out / total[..., None]).astype(q.dtype)
    return out, (q, k, v, mask, out, m + jnp.log(total))


def _backward(t: int, saved: tuple, d_out: Array) -> tuple:
    q, k, v, mask, out, lse = saved
    scale = 1 / math.sqrt(q.shape[-1])
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)

    def step(dq: Array, xs: tuple) -> tuple[Array, tuple[Array, Array]]:
        k_i, v_i, kv_index, kv_segments, place = xs
        scores = _scores(q, k_i, mask, kv_index, kv_segments, place)
        p = jnp.where(scores > HIDDEN / 2, jnp.exp(scores - lse[..., None]), 0.0)
        dv = jnp.einsum("bgsrt,bgsrk->bgtk", p.astype(q.dtype), d_out)
        dp = jnp.einsum("bgsrk,bgtk->bgsrt", d_out, v_i).astype(jnp.float32)
        ds = (p * (dp - delta[..., None]) * scale).astype(q.dtype)
        dk = jnp.einsum("bgsrt,bgsrk->bgtk", ds, q)
        return dq + jnp.einsum("bgsrt,bgtk->bgsrk", ds, k_i).astype(jnp.float32), (dk, dv)

    blocks = (k, v, mask.kv_index, mask.kv_segments, _places(k.shape[0], k.shape[3], t))
    dq, (dk, dv) = jax.lax.scan(step, jnp.zeros_like(q, jnp.float32), blocks)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_online.defvjp(_forward, _backward)
