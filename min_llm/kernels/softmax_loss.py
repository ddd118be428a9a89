"""The loss of given logits together with its gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from min_llm.kernels import cpu


def loss_and_gradient(
    logits: Float[Array, "n v"], targets: Int[Array, " n"], weights: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, "n v"]]:
    """−log softmax(logits)[target] of every row, float32, and the gradient weight · (softmax(logits) − one-hot) in the
    logits' dtype. In our kernel (`cpu`) the gradient takes the logits' place in memory."""
    if logits.dtype == jnp.bfloat16 and cpu.available():
        call = jax.ffi.ffi_call(
            "min_llm_cross_entropy",
            [
                jax.ShapeDtypeStruct(targets.shape, jnp.float32),
                jax.ShapeDtypeStruct(logits.shape, logits.dtype),
            ],
            input_output_aliases={0: 1},
            vmap_method="sequential",
        )
        nll, gradient = call(logits, targets.astype(jnp.int32), weights.astype(jnp.float32))
        return nll, gradient
    wide = logits.astype(jnp.float32)
    lse = jax.nn.logsumexp(wide, axis=-1)
    hit = targets[:, None] == jnp.arange(logits.shape[1])
    gradient = (jnp.exp(wide - lse[:, None]) - hit) * weights[:, None]
    return lse - pick(logits, targets), gradient.astype(logits.dtype)


def pick(logits: Float[Array, "n v"], targets: Int[Array, " n"]) -> Float[Array, " n"]:
    """logits[i, targets[i]], float32."""
    return jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0].astype(jnp.float32)
