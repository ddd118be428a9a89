"""Llama 3 in NumPy: logits, loss and every gradient by hand. The Llama 3 Herd of Models (arXiv 2407.21783).

The model is a column of vectors x, one a token, through which two kinds of blocks write in turn:

    x = embed[token]
    x = x + Attention(RMSNorm(x))        tokens exchange what they know
    x = x + MLP(RMSNorm(x))              each token thinks for itself        (both, n_layers times)
    logits = RMSNorm(x) head

Each block has a forward that also returns what its backward will ask for (`saved`), and a backward that takes
the gradient of its output and gives the gradient of its input and of its weights. As every block is x + f(x),
its backward is dx = dy + (gradient through f): the gradient has a straight way down.

`params` is the tree of `shapes(cfg)`, plain or stacked (params.py); `batch` is as in batch.py; `cfg` is any
object with the attributes read here. Axes: see the package docstring.
"""

from __future__ import annotations

import numpy as np

from min_llm.reference.attention import attend, attend_backward, build_mask
from min_llm.reference.layers import (
    einsum,
    einsum_backward,
    gelu,
    gelu_backward,
    linear,
    linear_backward,
    rms_norm,
    rms_norm_backward,
    rope,
    rope_frequencies,
    rope_growth,
    silu,
    silu_backward,
)
from min_llm.reference.outside import outside

QUERY, KEY, OUT = "bsd,dhk->bshk", "bsd,dgk->bsgk", "bshk,hkd->bsd"
UP, DOWN, HEAD = "bsd,df->bsf", "bsf,fd->bsd", "bsd,dv->bsv"


def shapes(cfg):
    """The parameter tree, with shapes for leaves. `head` is absent when it is embed^T."""
    d, h, g, k = cfg.dim, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    f, v = cfg.hidden_dim, cfg.vocab_size
    layer = {"attn_norm": (d,), "wq": (d, h, k), "wk": (d, g, k), "wv": (d, g, k), "wo": (h, k, d)}
    if getattr(cfg, "qkv_bias", False):
        layer |= {"bq": (h, k), "bk": (g, k), "bv": (g, k)}
    if getattr(cfg, "qk_norm", False):
        layer |= {"q_norm": (k,), "k_norm": (k,)}
    layer |= {"mlp_norm": (d,)}
    if getattr(cfg, "gated", True):
        layer |= {"w_gate": (d, f)}
    layer |= {"w_up": (d, f), "w_down": (f, d)}
    tree = {"embed": (v, d), "layers": [dict(layer) for _ in range(cfg.n_layers)], "final_norm": (d,)}
    return tree if cfg.tie_embeddings else {**tree, "head": (d, v)}


# The model --------------------------------------------------------------------------------------------------


def forward(params, cfg, batch, past=None):
    """Logits, the KV cache (a (k, v) pair of [B,T,G,K] for each layer), and what backward needs.

    `past` is the cache of the places before the batch's; the cache returned covers both.
    """
    angles = batch.positions[..., None] * rope_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
    mask = visible(cfg, batch, past)
    x, cache, saved = params["embed"][batch.tokens], [], []
    for i, layer in enumerate(params["layers"]):
        x, saved_attention = attention_block(x, layer, cfg, angles, mask, past and past[i])
        x, saved_mlp = mlp_block(x, layer, cfg)
        cache.append(saved_attention[3:5])
        saved.append((saved_attention, saved_mlp))
    h = rms_norm(x, params["final_norm"], cfg.norm_eps)
    return einsum(HEAD, h, head(params)), cache, (angles, mask, saved, x, h)


def backward(dlogits, params, cfg, batch, saved):
    """The gradient of every parameter, given that of the logits: `forward` read from the bottom up."""
    angles, mask, saved_layers, x, h = saved
    dh, dhead = einsum_backward(HEAD, dlogits, h, head(params))
    dx, dfinal_norm = rms_norm_backward(dh, x, params["final_norm"], cfg.norm_eps)
    dlayers: list[dict] = []
    for layer, (saved_attention, saved_mlp) in zip(params["layers"][::-1], saved_layers[::-1], strict=True):
        dx, dmlp = mlp_block_backward(dx, saved_mlp, layer, cfg)
        dx, dattention = attention_block_backward(dx, saved_attention, layer, cfg, angles, mask)
        dlayers.insert(0, {**dattention, **dmlp})
    dembed = np.zeros_like(params["embed"])
    np.add.at(dembed, batch.tokens, dx)  # a token's row collects from every place where the token stands
    grads = {"embed": dembed, "layers": dlayers, "final_norm": dfinal_norm}
    if "head" in params:
        return {**grads, "head": dhead}
    return {**grads, "embed": dembed + dhead.T}  # tied: the two uses of one matrix add up


def head(params):
    return params["head"] if "head" in params else params["embed"].T


def visible(cfg, batch, past=None):
    """Causal, inside one document (3.2), inside the window if any. Keys: those cached, then the batch's."""
    if past is None:
        return build_mask(batch.index, batch.segment_ids, window=cfg.window)
    n_keys = past[0][0].shape[1] + batch.tokens.shape[1]
    return build_mask(batch.index, key_index=np.arange(n_keys)[None], window=cfg.window)


# x + Attention(RMSNorm(x)): grouped queries (sec. 3.2), RoPE on q and k -------------------------------------


def attention_block(x, p, cfg, angles, mask, past=None):
    h = rms_norm(x, p["attn_norm"], cfg.norm_eps)
    growth = rope_growth(cfg.rope_scaling)
    plain = linear(QUERY, h, p, "wq", "bq"), linear(KEY, h, p, "wk", "bk")  # biases: Qwen2 alone
    q = rope(head_norm(plain[0], p, "q_norm", cfg), angles, growth)
    k = rope(head_norm(plain[1], p, "k_norm", cfg), angles, growth)
    v = linear(KEY, h, p, "wv", "bv")
    if past is not None:  # decoding: earlier keys and values are read, not computed again
        k, v = (np.concatenate(pair, axis=1) for pair in zip(past, (k, v), strict=True))
    o = attend(q, k, v, mask)
    return x + einsum(OUT, o, p["wo"]), (x, h, q, k, v, o, plain)


def attention_block_backward(dy, saved, p, cfg, angles, mask):
    x, h, q, k, v, o, plain = saved
    do, dwo = einsum_backward(OUT, dy, o, p["wo"])
    dq, dk, dv = attend_backward(do, q, k, v, mask)
    growth = rope_growth(cfg.rope_scaling)
    dq, dq_norm = head_norm_backward(rope(dq, -angles, growth), plain[0], p, "q_norm", cfg)
    dk, dk_norm = head_norm_backward(rope(dk, -angles, growth), plain[1], p, "k_norm", cfg)
    dh_q, dquery = linear_backward(QUERY, dq, h, p, "wq", "bq")
    dh_k, dkey = linear_backward(KEY, dk, h, p, "wk", "bk")
    dh_v, dvalue = linear_backward(KEY, dv, h, p, "wv", "bv")
    dx, dnorm = rms_norm_backward(dh_q + dh_k + dh_v, x, p["attn_norm"], cfg.norm_eps)
    return dy + dx, {"attn_norm": dnorm, **dquery, **dkey, **dvalue, **dq_norm, **dk_norm, "wo": dwo}


def head_norm(x, p, name, cfg):
    """RMSNorm over the K of each head where the model has it, one scale for all heads: Qwen3 alone (arXiv 2505.09388,
    sec. 2). Queries and keys then have one length, and no score can outgrow the product of their scales."""
    return rms_norm(x, p[name], cfg.norm_eps) if name in p else x


def head_norm_backward(dy, x, p, name, cfg):
    if name not in p:
        return dy, {}
    dx, dscale = rms_norm_backward(dy, x, p[name], cfg.norm_eps)
    return dx, {name: dscale}


# x + MLP(RMSNorm(x)): SwiGLU, down(silu(gate) * up). Shazeer 2020 (arXiv 2002.05202), eq. 6 -----------------
# Without a gate it is GPT-2's down(gelu(up)).


def mlp_block(x, p, cfg):
    h = rms_norm(x, p["mlp_norm"], cfg.norm_eps)
    up = einsum(UP, h, p["w_up"])
    if "w_gate" not in p:
        return x + einsum(DOWN, gelu(up), p["w_down"]), (x, h, None, up)
    gate = einsum(UP, h, p["w_gate"])
    return x + einsum(DOWN, silu(gate) * up, p["w_down"]), (x, h, gate, up)


def mlp_block_backward(dy, saved, p, cfg):
    x, h, gate, up = saved
    if gate is None:
        dgelu, ddown = einsum_backward(DOWN, dy, gelu(up), p["w_down"])
        dh, dup = einsum_backward(UP, gelu_backward(dgelu, up), h, p["w_up"])
        dx, dnorm = rms_norm_backward(dh, x, p["mlp_norm"], cfg.norm_eps)
        return dy + dx, {"mlp_norm": dnorm, "w_up": dup, "w_down": ddown}
    dproduct, ddown = einsum_backward(DOWN, dy, silu(gate) * up, p["w_down"])
    dh_gate, dgate = einsum_backward(UP, silu_backward(dproduct * up, gate), h, p["w_gate"])
    dh_up, dup = einsum_backward(UP, dproduct * silu(gate), h, p["w_up"])
    dx, dnorm = rms_norm_backward(dh_gate + dh_up, x, p["mlp_norm"], cfg.norm_eps)
    return dy + dx, {"mlp_norm": dnorm, "w_gate": dgate, "w_up": dup, "w_down": ddown}


logits, loss, loss_and_grads = outside(forward, backward)
