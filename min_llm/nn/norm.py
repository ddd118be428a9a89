"""RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016), statistics in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "... d"], scale: Float[Array, " d"], eps: float) -> Float[Array, "... d"]:
    """x / sqrt(mean(x²) + eps) · scale."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt((x32 * x32).mean(-1, keepdims=True) + eps) * scale).astype(x.dtype)


def layer_norm(
    x: Float[Array, "... d"], scale: Float[Array, " d"], bias: Float[Array, " d"] | None, eps: float
) -> Float[Array, "... d"]:
    """(x − mean) / sqrt(var + eps) · scale + bias."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps) * scale
    return (normed if bias is None else normed + bias).astype(x.dtype)
