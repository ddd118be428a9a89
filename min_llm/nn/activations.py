"""The activations of the feed-forward layers: SwiGLU of Llama, GELU of GPT-2; in float32 inside."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm.kernels import elementwise


@jax.custom_vjp
def swiglu(gate: Float[Array, "... f"], up: Float[Array, "... f"]) -> Float[Array, "... f"]:
    """silu(gate) ∘ up (Shazeer 2020): one rounding and one pass, forward and backward."""
    return _swiglu_forward(gate, up)[0]


def _swiglu_forward(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    if elementwise.fits(gate):
        return elementwise.swiglu(gate, up), (gate, up)
    g, u = gate.astype(jnp.float32), up.astype(jnp.float32)
    return (g * jax.nn.sigmoid(g) * u).astype(gate.dtype), (gate, up)


def _swiglu_backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    gate, up = saved
    if elementwise.fits(gate):
        return elementwise.swiglu_gradient(gate, up, d_out)
    g, u, d = (x.astype(jnp.float32) for x in (gate, up, d_out))
    sigmoid = jax.nn.sigmoid(g)
    d_gate = d * u * sigmoid * (1 + g * (1 - sigmoid))
    return d_gate.astype(gate.dtype), (d * g * sigmoid).astype(up.dtype)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


@jax.custom_vjp
def gelu(x: Float[Array, "... f"]) -> Float[Array, "... f"]:
    """x/2 · (1 + tanh(sqrt(2/π) · (x + 0.044715 x³))) (Hendrycks & Gimpel 2016, the form GPT-2 uses). Keeps x alone for
    the backward pass."""
    return _gelu_forward(x)[0]


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    if elementwise.fits(x):
        return elementwise.gelu(x), x
    return _plain_gelu(x.astype(jnp.float32)).astype(x.dtype), x


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    if elementwise.fits(x):
        return (elementwise.gelu_gradient(x, dy),)
    return (jax.vjp(_plain_gelu, x.astype(jnp.float32))[1](dy.astype(jnp.float32))[0].astype(x.dtype),)


def _plain_gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


gelu.defvjp(_gelu_forward, _gelu_backward)
