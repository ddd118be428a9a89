"""GPT-2 in NumPy: logits, loss and every gradient by hand. Radford et al. 2019, section 2.3.

Read llama.py first; this file is laid out the same, and the differences are five years of practice:

    GPT-2 (2019)                              Llama 3 (2024)
    LayerNorm: centred, scale and bias        RMSNorm: scale only
    a learned vector for each position        RoPE: a rotation of q and k
    every query head has its own k and v      query heads share 8 key/value heads
    MLP: down(gelu(up))                       SwiGLU: down(silu(gate) * up)
    biases on all projections                 none
    head is embed^T                           head is a matrix of its own

Biases may be absent from the parameters (nanoGPT's bias=False): then they are not added and have no gradient.
The batch's `positions` choose rows of the position table, so a packed document starts at position 0 again.
"""

from __future__ import annotations

import numpy as np

from min_llm.reference.attention import attend, attend_backward, build_mask
from min_llm.reference.layers import (
    einsum,
    einsum_backward,
    gelu,
    gelu_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
)
from min_llm.reference.outside import outside

PROJECT, OUT = "bsd,dhk->bshk", "bshk,hkd->bsd"
UP, DOWN, HEAD = "bsd,df->bsf", "bsf,fd->bsd", "bsd,vd->bsv"


def shapes(cfg):
    """The parameter tree, with shapes for leaves."""
    d, h, k, f = cfg.dim, cfg.n_heads, cfg.head_dim, cfg.hidden_dim
    layer = {"attn_norm_scale": (d,), "wq": (d, h, k), "wk": (d, h, k), "wv": (d, h, k), "wo": (h, k, d)}
    layer |= {"mlp_norm_scale": (d,), "w_up": (d, f), "w_down": (f, d)}
    tree = {"embed": (cfg.vocab_size, d), "positions": (cfg.max_seq_len, d), "final_norm_scale": (d,)}
    if cfg.bias:
        layer |= {"attn_norm_bias": (d,), "bq": (h, k), "bk": (h, k), "bv": (h, k), "bo": (d,)}
        layer |= {"mlp_norm_bias": (d,), "b_up": (f,), "b_down": (d,)}
        tree |= {"final_norm_bias": (d,)}
    return {**tree, "layers": [dict(layer) for _ in range(cfg.n_layers)]}


# The model --------------------------------------------------------------------------------------------------


def forward(params, cfg, batch, past=None):
    """Logits, the KV cache (a (k, v) pair of [B,T,H,K] for each layer), and what backward needs.

    `past` is the cache of the places before the batch's; the cache returned covers both.
    """
    last, rows = int(np.max(batch.positions)), len(params["positions"])
    if last >= rows:
        raise ValueError(f"position {last} has no row in a table of {rows}; give shorter documents")
    mask = visible(batch, past)
    x, cache, saved = params["embed"][batch.tokens] + params["positions"][batch.positions], [], []
    for i, layer in enumerate(params["layers"]):
        x, saved_attention = attention_block(x, layer, cfg, mask, past and past[i])
        x, saved_mlp = mlp_block(x, layer, cfg)
        cache.append(saved_attention[3:5])
        saved.append((saved_attention, saved_mlp))
    h = norm(x, params, "final_norm", cfg)
    return einsum(HEAD, h, params["embed"]), cache, (mask, saved, x, h)


def backward(dlogits, params, cfg, batch, saved):
    """The gradient of every parameter, given that of the logits: `forward` read from the bottom up."""
    mask, saved_layers, x, h = saved
    dh, dembed = einsum_backward(HEAD, dlogits, h, params["embed"])
    dx, dfinal_norm = norm_backward(dh, x, params, "final_norm", cfg)
    dlayers: list[dict] = []
    for layer, (saved_attention, saved_mlp) in zip(params["layers"][::-1], saved_layers[::-1], strict=True):
        dx, dmlp = mlp_block_backward(dx, saved_mlp, layer, cfg)
        dx, dattention = attention_block_backward(dx, saved_attention, layer, cfg, mask)
        dlayers.insert(0, {**dattention, **dmlp})
    dpositions = np.zeros_like(params["positions"])
    np.add.at(dembed, batch.tokens, dx)  # on top of what the embedding got as the head
    np.add.at(dpositions, batch.positions, dx)
    return {"embed": dembed, "positions": dpositions, "layers": dlayers, **dfinal_norm}


def visible(batch, past=None):
    """Causal, inside one document. Keys: those cached, then the batch's."""
    if past is None:
        return build_mask(batch.index, batch.segment_ids)
    n_keys = past[0][0].shape[1] + batch.tokens.shape[1]
    return build_mask(batch.index, key_index=np.arange(n_keys)[None])


# Parts with a bias that may be absent -----------------------------------------------------------------------


def norm(x, p, name, cfg):
    return layer_norm(x, p[f"{name}_scale"], p.get(f"{name}_bias"), cfg.norm_eps)


def norm_backward(dy, x, p, name, cfg):
    dx, dscale, dbias = layer_norm_backward(dy, x, p[f"{name}_scale"], cfg.norm_eps)
    return dx, {f"{name}_scale": dscale} | ({f"{name}_bias": dbias} if f"{name}_bias" in p else {})


# x + Attention(LayerNorm(x)) --------------------------------------------------------------------------------


def attention_block(x, p, cfg, mask, past=None):
    h = norm(x, p, "attn_norm", cfg)
    q = linear(PROJECT, h, p, "wq", "bq")
    k = linear(PROJECT, h, p, "wk", "bk")
    v = linear(PROJECT, h, p, "wv", "bv")
    if past is not None:  # decoding: earlier keys and values are read, not computed again
        k, v = (np.concatenate(pair, axis=1) for pair in zip(past, (k, v), strict=True))
    o = attend(q, k, v, mask)
    return x + linear(OUT, o, p, "wo", "bo"), (x, h, q, k, v, o)


def attention_block_backward(dy, saved, p, cfg, mask):
    x, h, q, k, v, o = saved
    do, dout = linear_backward(OUT, dy, o, p, "wo", "bo")
    dq, dk, dv = attend_backward(do, q, k, v, mask)
    dh_q, dquery = linear_backward(PROJECT, dq, h, p, "wq", "bq")
    dh_k, dkey = linear_backward(PROJECT, dk, h, p, "wk", "bk")
    dh_v, dvalue = linear_backward(PROJECT, dv, h, p, "wv", "bv")
    dx, dnorm = norm_backward(dh_q + dh_k + dh_v, x, p, "attn_norm", cfg)
    return dy + dx, {**dnorm, **dquery, **dkey, **dvalue, **dout}


# x + MLP(LayerNorm(x)), four times as wide inside -----------------------------------------------------------


def mlp_block(x, p, cfg):
    h = norm(x, p, "mlp_norm", cfg)
    up = linear(UP, h, p, "w_up", "b_up")
    return x + linear(DOWN, gelu(up), p, "w_down", "b_down"), (x, h, up)


def mlp_block_backward(dy, saved, p, cfg):
    x, h, up = saved
    dact, ddown = linear_backward(DOWN, dy, gelu(up), p, "w_down", "b_down")
    dh, dup = linear_backward(UP, gelu_backward(dact, up), h, p, "w_up", "b_up")
    dx, dnorm = norm_backward(dh, x, p, "mlp_norm", cfg)
    return dy + dx, {**dnorm, **dup, **ddown}


logits, loss, loss_and_grads = outside(forward, backward)
