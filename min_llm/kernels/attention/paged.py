"""Attention over a paged cache (vLLM: Kwon et al. 2023): a sequence's keys lie in pages of a pool that all share.

    paged_attention(q [T, H, D], keys, values [L, P, page, G, D], layer, tables [R, max_pages], row, index [T], window,
                    singles) -> [T, H, D] in q's dtype

Token t belongs to sequence row[t], whose page i is tables[row[t], i]. It sees that sequence's keys at the places
0 … index[t], with a window the last `window` of them; its own key is in the pool already. index -1 is padding: the
result is zeros, and nothing is read for it. The pools are float32, bfloat16 or `Int8`; what they hold where it is seen
must be finite. layer and window may be traced. Query head h reads key-value head h // (H / G); scores are scaled by
1 / sqrt(D), and the softmax is in float32.

The first `singles` tokens are decoding, each in any sequence. The others come in blocks of BLOCK consecutive ones,
the tokens of a block in one sequence (padding among them has its row too), so that a block reads each key once.

`reference` gathers everything, `xla` a page at a time, `cpu` reads the pool where it lies. With `cpu` the bits of a
token's result do not depend on the other tokens, on whether it comes alone or in a block, or on where.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from jaxtyping import Int8 as IntegerArray

from min_llm.kernels import cpu as native

BLOCK = 16
DTYPES = ("float32", "bfloat16")
HIDDEN = -1e30  # finite, so that exp(HIDDEN - max) is 0 and no NaN can arise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A pool of numbers that are values · scales, with a scale for each head of each token, as llama.cpp and vLLM keep
    them: who writes a token needs to know no other. Keys and values of a token take head_dim + 4 bytes a head."""

    values: IntegerArray[Array, "l p page g d"]
    scales: Float[Array, "l p page g"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


Pool = Float[Array, "l p page g d"] | Int8


class PagedAttention(Protocol):
    def __call__(
        self,
        q: Float[Array, "t h d"],
        keys: Pool,
        values: Pool,
        layer: Int[Array, ""],
        tables: Int[Array, "r max_pages"],
        row: Int[Array, " t"],
        index: Int[Array, " t"],
        window: int | Int[Array, ""] | None,
        singles: int,
    ) -> Float[Array, "t h d"]: ...


def best() -> PagedAttention:
    """The fastest implementation on this machine."""
    return cpu if native.available() else xla


def cpu(
    q: Array, keys: Pool, values: Pool, layer: Array, tables: Array, row: Array, index: Array,
    window: int | Array | None, singles: int,
) -> Array:  # fmt: skip
    """In our kernel (kernels/cpu/paged.cc)."""
    if (q.shape[0] - singles) % BLOCK:
        raise ValueError(f"{q.shape[0]} tokens are not {singles} and blocks of {BLOCK}")
    for x in (q, keys, values):
        if not isinstance(x, Int8) and x.dtype not in DTYPES:
            raise ValueError(f"attention over pages takes {' or '.join(DTYPES)}, not {x.dtype}")
    given = (layer, tables, row, index, 0 if window is None else window)
    integers = (jnp.asarray(x, jnp.int32) for x in given)
    call = jax.ffi.ffi_call("min_llm_paged", jax.ShapeDtypeStruct(q.shape, q.dtype))
    none = jnp.zeros((0,), jnp.float32)
    pools = [(p.values, p.scales) if isinstance(p, Int8) else (p, none) for p in (keys, values)]
    (keys, key_scales), (values, value_scales) = pools
    return call(q, keys, values, key_scales, value_scales, *integers, singles=np.int64(singles))


def reference(
    q: Array, keys: Pool, values: Pool, layer: Array, tables: Array, row: Array, index: Array,
    window: int | Array | None, singles: int,
) -> Array:  # fmt: skip
    """As the paper of attention writes it, for every token by itself; [T, max_pages · page, G, D] floats."""
    (t, h, d), (page, g) = q.shape, keys.shape[2:4]
    k, v = (_read(x, layer, tables[row]).reshape(t, -1, g, d) for x in (keys, values))
    scores = jnp.einsum("tgrd,tpgd->tgrp", q.reshape(t, g, h // g, d).astype(jnp.float32), k) / math.sqrt(d)
    visible = _visible(jnp.arange(tables.shape[1] * page), index, window)
    v = jnp.where(visible[..., None, None], v, 0)  # what a token does not see may be anything
    visible = visible[:, None, None]
    p = jax.nn.softmax(jnp.where(visible, scores, HIDDEN), axis=-1, where=visible)
    return jnp.einsum("tgrp,tpgd->tgrd", p, v).reshape(q.shape).astype(q.dtype)


def xla(
    q: Array, keys: Pool, values: Pool, layer: Array, tables: Array, row: Array, index: Array,
    window: int | Array | None, singles: int,
) -> Array:  # fmt: skip
    """A page at a time, as many as the longest sequence has, with an online softmax (Milakov and Gimelshein 2018)."""
    parts = []
    for tokens, block in ((slice(0, singles), 1), (slice(singles, None), BLOCK)):
        some = q[tokens].reshape(-1, block, *q.shape[1:])
        if some.size:
            pages, places = tables[row[tokens][::block]], index[tokens].reshape(-1, block)
            parts.append(_page_by_page(some, keys, values, layer, pages, places, window))
    return jnp.concatenate([part.reshape(-1, *q.shape[1:]) for part in parts])


def _page_by_page(
    q: Float[Array, "b s h d"],
    keys: Pool,
    values: Pool,
    layer: Array,
    pages: Int[Array, "b max_pages"],
    index: Int[Array, ...],
    window: int | Array | None,
) -> Float[Array, "b s h d"]:
    (b, s, h, d), (page, g) = q.shape, keys.shape[2:4]
    q_bsgrd = (q.astype(jnp.float32) / math.sqrt(d)).reshape(b, s, g, h // g, d)

    def step(i: Array, carry: tuple) -> tuple:
        m, total, out = carry
        k, v = (_read(x, layer, pages[:, i]) for x in (keys, values))  # [b, page, g, d]
        visible = _visible(i * page + jnp.arange(page), index, window)  # [b, s, page]
        v = jnp.where(visible.any(1)[..., None, None], v, 0)  # what nobody sees may be anything
        visible = visible[:, :, None, None]
        scores = jnp.where(visible, jnp.einsum("bsgrd,bpgd->bsgrp", q_bsgrd, k), HIDDEN)
        m_new = jnp.maximum(m, scores.max(-1))
        p = jnp.where(visible, jnp.exp(scores - m_new[..., None]), 0.0)
        shrink = jnp.exp(m - m_new)
        pv = jnp.einsum("bsgrp,bpgd->bsgrd", p, v)
        return m_new, total * shrink + p.sum(-1), out * shrink[..., None] + pv

    first = jnp.int32(0)
    if window is not None:
        first = jnp.maximum(jnp.where(index < 0, jnp.iinfo(jnp.int32).max, index - window + 1).min(), 0)
    empty = jnp.zeros(q_bsgrd.shape[:-1], jnp.float32)
    start = (empty + HIDDEN, empty, jnp.zeros_like(q_bsgrd))
    _, total, out = jax.lax.fori_loop(first // page, index.max() // page + 1, step, start)
    return (out / jnp.where(total == 0, 1, total)[..., None]).reshape(q.shape).astype(q.dtype)


def _read(pool: Pool, layer: Array, pages: Int[Array, "*b"]) -> Float[Array, "*b page g d"]:
    """Whole pages in float32."""
    if isinstance(pool, Int8):
        return pool.values[layer, pages].astype(jnp.float32) * pool.scales[layer, pages][..., None]
    return pool[layer, pages].astype(jnp.float32)


def _visible(places: Int[Array, " k"], index: Int[Array, ...], window: int | Array | None) -> Array:
    """Which places each query sees: [..., k]."""
    before = index[..., None] - places
    return (before >= 0) if window is None else (before >= 0) & (before < window)
