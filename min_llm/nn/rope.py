"""Rotary position embedding (Su et al. 2021), and three ways to stretch it over longer contexts.

The half-split layout of Hugging Face checkpoints: dimension i is rotated with dimension i + K/2. Meta's own files
pair (2i, 2i + 1); `formats` permutes them on the way in.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from min_llm.config import UserError
from min_llm.kernels import elementwise

OWN_FIELDS = {
    "llama3": ("original_context", "low_freq_factor", "high_freq_factor"),
    "linear": (),
    "yarn": ("original_context", "beta_fast", "beta_slow"),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How frequencies change so that a model reads `factor` times the context that it was trained on (L3-2.4b).

    llama3: Llama 3.1's rule (llama-models `apply_scaling`; not in the paper). Wavelengths longer than
        original_context / low_freq_factor are stretched by `factor`, those shorter than
        original_context / high_freq_factor are kept, those between are blended.
    linear: position interpolation (Chen et al. 2023, arXiv 2306.15595). All wavelengths are stretched by `factor`.
    yarn: NTK by parts (Peng et al. 2023, arXiv 2309.00071, section 3.2), as transformers and llama.cpp compute it.
        Pairs that turn more than beta_fast times over the original context are kept, those that turn less than
        beta_slow times are stretched, and those between are blended in proportion to their number. Queries and keys
        grow by `attention_factor`.

    Raises UserError for a setting that its kind does not have.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    kind: Literal["llama3", "linear", "yarn"] = "llama3"
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        if self.factor < 1 or self.original_context < 1:
            raise UserError(
                f"rope_scaling has factor {self.factor:g} and original_context {self.original_context}; both must be "
                "at least 1."
            )
        if self.low_freq_factor >= self.high_freq_factor or self.beta_slow >= self.beta_fast:
            raise UserError(
                "rope_scaling needs low_freq_factor below high_freq_factor and beta_slow below beta_fast."
            )
        for field in dataclasses.fields(self):
            own = field.name in ("factor", "kind", *OWN_FIELDS[self.kind])
            if not own and getattr(self, field.name) != field.default:
                raise UserError(f"rope_scaling of the kind {self.kind} has no {field.name}. Remove it.")

    @property
    def attention_factor(self) -> float:
        """What YaRN multiplies rotated queries and keys by: its square is 1 / t of the paper's equation 15."""
        return 0.1 * math.log(self.factor) + 1 if self.kind == "yarn" else 1.0


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians per position of each rotated pair, [head_dim / 2] float64."""
    freq = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return freq
    keep = _kept(freq, head_dim, theta, scaling)
    return freq * (keep + (1 - keep) / scaling.factor)


def _kept(freq: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """How far each pair keeps its frequency: 1 entirely, 0 not at all (it is divided by the factor)."""
    if scaling.kind == "linear":
        return np.zeros_like(freq)
    if scaling.kind == "llama3":
        turns = scaling.original_context * freq / (2 * math.pi)  # rotations over the original context
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        return np.clip((turns - low) / (high - low), 0, 1)

    def pair(turns: float) -> float:
        """The (fractional) number of the pair that turns so often over the original context."""
        return head_dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair(scaling.beta_fast)), 0)
    last = min(math.ceil(pair(scaling.beta_slow)), head_dim - 1)
    return 1 - np.clip((np.arange(len(freq)) - first) / max(last - first, 0.001), 0, 1)


def angles(
    positions: Int[Array, "b s"], head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Array, "b s half"], Float[Array, "b s half"]]:
    """cos and sin of the angle of every position and pair, float32; times the attention factor of the scaling."""
    angle = positions[..., None].astype(jnp.float32) * jnp.asarray(
        frequencies(head_dim, theta, scaling), jnp.float32
    )
    grown = 1.0 if scaling is None else scaling.attention_factor
    return grown * jnp.cos(angle), grown * jnp.sin(angle)


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
