"""AdamW, in one function."""

from __future__ import annotations

import math

import numpy as np

from min_llm.reference.params import leaves, tree_map


def adamw(
    params,
    grads,
    state,
    *,
    lr,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.1,
    decay=None,
    clip=1.0,
):
    """One step: the new parameters and the new state.

    Adam (Kingma & Ba 2014, arXiv 1412.6980, alg. 1) with decoupled weight decay (Loshchilov & Hutter 2017,
    arXiv 1711.05101, alg. 2), scaled by the learning rate as torch.optim.AdamW and optax.adamw do:

        g = g min(1, clip / |g|)             |g| is the norm over all parameters together (None: no clipping)
        m = b1 m + (1 - b1) g                the mean of recent gradients
        v = b2 v + (1 - b2) g^2              and of their squares
        p = p - lr (m' / (sqrt(v') + eps) + weight_decay p)

    Both means start at 0 and are too small by the factor 1 - b^t after t steps; m' and v' are m and v divided
    by it. `decay` is a tree like params of factors for the weight decay (usually 1 for matrices, 0 for norms
    and biases); None decays all. `state` is (t, m, v); None before the first step.
    """
    b1, b2 = betas
    zeros = tree_map(np.zeros_like, params)
    t, m, v = (0, zeros, zeros) if state is None else state
    t += 1
    norm = math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in leaves(grads)))
    if clip is not None and norm > clip:
        grads = tree_map(lambda g: g * (clip / norm), grads)
    m = tree_map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
    v = tree_map(lambda v, g: b2 * v + (1 - b2) * g * g, v, grads)

    def update(p, m, v, factor):
        direction = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        return p - lr * (direction + weight_decay * factor * p)

    decay = tree_map(lambda p: 1.0, params) if decay is None else decay
    return tree_map(update, params, m, v, decay), (t, m, v)
