"""Adapters for toy models, and the NumPy way to apply them."""

from __future__ import annotations

import dataclasses

import numpy as np

from min_llm import models
from min_llm.nn.lora import Adapter, is_adaptable


def matrices(cfg):
    """{name: (k, m)} of everything in a layer that can be adapted."""
    layer = vars(models.of(cfg).layer_spec(cfg))
    found = {name: p for name, p in layer.items() if p is not None and is_adaptable(p)}
    return {name: p.matrix for name, p in found.items()}


def adapter(cfg, seed=0, rank=3, targets=(), size=0.4, scale=2.0):
    """Random A and B for all matrices, or for some."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=(cfg.n_layers, *shape)).astype(np.float32) * size

    sizes = matrices(cfg)
    return Adapter({n: (draw(sizes[n][0], rank), draw(rank, sizes[n][1])) for n in targets or sizes}, scale)


def merged(params, adapter):
    """W + scale · A · B in NumPy; params: one stack of arrays."""
    (stack,) = params.layers
    made = {
        name: (w := np.asarray(getattr(stack, name))) + (adapter.scale * (a @ b)).reshape(w.shape)
        for name, (a, b) in adapter.pairs.items()
    }
    return dataclasses.replace(params, layers=(dataclasses.replace(stack, **made),))
