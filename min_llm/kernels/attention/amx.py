"""Attention in AMX tiles on CPUs that have them (kernels/cpu/attention.cc): FlashAttention, forward and backward.

What the kernel does not do goes to `xla`: float32, head dimensions that are no multiple of 32, indices that are given
(decoding with a cache), prefix masks, and every machine without the kernel.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from min_llm.kernels import cpu
from min_llm.kernels.attention import xla
from min_llm.kernels.mask import Mask


def attention(
    q: Float[Array, "b s h k"], k: Float[Array, "b t g k"], v: Float[Array, "b t g k"], mask: Mask
) -> Float[Array, "b s h k"]:
    """Grouped-query attention; see the package docstring for shapes."""
    if not supported(q, mask):
        return xla.attention(q, k, v, mask)
    return _attend(
        q, k, v, _rows(mask.q_segments, q), _rows(mask.kv_segments, k), mask.causal, mask.window or 0
    )


def _rows(segments: Array | None, x: Array) -> Array:
    """Segments of every row of the batch; of no size where there are none."""
    if segments is None:
        return jnp.zeros((0, 0), jnp.int32)
    return jnp.broadcast_to(segments, x.shape[:2]).astype(jnp.int32)


def supported(q: Array, mask: Mask) -> bool:
    """Whether the kernel can do it, here."""
    one_sided = (mask.q_segments is None) != (
        mask.kv_segments is None
    )  # segments count only when both are given
    fits = q.dtype == jnp.bfloat16 and q.shape[-1] % 32 == 0 and mask.in_order and not one_sided
    return fits and cpu.takes_over()


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(
    q: Array, k: Array, v: Array, q_segments: Array, kv_segments: Array, causal: bool, window: int
) -> Array:
    return _forward(q, k, v, q_segments, kv_segments, causal, window)[0]


def _forward(
    q: Array, k: Array, v: Array, q_segments: Array, kv_segments: Array, causal: bool, window: int
) -> tuple[Array, tuple]:
    b, s, h, _ = q.shape
    shapes = (jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((b, h, s), jnp.float32))
    call = jax.ffi.ffi_call("min_llm_attention", shapes, vmap_method="sequential")
    operands = (q, k, v, q_segments, kv_segments)
    out, lse = call(*operands, causal=causal, window=np.int64(window))
    return out, (*operands, out, lse)


def _backward(causal: bool, window: int, saved: tuple, d_out: Array) -> tuple:
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in saved[:3])
    call = jax.ffi.ffi_call("min_llm_attention_gradient", shapes, vmap_method="sequential")
    dq, dk, dv = call(*saved, d_out, causal=causal, window=np.int64(window))
    return dq, dk, dv, None, None


_attend.defvjp(_forward, _backward)
