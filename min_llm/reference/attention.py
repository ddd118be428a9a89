"""Attention: the mask, the softmax average it allows, the gradient, and the same in blocks.

Shapes: q [B,S,H,K], k and v [B,T,G,K], mask [B,S,T] of booleans. Query head h reads key/value head h // R,
R = H / G: R = 1 is multi-head attention, G = 1 multi-query attention (Shazeer 2019, arXiv 1911.02150), and
what lies between grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245). Keys and values are never
repeated: the R axis rides along in the einsum.
"""

from __future__ import annotations

import math

import numpy as np

from min_llm.reference.layers import einsum, einsum_backward, softmax, softmax_backward

SCORES = "bsgrk,btgk->bgrst"  # q . k for every pair of places
AVERAGE = "bgrst,btgk->bsgrk"  # probabilities times values


def build_mask(
    index,
    segment_ids=None,
    *,
    key_index=None,
    key_segment_ids=None,
    causal=True,
    window=None,
    prefix=None,
):
    """[B,S,T] of booleans: may the query at place s look at the key at place t?

    index [B,S]: place in the row (not the position that RoPE sees). Keys stand where the queries stand
    unless `key_index` [B,T] says otherwise (decoding: one query, many cached keys). A pair is visible when
    every rule that is given allows it:

    causal        no key is later than its query; `prefix` (an int or [B]) exempts the first `prefix` keys of
                  a row, which everyone sees (prefix language model: Raffel et al. 2019, 3.2.1)
    window        the key is less than `window` places behind its query: a causal query sees `window` keys,
                  its own among them (sliding window: Jiang et al. 2023, arXiv 2310.06825, sec. 2)
    segment_ids   [B,S], key and query are in the same document (Llama 3 Herd, 3.2). Padding is segment 0 and
                  so looks at padding only, which keeps every softmax non-empty
    """
    key_index = index if key_index is None else key_index
    query, key = index[:, :, None], key_index[:, None, :]
    mask = np.ones(np.broadcast_shapes(query.shape, key.shape), bool)
    if causal:
        early = False if prefix is None else key < np.reshape(prefix, (-1, 1, 1))
        mask &= (key <= query) | early
    if window is not None:
        mask &= query - key < window
    if segment_ids is not None:
        key_segment_ids = segment_ids if key_segment_ids is None else key_segment_ids
        mask &= segment_ids[:, :, None] == key_segment_ids[:, None, :]
    return mask


def probabilities(q, k, mask):
    """softmax(q k^T / sqrt(K)) over the visible keys, [B,G,R,S,T]. Vaswani et al. (arXiv 1706.03762), eq. 1.

    The root keeps the scores of unit-variance q and k at unit variance, whatever the width (3.2.1, note 4).
    """
    if not mask.any(axis=-1).all():
        raise ValueError("the mask leaves a query without a single key; let each place see at least itself")
    scores = einsum(SCORES, grouped(q, k), k) / math.sqrt(q.shape[-1])
    return softmax(np.where(mask[:, None, None], scores, -np.inf))


def grouped(q, k):
    """[B,S,H,K] -> [B,S,G,R,K]: the query heads, sorted by the key/value head they read."""
    return q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])


def attend(q, k, v, mask):
    """The average of the values under `probabilities`, [B,S,H,K]."""
    return einsum(AVERAGE, probabilities(q, k, mask), v).reshape(q.shape)


def attend_backward(do, q, k, v, mask):
    """dq, dk, dv. The probabilities are computed again, as FlashAttention does (Dao et al. 2022, sec. 3.1).

    Backwards through  o = p v,  p = softmax(s),  s = q k^T / sqrt(K). An invisible pair has p = 0, hence
    ds = 0: nothing flows through the mask. Summing over R in dk and dv collects the query heads of a group.
    """
    p = probabilities(q, k, mask)
    dp, dv = einsum_backward(AVERAGE, do.reshape(grouped(q, k).shape), p, v)
    ds = softmax_backward(dp, p) / math.sqrt(q.shape[-1])
    dq, dk = einsum_backward(SCORES, ds, grouped(q, k), k)
    return dq.reshape(q.shape), dk, dv


def attend_blockwise(q, k, v, mask, block):
    """`attend` without the [S,T] matrix: keys come `block` at a time, three running quantities stay.

    The online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867, alg. 3; FlashAttention, alg. 1). After
    some of the keys, each query has kept the largest score m, the sum of exp(score - m), and the same sum
    with each term times its value. A block with a larger maximum m' rescales both sums by exp(m - m'); their
    quotient at the end is the softmax average over all keys, exactly. (A kernel blocks the queries too.)
    """
    b, s, h, width = q.shape
    g = k.shape[2]
    top = np.full((b, g, h // g, s), -np.inf, q.dtype)  # m
    total = np.zeros_like(top)
    out = np.zeros((b, s, g, h // g, width), q.dtype)
    for start in range(0, k.shape[1], block):
        some = slice(start, start + block)
        scores = einsum(SCORES, grouped(q, k), k[:, some]) / math.sqrt(width)
        scores = np.where(mask[:, None, None, :, some], scores, -np.inf)
        new_top = np.maximum(top, scores.max(axis=-1))
        finite = np.where(np.isfinite(new_top), new_top, 0)  # no key seen yet: every exponential below is 0
        weight = np.exp(scores - finite[..., None])
        rescale = np.exp(top - finite)
        total = total * rescale + weight.sum(axis=-1)
        out = out * np.moveaxis(rescale, 3, 1)[..., None] + einsum(AVERAGE, weight, v[:, some])
        top = new_top
    return (out / np.moveaxis(total, 3, 1)[..., None]).reshape(q.shape)
