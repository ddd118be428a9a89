"""The numbers of `jax.random.normal`, many arrays at once and in pieces that stay in a CPU's cache.

XLA writes every one of the 20 rounds of Threefry to memory; for a piece of 64 KiB that memory is the cache, and a
model is initialised four times as fast. One loop draws for all arrays, so only one piece is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, UInt32

PIECE = 2**14  # numbers


def normals(keys: Sequence[jax.Array], sizes: Sequence[int]) -> list[Float[Array, size]]:
    """`jax.random.normal(key, (size,))` of each Threefry key and size (below 2³²), float32, bit for bit."""
    pieces = [-(-size // PIECE) for size in sizes]
    starts = np.concatenate([np.arange(n, dtype=np.uint32) * PIECE for n in pieces])
    words = jnp.stack([jax.random.key_data(key) for key in keys])
    words = jnp.repeat(words, np.array(pieces), axis=0, total_repeat_length=sum(pieces))
    drawn = jax.lax.map(_piece, (words, starts)).reshape(-1)
    ends = np.cumsum(pieces) * PIECE
    return [drawn[end - n * PIECE :][:size] for end, n, size in zip(ends, pieces, sizes, strict=True)]


def _piece(xs: tuple[UInt32[Array, 2], UInt32[Array, ""]]) -> Float[Array, piece]:
    words, start = xs
    counts = start + jnp.arange(
        PIECE, dtype=jnp.uint32
    )  # the low words of 64-bit counts; the high ones are 0
    high, low = jnp.split(threefry_2x32(words, jnp.concatenate([jnp.zeros_like(counts), counts])), 2)
    bits = high ^ low
    unit = jax.lax.bitcast_convert_type((bits >> 9) | np.uint32(0x3F800000), jnp.float32) - 1.0  # in [0, 1)
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(least, unit * (np.float32(1) - least) + least)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)
