"""Parameters laid out for decoding: read once a step, in the order in which the rows kernel takes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from min_llm.kernels import rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A `Leaf` (nn/leaves.py). panels [layers, …]: as `rows.pack` lays out the matrix of each; shape: of the parameter
    of one layer; layer: the one that is multiplied."""

    panels: Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    layer: Any = 0

    def of_layer(self, layer: Any) -> Packed:
        """See `leaves.Whole`."""
        return dataclasses.replace(self, layer=layer)

    def product(self, x: Float[Array, "n k"]) -> Float[Array, "n m"]:
        return self.products(x, [self])[0]

    @staticmethod
    def products(x: Float[Array, "n k"], several: Sequence[Packed]) -> list[Float[Array, "n m"]]:
        """See `leaves.Together`."""
        columns = [math.prod(w.shape) // x.shape[1] for w in several]
        return rows.multiply(x, [w.panels for w in several], several[0].layer, columns)

    def gated(self, x: Float[Array, "n d"], up: Packed, down: Packed) -> Float[Array, "n d"]:
        """See `gated.Gating`."""
        return rows.gated(x, self.panels, up.panels, down.panels, self.layer, self.shape[1])


def pack(w: Array, dtype: DTypeLike, contracted: int = 1) -> Packed:
    """A parameter [layers, …] whose first `contracted` dimensions (of one layer) meet the activations, in float32 or
    bfloat16."""
    shape = w.shape[1:]

    def one(layer: Array) -> Array:
        return rows.pack(layer.reshape(math.prod(shape[:contracted]), -1), dtype)

    return Packed(jax.jit(lambda w: jax.lax.map(one, w))(w), shape)
