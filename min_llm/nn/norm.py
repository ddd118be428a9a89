"""RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016), statistics in float32."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm.kernels import elementwise


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: Float[Array, "... d"], scale: Float[Array, " d"], eps: float) -> Float[Array, "... d"]:
    """x / sqrt(mean(x²) + eps) · scale. Keeps x and one number a row for the backward pass."""
    return _rms_forward(x, scale, eps)[0]


def _rms_forward(x: Array, scale: Array, eps: float) -> tuple[Array, tuple]:
    if elementwise.norm_fits(x):
        y, inverse = elementwise.rms_norm(x, scale, eps)
        return y, (x, scale, inverse)
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt((x32 * x32).mean(-1, keepdims=True) + eps)
    return (x32 * inverse * scale).astype(x.dtype), (x, scale, inverse)


def _rms_backward(eps: float, saved: tuple, dy: Array) -> tuple[Array, Array]:
    """With n = x · inverse:  dx = inverse · (dy·scale − n · mean(dy·scale·n)),  dscale = Σ dy · n."""
    x, scale, inverse = saved
    if elementwise.fits(x):
        dx, dscale = elementwise.rms_norm_gradient(x, scale, inverse, dy)
        return dx, dscale.astype(scale.dtype)
    dy, n = dy.astype(jnp.float32), x.astype(jnp.float32) * inverse
    d_n = dy * scale
    dx = inverse * (d_n - n * (d_n * n).mean(-1, keepdims=True))
    return dx.astype(x.dtype), (dy * n).sum(range(dy.ndim - 1)).astype(scale.dtype)


rms_norm.defvjp(_rms_forward, _rms_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "... d"], scale: Float[Array, " d"], bias: Float[Array, " d"] | None, eps: float
) -> Float[Array, "... d"]:
    """(x − mean) / sqrt(var + eps) · scale + bias. Keeps x and two numbers a row for the backward pass."""
    return _layer_forward(x, scale, bias, eps)[0]


def _layer_forward(x: Array, scale: Array, bias: Array | None, eps: float) -> tuple[Array, tuple]:
    if elementwise.norm_fits(x):
        shift = jnp.zeros_like(scale) if bias is None else bias
        y, mean, inverse = elementwise.layer_norm(x, scale, shift, eps)
        return y, (x, scale, bias, mean, inverse)
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    inverse = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
    normed = centred * inverse * scale
    return (normed if bias is None else normed + bias).astype(x.dtype), (x, scale, bias, mean, inverse)


def _layer_backward(eps: float, saved: tuple, dy: Array) -> tuple[Array, Array, Array | None]:
    """With n = (x − mean) · inverse, g = dy·scale:  dx = inverse · (g − mean(g) − n · mean(g·n)),  dscale = Σ dy · n,
    dbias = Σ dy."""
    x, scale, bias, mean, inverse = saved
    if elementwise.fits(x):
        dx, dscale, dbias = elementwise.layer_norm_gradient(x, scale, mean, inverse, dy)
    else:
        dy, n = dy.astype(jnp.float32), (x.astype(jnp.float32) - mean) * inverse
        g = dy * scale
        dx = inverse * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))
        places = tuple(range(dy.ndim - 1))
        dx, dscale, dbias = dx.astype(x.dtype), (dy * n).sum(places), dy.sum(places)
    return dx, dscale.astype(scale.dtype), None if bias is None else dbias.astype(bias.dtype)


layer_norm.defvjp(_layer_forward, _layer_backward)
