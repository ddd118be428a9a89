"""Attention in cuDNN's FlashAttention kernels, on NVIDIA cards from Ampere on.

They know the causal order and skip what is to the right of the diagonal; every other rule (documents, windows, a
prefix, places that are given) is drawn as a matrix of zeros and large negative numbers, [B, S, T] in the compute
dtype and the same for all heads and layers. What they cannot do goes to `xla`: float32, odd lengths, one query at a
time, head dimensions that are no multiple of 8. On a mesh every device calls them for its part (nn/context.py). Where
the drawn mask would take more than `LARGEST_MASK` bytes, `blockwise` attends, whose memory does not grow with S x T.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array, Float

from min_llm import platform
from min_llm.kernels.attention import blockwise, xla
from min_llm.kernels.mask import Mask

LARGEST_MASK = 2**32  # bytes


def attention(
    q: Float[Array, "b s h k"], k: Float[Array, "b t g k"], v: Float[Array, "b t g k"], mask: Mask
) -> Float[Array, "b s h k"]:
    """Grouped-query attention; see the package docstring for shapes."""
    if not supported(q, k):
        return xla.attention(q, k, v, mask)
    s, t = q.shape[1], k.shape[1]
    causal = mask.in_order and mask.causal and s == t
    if not says_all(causal, mask) and 2 * q.shape[0] * s * t > LARGEST_MASK:
        return blockwise.attention(q, k, v, mask)
    visible = None if says_all(causal, mask) else mask.visible(slice(0, s), slice(0, t))
    visible = None if visible is None else visible[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=visible, is_causal=causal, implementation="cudnn")


def says_all(causal: bool, mask: Mask) -> bool:
    """Whether the causal order, where cuDNN is told of it, is the mask's only rule."""
    return causal and mask.window is None and (mask.q_segments is None or mask.kv_segments is None)


def supported(q: Array, k: Array) -> bool:
    """Whether cuDNN can do it, here."""
    (_, s, _, d), t = q.shape, k.shape[1]
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and d % 8 == 0 and d <= 128
    fits = fits and s > 1 and s % 2 == t % 2 == 0
    return fits and not axes_in_sight() and available()


def axes_in_sight() -> bool:
    """Whether arrays here may be spread over devices: on a mesh, outside what runs as one device sees it."""
    kinds = jax.sharding.get_abstract_mesh().axis_types
    return any(kind != AxisType.Manual for kind in kinds)


def available() -> bool:
    """Whether this process computes, or compiles, for an NVIDIA card of Ampere's generation or later, with cuDNN."""
    return platform.backend() == "gpu" if platform.elsewhere() else _here()


@functools.cache
def _here() -> bool:
    if jax.default_backend() != "gpu":
        return False
    try:
        from jax._src.lib import cuda_versions  # what jax.nn.dot_product_attention asks as well
    except ImportError:
        return False
    capability = getattr(jax.local_devices()[0], "compute_capability", "0")
    return cuda_versions is not None and float(capability) >= 8.0
