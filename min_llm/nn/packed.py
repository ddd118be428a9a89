"""Parameters laid out for decoding: read once a step, in the order in which the kernel of `kernels/rows.py` takes them.

A program that slices one layer out of a stack copies it before it reads it, since a kernel takes whole buffers, and
decoding is all reading. `apart` cuts a stack into stacks of one layer, which needs no such copy.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from min_llm.kernels import rows

Layer = TypeVar("Layer")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A `Leaf` (nn/leaves.py). panels: as `rows.pack` lays out one layer's matrix; stacked, [layers, …] of them."""

    panels: Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def product(self, x: Float[Array, "n k"]) -> Float[Array, "n m"]:
        return rows.multiply(x, self.panels, math.prod(self.shape) // x.shape[1])


def pack(w: Array, dtype: DTypeLike, contracted: int = 1, stacked: bool = True) -> Packed:
    """A parameter whose first `contracted` dimensions (of one layer) meet the activations, in float32 or bfloat16;
    stacked: its layers lie on axis 0, and are packed one after the other."""
    shape = w.shape[1:] if stacked else w.shape

    def one(layer: Array) -> Array:
        return rows.pack(layer.reshape(math.prod(shape[:contracted]), -1), dtype)

    return Packed(jax.jit(lambda w: jax.lax.map(one, w) if stacked else one(w))(w), shape)


def apart(stack: Layer, n: int) -> tuple[Layer, ...]:
    """A stack of n layers as n stacks of one, which `nn.layers.run_layers` takes as well."""
    cut = jax.jit(lambda stack: tuple(jax.tree.map(lambda x, i=i: x[i : i + 1], stack) for i in range(n)))
    return cut(stack)
