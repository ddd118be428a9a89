"""The product of a few rows with a matrix that was packed once: decoding, and prefill in pieces.

Y = X · W for X [n, k] with n from 1 (one sequence decoding) to some hundreds. `pack` lays W out in panels of 32 columns
in the order in which the kernel reads it; bfloat16 and int8 matrices as tiles of AMX, with pairs or fours of
neighbouring k side by side.

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
from jaxtyping import Array, Float, Int, Int8

from min_llm.config import UserError
from min_llm.kernels import cpu

PANEL = 32  # columns
SIDE = {"bfloat16": 2, "int8": 4}  # k that lie side by side, in 32 bits; 16 times as many are a step
DTYPES = ("float32", *SIDE)


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


def multiply_int8(
    x: Float[Array, "n k"],
    matrices: Sequence[Int8[Array, "layers panels steps 2048"]],
    scales: Sequence[Float[Array, "layers panels 32"]],
    layer: Int[Array, ""] | int,
    columns: Sequence[int],
) -> list[Float[Array, "n m"]]:
    """The same with matrices in int8 and a scale for each of their columns. Every row of x is rounded to int8 with a
    scale of its own, products are summed in int32, and the sums multiplied by both scales in float32. Only where the
    kernels run."""
    return _rows(x, layer, [*matrices, *scales], columns)


def _rows(
    x: Array, layer: Int[Array, ""] | int, operands: Sequence[Array], columns: Sequence[int]
) -> list[Array]:
    out = [jax.ShapeDtypeStruct((x.shape[0], m), x.dtype) for m in columns]
    call = jax.ffi.ffi_call("min_llm_rows", out, vmap_method="sequential")
    return list(call(x, jnp.int32(layer), *operands))


def gated(
    x: Float[Array, "n d"], gate: Array, up: Array, down: Array, layer: Int[Array, ""] | int, hidden: int
) -> Float[Array, "n d"]:
    """(silu(x · gate) ∘ x · up) · down in x's dtype, for packed stacks of one dtype as in `multiply`; what lies between
    the products is rounded to x's dtype once."""
    if cpu.available():
        call = jax.ffi.ffi_call("min_llm_gated", _like(x), vmap_method="sequential")
        return call(x, gate, up, down, jnp.int32(layer), hidden=np.int64(hidden))
    g, u = (y.astype(jnp.float32) for y in multiply(x, (gate, up), layer, (hidden, hidden)))
    return multiply((jax.nn.silu(g) * u).astype(x.dtype), (down,), layer, (x.shape[1],))[0]


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def gated_int8(
    x: Float[Array, "n d"],
    matrices: Sequence[Int8[Array, "layers panels steps 2048"]],
    scales: Sequence[Float[Array, "layers panels 32"]],
    layer: Int[Array, ""] | int,
    hidden: int,
) -> Float[Array, "n d"]:
    """`gated` with the products of `multiply_int8`; matrices and scales of gate, up and down. Only where the kernels
    run."""
    call = jax.ffi.ffi_call("min_llm_gated_int8", _like(x), vmap_method="sequential")
    return call(x, *matrices, *scales, jnp.int32(layer), hidden=np.int64(hidden))
