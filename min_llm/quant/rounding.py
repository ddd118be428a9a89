"""Rounding to 8 and 4 bits: what is kept of a matrix, and what one unit of it is worth.

Every scheme keeps 0 and has a scale a row, or a group of a row: x ≈ values · scales. Rows are cut off from each other,
so what an outlier costs is paid in its own row alone. Scales of 8 bits are made by a multiplication: XLA may compile a
division by a constant to either, with other bits in another program. So are the values of int8, which
kernels/cpu/rows.cc makes with the same bits.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, UInt8

SMALLEST = 1e-30  # largest magnitude that a row is taken to have at least, so that rows of zeros have a scale
FP8 = jnp.float8_e4m3fn
FP8_LARGEST = 448.0  # of e4m3fn, which has no infinity: what is larger becomes not-a-number
Try = tuple[Array, Array, Array]  # for a group of 4 bits: gain, end, scale


def int8_rows(x: Float[Array, "*b n k"]) -> tuple[Int8[Array, "*b n k"], Float[Array, "*b n 1"]]:
    """Values from -127 to 127 and float32 scales; each value within half a unit of x."""
    x = x.astype(jnp.float32)
    scales = jnp.maximum(jnp.abs(x).max(-1, keepdims=True), SMALLEST) * (1 / 127)
    return jnp.round(x * (1 / scales)).astype(jnp.int8), scales


def int4_groups(
    x: Float[Array, "*b n k"], size: int, bits: int = 4
) -> tuple[UInt8[Array, "*b n p"], Float[Array, "*b n g"]]:
    """Groups of `size` values of a row, the last one padded with zeros: nibbles of -8 to 7 in `packed` bytes, and
    float32 scales of either sign. bits: fewer than 4 use less of a nibble, from -2^(bits - 1) up.

    A group's largest magnitude falls near -8, the end of the range that has one value more; where exactly is tried out,
    and each try has the scale of least squares for its values. The one with the least squared error stays (llama.cpp's
    make_qx_quants with equal weights). Of normal numbers the error is 15 % less than with units of max / 7.5.
    """
    half = 1 << (bits - 1)
    x = jnp.pad(x.astype(jnp.float32), [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)])
    groups = x.reshape(*x.shape[:-1], -1, size)
    largest = jnp.take_along_axis(groups, jnp.abs(groups).argmax(-1, keepdims=True), -1)
    largest = jnp.where(largest == 0, SMALLEST, largest)
    parts = groups / largest  # from -1 to 1

    def values(end: Float[Array, "*b n g 1"]) -> Float[Array, "*b n g size"]:
        return jnp.clip(jnp.round(-end * parts), -half, half - 1)

    def tried(best: Try, end: Float[Array, ""]) -> tuple[Try, None]:
        q = values(end)
        product, square = (q * parts).sum(-1, keepdims=True), (q * q).sum(-1, keepdims=True)
        scale = product / jnp.maximum(square, 1)
        gain = product * scale  # by how much the squared error is less than that of zeros
        new = gain, jnp.full_like(gain, end), scale
        return jax.tree.map(functools.partial(jnp.where, gain > best[0]), new, best), None

    one = jnp.ones_like(largest)
    start = -one, half * one, jnp.nan * one  # a group that is not finite has no best
    (_, end, scale), _ = jax.lax.scan(tried, start, half + 0.1 * jnp.arange(-9.0, 10.0))
    return packed(values(end).astype(jnp.int8).reshape(x.shape)), (scale * largest)[..., 0]


def packed(values: Int8[Array, "*b n k"]) -> UInt8[Array, "*b n p"]:
    """Two values from -8 to 7 a byte, plus 8 each, the first in the lower half; four such bytes are what
    compressed-tensors calls a packed int32."""
    nibbles = (values + 8).astype(jnp.uint8)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpacked(packed: UInt8[Array, "*b n p"]) -> Int8[Array, "*b n k"]:
    """The inverse of `packed`."""
    nibbles = jnp.stack([packed & 15, packed >> 4], -1).astype(jnp.int8) - 8
    return nibbles.reshape(*packed.shape[:-1], -1)


def fp8_rows(
    x: Float[Array, "*b n k"], bound: float | None = None
) -> tuple[Float[Array, "*b n k"], Float[Array, "*b n 1"]]:
    """Values in e4m3fn and float32 scales. bound: the largest magnitude that a row is taken to have; what lies beyond
    it saturates, so that one huge value cannot push the rest of its row below the smallest number of the format."""
    x = x.astype(jnp.float32)
    largest = jnp.clip(jnp.abs(x).max(-1, keepdims=True), SMALLEST, bound)
    scales = largest * (1 / FP8_LARGEST)
    return jnp.clip(x / scales, -FP8_LARGEST, FP8_LARGEST).astype(FP8), scales
