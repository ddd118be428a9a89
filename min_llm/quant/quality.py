"""What a changed model lost, on the same tokens as the one it was made of.

Perplexity alone hides much: errors that help one token and hurt another cancel in it, and it may even fall. The
divergence of the distributions cannot be negative at any token (llama.cpp compares quantizations by the same numbers).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Tokens(NamedTuple):
    """Of each predicted token. reference_nll, nll: −log p of what came, in nats. divergence: KL(reference || changed),
    in nats. same_top: both think the same token the likeliest. delta_p: how much likelier what came has become."""

    reference_nll: Float[Array, " n"]
    nll: Float[Array, " n"]
    divergence: Float[Array, " n"]
    same_top: Bool[Array, " n"]
    delta_p: Float[Array, " n"]


@jax.jit
def compare(
    reference: Float[Array, "n v"], changed: Float[Array, "n v"], targets: Int[Array, " n"]
) -> Tokens:
    """From the logits of both models and the tokens that came."""
    p, q = jax.nn.log_softmax(reference), jax.nn.log_softmax(changed)
    at = targets[:, None]
    log_p, log_q = jnp.take_along_axis(p, at, 1)[:, 0], jnp.take_along_axis(q, at, 1)[:, 0]
    return Tokens(
        -log_p,
        -log_q,
        (jnp.exp(p) * (p - q)).sum(-1),
        reference.argmax(-1) == changed.argmax(-1),
        jnp.exp(log_q) - jnp.exp(log_p),
    )


@dataclasses.dataclass(frozen=True)
class Quality:
    """ratio: of the perplexities, changed to reference. ratio_error: its standard error, from the differences token by
    token as if they were independent. Divergences in nats; same_top a share; rms_delta_p a probability."""

    reference_perplexity: float
    perplexity: float
    ratio: float
    ratio_error: float
    mean_divergence: float
    median_divergence: float
    divergence_99: float
    same_top: float
    rms_delta_p: float


def summary(tokens: Tokens) -> Quality:
    reference, nll, divergence, same, delta = (np.asarray(x, np.float64) for x in tokens)
    difference = nll - reference
    ratio = float(np.exp(difference.mean()))
    return Quality(
        reference_perplexity=float(np.exp(reference.mean())),
        perplexity=float(np.exp(nll.mean())),
        ratio=ratio,
        ratio_error=ratio * float(difference.std(ddof=1)) / len(difference) ** 0.5,
        mean_divergence=float(divergence.mean()),
        median_divergence=float(np.median(divergence)),
        divergence_99=float(np.quantile(divergence, 0.99)),
        same_top=float(same.mean()),
        rms_delta_p=float(np.sqrt((delta**2).mean())),
    )
