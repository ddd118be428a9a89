"""The gated activation of Llama's feed-forward layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm.kernels import elementwise


@jax.custom_vjp
def swiglu(gate: Float[Array, "... f"], up: Float[Array, "... f"]) -> Float[Array, "... f"]:
    """silu(gate) ∘ up (Shazeer 2020), in float32 inside: one rounding and one pass, forward and backward."""
    return _forward(gate, up)[0]


def _forward(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    if elementwise.fits(gate):
        return elementwise.swiglu(gate, up), (gate, up)
    g, u = gate.astype(jnp.float32), up.astype(jnp.float32)
    return (g * jax.nn.sigmoid(g) * u).astype(gate.dtype), (gate, up)


def _backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    gate, up = saved
    if elementwise.fits(gate):
        return elementwise.swiglu_gradient(gate, up, d_out)
    g, u, d = (x.astype(jnp.float32) for x in (gate, up, d_out))
    sigmoid = jax.nn.sigmoid(g)
    d_gate = d * u * sigmoid * (1 + g * (1 - sigmoid))
    return d_gate.astype(gate.dtype), (d * g * sigmoid).astype(up.dtype)


swiglu.defvjp(_forward, _backward)
