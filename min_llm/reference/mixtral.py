"""Mixtral in NumPy: Llama whose MLP is a mixture of experts. Mixtral of Experts (arXiv 2401.04088), section 2.1.

Here every expert thinks about every token, and the thoughts of those that were not chosen are multiplied by 0: the
same result as sending each token to its experts alone, which is what makes the model cheap and its code long.

The choice itself has no gradient: move the router a little, and the same experts are chosen.
"""

from __future__ import annotations

import numpy as np

from min_llm.reference import llama
from min_llm.reference.layers import (
    einsum,
    einsum_backward,
    rms_norm,
    rms_norm_backward,
    rope_frequencies,
    silu,
    silu_backward,
    softmax,
    softmax_backward,
)
from min_llm.reference.outside import outside

# N: experts, the first axis of their matrices
ROUTE, UP, DOWN, MIX = "bsd,dn->bsn", "bsd,ndf->bsnf", "bsnf,nfd->bsnd", "bsn,bsnd->bsd"


def shapes(cfg):
    """Llama's tree; the matrices of the MLP have an axis of experts in front, and there is a router."""
    tree, n = llama.shapes(cfg), cfg.n_experts
    for layer in tree["layers"]:
        layer |= {name: (n, *layer[name]) for name in ("w_gate", "w_up", "w_down")} | {"router": (cfg.dim, n)}
    return tree


# The model: llama.py with another block ---------------------------------------------------------------------


def forward(params, cfg, batch, past=None):
    """Logits, the KV cache (a (k, v) pair of [B,T,G,K] for each layer), and what backward needs."""
    angles = batch.positions[..., None] * rope_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
    mask = llama.visible(cfg, batch, past)
    x, cache, saved = params["embed"][batch.tokens], [], []
    for i, layer in enumerate(params["layers"]):
        x, saved_attention = llama.attention_block(x, layer, cfg, angles, mask, past and past[i])
        x, saved_moe = moe_block(x, layer, cfg)
        cache.append(saved_attention[3:5])
        saved.append((saved_attention, saved_moe))
    h = rms_norm(x, params["final_norm"], cfg.norm_eps)
    return einsum(llama.HEAD, h, llama.head(params)), cache, (angles, mask, saved, x, h)


def backward(dlogits, params, cfg, batch, saved):
    """The gradient of every parameter, given that of the logits."""
    angles, mask, saved_layers, x, h = saved
    dh, dhead = einsum_backward(llama.HEAD, dlogits, h, llama.head(params))
    dx, dfinal_norm = rms_norm_backward(dh, x, params["final_norm"], cfg.norm_eps)
    dlayers: list[dict] = []
    for layer, (saved_attention, saved_moe) in zip(params["layers"][::-1], saved_layers[::-1], strict=True):
        dx, dmoe = moe_block_backward(dx, saved_moe, layer, cfg)
        dx, dattention = llama.attention_block_backward(dx, saved_attention, layer, cfg, angles, mask)
        dlayers.insert(0, {**dattention, **dmoe})
    dembed = np.zeros_like(params["embed"])
    np.add.at(dembed, batch.tokens, dx)
    grads = {"embed": dembed, "layers": dlayers, "final_norm": dfinal_norm}
    if "head" in params:
        return {**grads, "head": dhead}
    return {**grads, "embed": dembed + dhead.T}


# x + MoE(RMSNorm(x)): sum over the chosen of softmax(TopK(h W))_n SwiGLU_n(h), sec. 2.1 ---------------------


def route(scores, k):
    """[B,S,N]: the softmax over the k largest scores of each place, 0 for the others. Of equal ones the first."""
    chosen = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    kept = np.full_like(scores, -np.inf)
    np.put_along_axis(kept, chosen, np.take_along_axis(scores, chosen, axis=-1), axis=-1)
    return softmax(kept)


def moe_block(x, p, cfg):
    h = rms_norm(x, p["mlp_norm"], cfg.norm_eps)
    share = route(einsum(ROUTE, h, p["router"]), cfg.experts_per_token)
    gate, up = einsum(UP, h, p["w_gate"]), einsum(UP, h, p["w_up"])
    out = einsum(DOWN, silu(gate) * up, p["w_down"])
    return x + einsum(MIX, share, out), (x, h, share, gate, up, out)


def moe_block_backward(dy, saved, p, cfg):
    x, h, share, gate, up, out = saved
    dshare, dout = einsum_backward(MIX, dy, share, out)
    dproduct, ddown = einsum_backward(DOWN, dout, silu(gate) * up, p["w_down"])
    dh_gate, dgate = einsum_backward(UP, silu_backward(dproduct * up, gate), h, p["w_gate"])
    dh_up, dup = einsum_backward(UP, dproduct * silu(gate), h, p["w_up"])
    # an expert that was not chosen has share 0, and so no gradient through the softmax
    dh_route, drouter = einsum_backward(ROUTE, softmax_backward(dshare, share), h, p["router"])
    dx, dnorm = rms_norm_backward(dh_gate + dh_up + dh_route, x, p["mlp_norm"], cfg.norm_eps)
    return dy + dx, {"mlp_norm": dnorm, "router": drouter, "w_gate": dgate, "w_up": dup, "w_down": ddown}


logits, loss, loss_and_grads = outside(forward, backward)
