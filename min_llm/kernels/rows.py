"""The product of a few rows with a matrix that was packed once: decoding, and prefill in pieces.

Y = X · W for X [n, k] with n from 1 (one sequence decoding) to some hundreds. `pack` lays W out in panels of 32 columns
in the order in which the kernel reads it; bfloat16 and int8 matrices as tiles of AMX, with pairs or fours of
neighbouring k side by side, and `pack_int4` those of four bits. One call multiplies an X with several W, or is a whole
feed-forward network (`gated`).

The bits of a row of Y depend on that row of X and on W, and on nothing else: not on n, on the other rows, on where the
row stands, or on the number of threads. So a sequence decodes to the same tokens alone and in a batch, which products
that choose their order of summation by their size do not give (He et al., "Defeating nondeterminism in LLM
inference", 2025). That holds for the kernel; where it cannot run, XLA multiplies the unpacked matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Int8, UInt8

from min_llm.config import UserError
from min_llm.kernels import cpu

PANEL = 32  # columns
SIDE = {"bfloat16": 2, "int8": 4}  # k that lie side by side, in 32 bits; 16 times as many are a step
DTYPES = ("float32", *SIDE)
ACTIVATIONS = ("float32", "bfloat16")


def pack(w: Float[Array, "k m"], dtype: DTypeLike) -> Array:
    """w in panels of 32 columns, padded with zeros: float32 [panels, k, 32]; bfloat16 [panels, steps, 1024], a step of
    32 k being two tiles of 16 pairs of k x 16 columns x 2; int8 [panels, steps, 2048], a step of 64 k likewise with
    fours."""
    name = jnp.dtype(dtype).name
    if name not in DTYPES:
        raise UserError(f"Matrices are packed in {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, not in {name}.")
    k, m = w.shape
    w = w.astype(dtype)
    if w.dtype == jnp.float32:
        return jnp.pad(w, ((0, 0), (0, -m % PANEL))).reshape(k, -1, PANEL).transpose(1, 0, 2)
    step = 16 * SIDE[name]
    w = jnp.pad(w, ((0, -k % step), (0, -m % PANEL)))
    tiles = w.reshape(-(-k // step), 16, SIDE[name], -(-m // PANEL), 2, 16).transpose(3, 0, 4, 1, 5, 2)
    return tiles.reshape(*tiles.shape[:2], step * PANEL)


def pack_int4(
    values: Int8[Array, "k m"], scales: Float[Array, "g m"]
) -> tuple[UInt8[Array, "panels steps 512"], Float[Array, "panels steps 32"]]:
    """Values from -8 to 7 and the scales of their groups of 32 k, both padded with zeros.

    A step of 32 k is two tiles of 16 pairs of k, each 16 bytes: byte i holds the i % 2 of the pair and columns i // 2
    and, in the upper half, 8 + i // 2, as value + 8."""
    k, m = values.shape
    steps = -(-k // 32)
    values = jnp.pad(values, ((0, -k % 32), (0, -m % PANEL))).astype(jnp.uint8) + 8 & 15
    # [steps, pairs, 2, panels, tiles, upper, 8 columns]
    cut = values.reshape(steps, 16, 2, -1, 2, 2, 8).transpose(3, 0, 4, 1, 5, 6, 2)
    packed = (cut[:, :, :, :, 0] | cut[:, :, :, :, 1] << 4).reshape(cut.shape[0], steps, 512)
    scales = jnp.pad(scales[:steps], ((0, 0), (0, -m % PANEL)))
    return packed, scales.reshape(steps, -1, PANEL).transpose(1, 0, 2)


def unpack(packed: Array, k: int, m: int) -> Float[Array, "k m"]:
    """The matrix that was packed, in the dtype in which it was."""
    if packed.dtype == jnp.float32:
        return packed.transpose(1, 0, 2).reshape(k, -1)[:, :m]
    panels, steps, size = packed.shape
    tiles = packed.reshape(panels, steps, 2, 16, 16, -1).transpose(1, 3, 5, 0, 2, 4)
    return tiles.reshape(steps * size // PANEL, panels * PANEL)[:k, :m]


def multiply(
    x: Float[Array, "n k"], matrices: Sequence[Array], layer: Int[Array, ""] | int, columns: Sequence[int]
) -> list[Float[Array, "n m"]]:
    """x · w for each w, in x's dtype, float32 or bfloat16, accumulated in float32; x is rounded to bfloat16 where w is
    in it. columns: m of each.

    matrices: of all layers, one `pack` each, stacked on axis 0. The kernel reads the one of `layer` where it lies; a
    slice of the stack would be copied first, since a kernel takes whole buffers.
    """
    if cpu.available():
        return _rows(x, layer, matrices, columns)
    parts = [unpack(packed[layer], x.shape[1], m) for packed, m in zip(matrices, columns, strict=True)]
    return [jnp.dot(x.astype(w.dtype), w, preferred_element_type=jnp.float32).astype(x.dtype) for w in parts]


def multiply_quantized(
    x: Float[Array, "n k"],
    matrices: Sequence[Array],
    scales: Sequence[Array],
    layer: Int[Array, ""] | int,
    columns: Sequence[int],
) -> list[Float[Array, "n m"]]:
    """`multiply` where the kernels run, with matrices in int8 [layers, panels, steps, 2048] and a scale for each of
    their columns [layers, panels, 32], or in stacks of `pack_int4`.

    Of int8 every row of x is rounded to int8 with a scale of its own, products are summed in int32, and the sums
    multiplied by both scales in float32. Weights of four bits are made bfloat16 as they are read.
    """
    return _rows(x, layer, [*matrices, *scales], columns)


def _rows(
    x: Array, layer: Int[Array, ""] | int, operands: Sequence[Array], columns: Sequence[int]
) -> list[Array]:
    _check(x)
    out = [jax.ShapeDtypeStruct((x.shape[0], m), x.dtype) for m in columns]
    call = jax.ffi.ffi_call("min_llm_rows", out, vmap_method="sequential")
    return list(call(x, jnp.int32(layer), *operands))


def gated(
    x: Float[Array, "n d"], gate: Array, up: Array, down: Array, layer: Int[Array, ""] | int, hidden: int
) -> Float[Array, "n d"]:
    """(silu(x · gate) ∘ x · up) · down in x's dtype, for packed stacks of one dtype as in `multiply`; what lies between
    the products is rounded to x's dtype once."""
    if cpu.available():
        return _gated(x, layer, (gate, up, down), hidden)
    g, u = (y.astype(jnp.float32) for y in multiply(x, (gate, up), layer, (hidden, hidden)))
    return multiply((jax.nn.silu(g) * u).astype(x.dtype), (down,), layer, (x.shape[1],))[0]


def gated_quantized(
    x: Float[Array, "n d"],
    matrices: Sequence[Array],
    scales: Sequence[Array],
    layer: Int[Array, ""] | int,
    hidden: int,
) -> Float[Array, "n d"]:
    """`gated` with the products of `multiply_quantized`; matrices and scales of gate, up and down."""
    return _gated(x, layer, [*matrices, *scales], hidden)


def _gated(x: Array, layer: Int[Array, ""] | int, operands: Sequence[Array], hidden: int) -> Array:
    _check(x)
    call = jax.ffi.ffi_call("min_llm_gated", jax.ShapeDtypeStruct(x.shape, x.dtype), vmap_method="sequential")
    return call(x, jnp.int32(layer), *operands, hidden=np.int64(hidden))


def _check(x: Array) -> None:
    if x.dtype not in ACTIVATIONS:
        raise ValueError(f"activations are {' or '.join(ACTIVATIONS)}, not {x.dtype}")
