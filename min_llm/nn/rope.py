"""Rotary position embedding (Su et al. 2021), with Llama 3.1's frequency scaling.

The half-split layout of Hugging Face checkpoints: dimension i is rotated with dimension i + K/2. Meta's own files
pair (2i, 2i + 1); `formats` permutes them on the way in.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from min_llm.kernels import elementwise


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's extension of the context window (llama-models `apply_scaling`; not in the paper): wavelengths
    longer than original_context / low_freq_factor are stretched by `factor`, those shorter than
    original_context / high_freq_factor are kept, those between are blended."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians per position of each rotated pair, [head_dim / 2] float64."""
    freq = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return freq
    turns = scaling.original_context * freq / (2 * math.pi)  # rotations over the original context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0, 1)
    return freq * (keep + (1 - keep) / scaling.factor)


def angles(
    positions: Int[Array, "b s"], head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Array, "b s half"], Float[Array, "b s half"]]:
    """cos and sin of the angle of every position and pair, float32."""
    angle = positions[..., None].astype(jnp.float32) * jnp.asarray(
        frequencies(head_dim, theta, scaling), jnp.float32
    )
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "b s h k"], cos: Float[Array, "b s half"], sin: Float[Array, "b s half"]
) -> Float[Array, "b s h k"]:
    """Turn each pair of dimensions by its angle; products of rotated q and k depend on i − j alone.

    (x₁, x₂) -> (x₁ cos − x₂ sin, x₂ cos + x₁ sin), written as x∘cos + swap(x)∘(−sin, sin): a swap of halves is an
    index in XLA's loop, where slices and a concatenation would each be a pass over memory.
    """
    if elementwise.fits(x):
        return elementwise.rotate(x, cos, sin)
    both = jnp.stack([cos, cos], axis=-2)[:, :, None]  # of both halves, for all heads: [b, s, 1, 2, half]
    signed = jnp.stack([-sin, sin], axis=-2)[:, :, None]
    halves = x.reshape(*x.shape[:-1], 2, -1).astype(jnp.float32)
    return (halves * both + jnp.flip(halves, axis=-2) * signed).reshape(x.shape).astype(x.dtype)
