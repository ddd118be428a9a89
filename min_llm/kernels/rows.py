"""The product of a few rows with a matrix that was packed once: decoding, and prefill in pieces.

Y = X · W for X [n, k] with n from 1 (one sequence decoding) to some hundreds. `pack` lays W out in panels of 32 columns
in the order in which the kernel reads it; bfloat16 matrices as tiles of AMX, with pairs of neighbouring k side by side.

The bits of a row of Y depend on that row of X and on W, and on nothing else: not on n, on the other rows, on where the
row stands, or on the number of threads. So a sequence decodes to the same tokens alone and in a batch, which products
that choose their order of summation by their size do not give (He et al., "Defeating nondeterminism in LLM
inference", 2025). That holds for the kernel; where it cannot run, XLA multiplies the unpacked matrix.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from min_llm.config import UserError
from min_llm.kernels import cpu

PANEL = 32  # columns
STEP = 32  # k of a tile
DTYPES = ("float32", "bfloat16")


def pack(w: Float[Array, "k m"], dtype: DTypeLike) -> Array:
    """w in panels of 32 columns, padded with zeros: float32 [panels, k, 32]; bfloat16 [panels, steps, 1024], a step of
    32 k being two tiles of 16 pairs of k x 16 columns x 2."""
    if jnp.dtype(dtype).name not in DTYPES:
        raise UserError(f"Matrices are packed in {' or '.join(DTYPES)}, not in {jnp.dtype(dtype).name}.")
    k, m = w.shape
    w = w.astype(dtype)
    if w.dtype == jnp.float32:
        return jnp.pad(w, ((0, 0), (0, -m % PANEL))).reshape(k, -1, PANEL).transpose(1, 0, 2)
    w = jnp.pad(w, ((0, -k % STEP), (0, -m % PANEL)))
    tiles = w.reshape(-(-k // STEP), 16, 2, -(-m // PANEL), 2, 16).transpose(3, 0, 4, 1, 5, 2)
    return tiles.reshape(*tiles.shape[:2], STEP * PANEL)


def unpack(packed: Array, k: int, m: int) -> Float[Array, "k m"]:
    """The matrix that was packed, in the dtype in which it was."""
    if packed.dtype == jnp.float32:
        return packed.transpose(1, 0, 2).reshape(k, -1)[:, :m]
    panels, steps = packed.shape[:2]
    tiles = packed.reshape(panels, steps, 2, 16, 16, 2).transpose(1, 3, 5, 0, 2, 4)
    return tiles.reshape(steps * STEP, panels * PANEL)[:k, :m]


def multiply(
    x: Float[Array, "n k"], packed: Array, layer: Int[Array, ""] | int, m: int
) -> Float[Array, "n m"]:
    """x · w in x's dtype, float32 or bfloat16, accumulated in float32; x is rounded to bfloat16 where w is in it.

    packed: the matrices of all layers, one `pack` each, stacked on axis 0. The kernel reads the one of `layer` where it
    lies; a slice of the stack would be copied first, since a kernel takes whole buffers.
    """
    n, k = x.shape
    if cpu.available():
        out = jax.ShapeDtypeStruct((n, m), x.dtype)
        return jax.ffi.ffi_call("min_llm_rows", out, vmap_method="sequential")(x, packed, jnp.int32(layer))
    w = unpack(packed[layer], k, m)
    return jnp.dot(x.astype(w.dtype), w, preferred_element_type=jnp.float32).astype(x.dtype)
