"""What every oracle offers to the outside, from its `forward` and `backward`."""

from __future__ import annotations

import numpy as np

from min_llm.reference.batch import complete
from min_llm.reference.layers import cross_entropy, cross_entropy_backward
from min_llm.reference.params import restack, unstack


def outside(forward, backward):
    """The functions logits, loss and loss_and_grads of a model; `dtype` is what they compute in."""

    def logits(params, cfg, batch, dtype=np.float64):
        """[B,S,V]."""
        return forward(unstack(params, dtype), cfg, complete(batch))[0]

    def loss(params, cfg, batch, dtype=np.float64):
        """Weighted mean negative log-likelihood of the targets, nats per token."""
        batch = complete(batch)
        return cross_entropy(logits(params, cfg, batch, dtype), batch.targets, batch.weights)

    def loss_and_grads(params, cfg, batch, dtype=np.float64):
        """The loss and its gradient, in a tree like `params`."""
        plain, batch = unstack(params, dtype), complete(batch)
        z, _, saved = forward(plain, cfg, batch)
        dz = cross_entropy_backward(z, batch.targets, batch.weights)
        grads = backward(dz, plain, cfg, batch, saved)
        return cross_entropy(z, batch.targets, batch.weights), restack(grads, like=params)

    return logits, loss, loss_and_grads
