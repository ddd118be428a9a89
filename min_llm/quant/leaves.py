"""Quantized parameters: a `Leaf` (nn/leaves.py) for each scheme.

Matrices lie [out, in], as in other programs' files, which is also how XLA's int8 product reads them best. On CPUs only
the products of int8 with int8 are faster than float32; the other schemes save memory and cost time, unless they are
packed: w8a8 and int4 have kernels, which the engine takes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm import platform
from min_llm.kernels import rows as kernel
from min_llm.kernels.product import multiply, native
from min_llm.quant import rounding

FP8_BOUND = 1200.0  # Llama 3 section 6.2: of the largest magnitude of a row of activations, not of its scale


@dataclasses.dataclass(frozen=True)
class Quantized:
    """values, scales: of one layer [out, …]; stacked, [layers, out, …]. shape: of the parameter of one layer."""

    values: Array
    scales: Float[Array, "*layers m g"]
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    method: ClassVar[str]

    @classmethod
    def of(cls, w: Float[Array, "*layers m k"], shape: tuple[int, ...]) -> Self:
        raise NotImplementedError

    def matrix(self) -> Float[Array, "*layers m k"]:
        """What the values stand for, float32."""
        return self.values.astype(jnp.float32) * self.scales

    def product(self, x: Float[Array, "n k"]) -> Float[Array, "n m"]:
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightsInt8(Quantized):
    """values int8 [out, in], scales [out, 1]; activations stay as they are. The integers are exact in every dtype that
    activations have, so that nothing more is lost in the product."""

    method = "int8"

    @classmethod
    def of(cls, w: Float[Array, "*layers m k"], shape: tuple[int, ...]) -> Self:
        return cls(*rounding.int8_rows(w), shape)

    def product(self, x: Float[Array, "n k"]) -> Float[Array, "n m"]:
        return (multiply(x, self.values.astype(x.dtype), tw=True) * self.scales[:, 0]).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DynamicInt8(Quantized):
    """values int8 [out, in], scales [out, 1]; activations are rounded to int8 as they come, a scale a row. Sums of
    integers are exact: a row's result has the same bits whatever rows stand beside it."""

    method = "w8a8"

    @classmethod
    def of(cls, w: Float[Array, "*layers m k"], shape: tuple[int, ...]) -> Self:
        return cls(*rounding.int8_rows(w), shape)

    def product(self, x: Float[Array, "n k"]) -> Float[Array, "n m"]:
        n = x.shape[0]
        if n == 1:  # XLA's CPU backend has a slow loop for one row: 50 times as long as for two
            x = jnp.broadcast_to(x, (2, x.shape[1]))
        rows, scales = rounding.int8_rows(x)
        sums = jax.lax.dot_general(
            rows, self.values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
        )
        return (sums.astype(jnp.float32) * scales * self.scales[:, 0]).astype(x.dtype)[:n]

    def packed(self) -> PackedInt8:
        """For decoding. One without layers becomes a stack of one."""
        m = self.values.shape[-2]
        values = self.values.reshape(-1, *self.values.shape[-2:])
        scales = jnp.pad(self.scales.reshape(-1, m), ((0, 0), (0, -m % kernel.PANEL)))
        pack = jax.jit(lambda w: jax.lax.map(lambda one: kernel.pack(one.T, "int8"), w))
        return PackedInt8(pack(values), scales.reshape(len(values), -1, kernel.PANEL), self.shape)


@dataclasses.dataclass(frozen=True)
class PackedQuantized:
    """A quantized parameter of all layers as the rows kernel reads it (nn/packed.py)."""

    panels: Array
    scales: Float[Array, "layers panels ..."]
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    layer: Any = 0

    def of_layer(self, layer: Any) -> Self:
        """See `leaves.Whole`."""
        return dataclasses.replace(self, layer=layer)

    def product(self, x: Float[Array, "n k"]) -> Float[Array, "n m"]:
        return self.products(x, [self])[0]

    @staticmethod
    def products(x: Float[Array, "n k"], several: Sequence[PackedQuantized]) -> list[Float[Array, "n m"]]:
        """See `leaves.Together`."""
        columns = [math.prod(w.shape) // x.shape[1] for w in several]
        matrices, scales = [w.panels for w in several], [w.scales for w in several]
        return kernel.multiply_quantized(x, matrices, scales, several[0].layer, columns)

    def gated(self, x: Float[Array, "n d"], up: Self, down: Self) -> Float[Array, "n d"]:
        """See `gated.Gating`."""
        parts = (self, up, down)
        matrices, scales = [p.panels for p in parts], [p.scales for p in parts]
        return kernel.gated_quantized(x, matrices, scales, self.layer, self.shape[1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedInt8(PackedQuantized):
    """`DynamicInt8`, with the same products, bit for bit."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedInt4(PackedQuantized):
    """`GroupsInt4`, its values rounded to bfloat16."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupsInt4(Quantized):
    """values uint8 [out, bytes] of two nibbles each, scales [out, groups]; made into a matrix again for every
    product."""

    method = "int4"

    @classmethod
    def of(
        cls, w: Float[Array, "*layers m k"], shape: tuple[int, ...], size: int = 32, bits: int = 4
    ) -> Self:
        return cls(*rounding.int4_groups(w, size, bits), shape)

    @property
    def group(self) -> int:
        """Values that share a scale."""
        return 2 * self.values.shape[-1] // self.scales.shape[-1]

    def matrix(self) -> Float[Array, "*layers m padded"]:
        """With the zeros that fill the last group."""
        values = rounding.unpacked(self.values).astype(jnp.float32)
        groups = values.reshape(*self.scales.shape, -1) * self.scales[..., None]
        return groups.reshape(values.shape)

    def product(self, x: Float[Array, "n k"]) -> Float[Array, "n m"]:
        return multiply(x, self.matrix()[:, : x.shape[1]].astype(x.dtype), tw=True)

    def packed(self) -> PackedInt4:
        """For decoding in bfloat16. One without layers becomes a stack of one."""

        def pack(one: tuple[Array, Array]) -> tuple[Array, Array]:
            values, scales = one
            steps = self.group // 32
            return kernel.pack_int4(rounding.unpacked(values).T, jnp.repeat(scales, steps, axis=-1).T)

        values = self.values.reshape(-1, *self.values.shape[-2:])
        panels, scales = jax.jit(lambda w: jax.lax.map(pack, w))(
            (values, self.scales.reshape(-1, *self.scales.shape[-2:]))
        )
        return PackedInt4(panels, scales, self.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowsFp8(Quantized):
    """values e4m3fn [out, in], scales [out, 1]; activations are rounded to e4m3fn as they come, a scale a row with the
    bound of Llama 3 section 6.2."""

    method = "fp8"

    @classmethod
    def of(cls, w: Float[Array, "*layers m k"], shape: tuple[int, ...]) -> Self:
        return cls(*rounding.fp8_rows(w), shape)

    def product(self, x: Float[Array, "n k"]) -> Float[Array, "n m"]:
        rows, scales = rounding.fp8_rows(x, FP8_BOUND)
        sums = _fp8_product(rows, self.values)
        return (sums * scales * self.scales[:, 0]).astype(x.dtype)


def _fp8_product(x: Float[Array, "n k"], w: Float[Array, "m k"]) -> Float[Array, "n m"]:
    """x · wᵀ of e4m3fn, summed in float32. CPUs have no such product; every value is exact in bfloat16 and so are the
    products of two in float32."""
    if platform.backend() != "cpu":
        return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    (n, k), m = x.shape, w.shape[0]
    wide = jnp.bfloat16 if native(jnp.dtype(jnp.bfloat16), n, k, m) else jnp.float32
    return multiply(x.astype(wide), w.astype(wide), tw=True, dtype=jnp.float32)


METHODS = {kind.method: kind for kind in (WeightsInt8, DynamicInt8, GroupsInt4, RowsFp8)}
