"""Dense attention for XLA with a hand-written backward pass.

The forward pass keeps W = exp(scores − max) in the compute dtype and divides the output, not the S x T weights, by
their sum l; the backward pass reads W once, with dO' = dO / l:

    dV = Wᵀ dO'       dP = dO' Vᵀ       dS = W ∘ (dP − δ) / √K,  δ_i = Σ_k dO'_ik O_ik       dQ = dS K,  dK = dSᵀ Q

(FlashAttention, Dao et al. 2022, appendix B.2, without recomputation), so that XLA makes few passes over the scores.
Queries go in blocks: a causal block reads no key to the right of it, which halves the work of long rows.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm import platform
from min_llm.kernels.mask import Mask

QUERY_BLOCK = 128
HIDDEN = -1e30  # finite, so that exp(HIDDEN - max) is 0 and no NaN can arise


def attention(
    q: Float[Array, "b s h k"], k: Float[Array, "b t g k"], v: Float[Array, "b t g k"], mask: Mask
) -> Float[Array, "b s h k"]:
    """Grouped-query attention; see the package docstring for shapes."""
    (b, s, h, d), g = q.shape, k.shape[2]
    q_bgsrk = q.reshape(b, s, g, h // g, d).transpose(0, 2, 1, 3, 4)
    out = _attend(q_bgsrk, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), mask)
    return out.transpose(0, 2, 1, 3, 4).reshape(b, s, h, d)


def query_blocks(s: int, t: int, mask: Mask) -> list[tuple[slice, slice]]:
    """Blocks of queries with the keys they can see."""
    if not (mask.in_order and mask.causal and s == t and s > QUERY_BLOCK):
        return [(slice(0, s), slice(0, t))]
    blocks = []
    for start in range(0, s, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, s)
        first = 0 if mask.window is None else max(0, start - mask.window + 1)
        blocks.append((slice(start, stop), slice(first, stop)))
    return blocks


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, mask: Mask) -> Array:
    return _forward(q, k, v, mask)[0]


def _forward(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, tuple]:
    """q [b,g,s,r,k], k and v [b,g,t,k] -> out [b,g,s,r,k]."""
    outs, saved = [], []
    for rows, keys in query_blocks(q.shape[2], k.shape[2], mask):
        out, kept = _forward_block(q[:, :, rows], k[:, :, keys], v[:, :, keys], mask.visible(rows, keys))
        outs.append(out)
        saved.append(kept)
    out = jnp.concatenate(outs, axis=2)
    return out, (q, k, v, mask, out, saved)


def _backward(saved: tuple, d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, mask, out, kept = saved
    t = k.shape[2]
    blocks = query_blocks(q.shape[2], t, mask)
    parts = []
    for (rows, keys), (weights, total) in zip(blocks, kept, strict=True):
        block = (q[:, :, rows], k[:, :, keys], v[:, :, keys])
        parts.append(_backward_block(*block, weights, total, out[:, :, rows], d_out[:, :, rows]))
    dq, dk, dv = zip(*parts, strict=True)
    places = [keys for _, keys in blocks]
    # the barrier keeps the pieces out of the loops of what comes next (rotary embedding), which they would slow down
    return *jax.lax.optimization_barrier(
        (jnp.concatenate(dq, axis=2), _sum(dk, places, t), _sum(dv, places, t))
    ), None


def _sum(parts: tuple[Array, ...], places: list[slice], t: int) -> Array:
    """Σ of parts [b, g, stop - start, k], each at its place among t keys, in float32."""
    cuts = sorted({edge for place in places for edge in (place.start, place.stop)})
    pieces = []
    for start, stop in itertools.pairwise(cuts):
        here = [
            part[:, :, start - place.start : stop - place.start].astype(jnp.float32)
            for part, place in zip(parts, places, strict=True)
            if place.start <= start and stop <= place.stop
        ]
        pieces.append(sum(here[1:], here[0]).astype(parts[0].dtype))
    return jnp.concatenate(pieces, axis=2)


def _forward_block(q: Array, k: Array, v: Array, visible: Array | None) -> tuple[Array, tuple[Array, Array]]:
    """The output of a block of queries, its weights W and their sums l."""
    emit = platform.emit_dtype(q.dtype)
    scores = jnp.einsum("bgsrk,bgtk->bgsrt", q, k, preferred_element_type=emit).astype(jnp.float32)
    if visible is not None:
        scores = jnp.where(visible[:, None, :, None, :], scores, HIDDEN)
    scores = (scores - scores.max(-1, keepdims=True)) * (1 / math.sqrt(q.shape[-1]))
    # the barrier makes the sum read the exponentials, where XLA would compute them a second time
    weights = jax.lax.optimization_barrier(jnp.exp(scores).astype(q.dtype))
    total = weights.astype(jnp.float32).sum(-1, keepdims=True)
    out = jnp.einsum("bgsrt,bgtk->bgsrk", weights, v, preferred_element_type=emit)
    out = (out.astype(jnp.float32) / total).astype(q.dtype)
    return out, (weights, total)


def _backward_block(
    q: Array, k: Array, v: Array, weights: Array, total: Array, out: Array, d_out: Array
) -> tuple[Array, Array, Array]:
    emit = platform.emit_dtype(q.dtype)
    scale = 1 / math.sqrt(q.shape[-1])
    d_out = d_out.astype(jnp.float32) / total
    delta = (d_out * out.astype(jnp.float32)).sum(-1, keepdims=True)
    d_out = d_out.astype(q.dtype)
    dv = jnp.einsum("bgsrt,bgsrk->bgtk", weights, d_out, preferred_element_type=emit)
    dp = jnp.einsum("bgsrk,bgtk->bgsrt", d_out, v, preferred_element_type=emit)
    ds = (weights.astype(jnp.float32) * (dp.astype(jnp.float32) - delta) * scale).astype(q.dtype)
    dq = jnp.einsum("bgsrt,bgtk->bgsrk", ds, k, preferred_element_type=emit)
    dk = jnp.einsum("bgsrt,bgsrk->bgtk", ds, q, preferred_element_type=emit)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


_attend.defvjp(_forward, _backward)
