"""The feed-forward network of Llama: SwiGLU (Shazeer 2020)."""

from __future__ import annotations

from typing import Any, Protocol, Self, runtime_checkable

from jaxtyping import Array, Float

from min_llm.nn.activations import swiglu
from min_llm.nn.leaves import dot


@runtime_checkable
class Gating(Protocol):
    """A `leaves.Leaf` that makes the whole network in one call, as the gate of two others of its type."""

    def gated(self, x: Float[Array, "n d"], up: Self, down: Self) -> Float[Array, "n d"]: ...


def gated(x: Float[Array, "b s d"], gate: Any, up: Any, down: Any) -> Float[Array, "b s d"]:
    """(silu(x · gate) ∘ x · up) · down, for gate and up [d, f] and down [f, d]."""
    if isinstance(gate, Gating) and type(gate) is type(up) is type(down):
        return gate.gated(x.reshape(-1, x.shape[-1]), up, down).reshape(x.shape)
    hidden = swiglu(dot("bsd,df->bsf", x, gate), dot("bsd,df->bsf", x, up))
    return dot("bsf,fd->bsd", hidden, down, "batch", "residual", "features")
