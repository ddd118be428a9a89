"""Which tokens may be drawn: min_p, typical_p, top_k and top_p, in that order, each on what the one before left.

Each keeps the tokens within some distance. No vocabulary is sorted: the distance is found by bisection.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_INFINITY = 0x7F800000  # its bits in float32


def kept(
    logits: Float[Array, "r v"],
    min_p: Float[Array, " r"],
    typical_p: Float[Array, " r"],
    top_k: Int[Array, " r"],
    top_p: Float[Array, " r"],
) -> Float[Array, "r v"]:
    """Logits, of which the largest is 0, with minus infinity for the tokens that the filters of their row leave out.

    0 for min_p and top_k and 1 for the other two filter nothing; a filter that no row uses costs nothing.
    """
    # p >= min_p · (the largest p); Nguyen et al. 2024
    logits = jnp.where(logits >= jnp.log(min_p)[:, None], logits, -jnp.inf)
    logits = _filtered(typical_p < 1, _typical, logits, typical_p)
    logits = _filtered(top_k > 0, _likeliest, logits, top_k.astype(jnp.float32))
    return _filtered(top_p < 1, _nucleus, logits, top_p)


def _filtered(
    used: Bool[Array, " r"],
    keep: Callable[[Array, Array], Bool[Array, "r v"]],
    logits: Float[Array, "r v"],
    argument: Float[Array, " r"],
) -> Float[Array, "r v"]:
    """Minus infinity where a row uses a filter and the filter does not keep the token."""
    some = lambda: jnp.where(used[:, None] & ~keep(logits, argument), -jnp.inf, logits)
    return jax.lax.cond(used.any(), some, lambda: logits)


def _likeliest(logits: Float[Array, "r v"], k: Float[Array, " r"]) -> Bool[Array, "r v"]:
    """The k likeliest tokens, and those that are as likely as the k-th."""
    return _nearest(-logits, jnp.ones_like(logits), k)


def _nucleus(logits: Float[Array, "r v"], top_p: Float[Array, " r"]) -> Bool[Array, "r v"]:
    """The fewest likeliest tokens whose probabilities reach top_p, with the one that crosses it and those that are as
    likely as that one (Holtzman et al. 2019)."""
    weights = jnp.exp(logits)
    return _nearest(-logits, weights, top_p * weights.sum(-1))


def _typical(logits: Float[Array, "r v"], typical_p: Float[Array, " r"]) -> Bool[Array, "r v"]:
    """The tokens whose surprise −log p is nearest to its mean, the entropy, the fewest whose probabilities reach
    typical_p (Meister et al. 2022)."""
    weights = jnp.exp(logits)
    total = weights.sum(-1, keepdims=True)
    # −log p = log total − logit, and the first term is part of its mean too
    mean = jnp.where(weights > 0, weights * logits, 0).sum(-1, keepdims=True) / total
    return _nearest(jnp.abs(logits - mean), weights, typical_p * total[:, 0])


def _nearest(
    distance: Float[Array, "r v"], weights: Float[Array, "r v"], target: Float[Array, " r"]
) -> Bool[Array, "r v"]:
    """The tokens of the smallest distances (0 to infinity) that weigh the target together; all, where they weigh less.

    The bits of a float32 that is not negative, read as an integer, are in the order of the floats: 31 halvings of
    the integers up to infinity's find the smallest distance within which the weights reach the target, exactly.
    """
    target = jnp.maximum(target, jnp.finfo(jnp.float32).tiny)  # at least one token

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low >> 1)
        enough = jnp.where(distance <= _float(middle), weights, 0).sum(-1) >= target
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    low = jnp.zeros(target.shape, jnp.int32)
    _, reach = jax.lax.fori_loop(0, 31, halve, (low, jnp.full_like(low, _INFINITY)))
    return distance <= _float(reach)


def _float(bits: Int[Array, " r"]) -> Float[Array, "r 1"]:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)[:, None]
