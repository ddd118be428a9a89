"""Products of groups of rows, each group with a matrix of its own: the experts of a mixture.

The rows of a group lie together, in the order of the groups: sizes[0] rows, then sizes[1] rows, … Rows beyond the last
group belong to none; they are 0 in a result and add nothing to a sum, whatever they hold.

`jax.lax.ragged_dot` is XLA's form. On CPU it multiplies every row with every group's matrix and keeps one product
(so it does on NVIDIA GPUs, unless cuDNN's fusion is asked for by a flag). There a loop goes through blocks of rows
instead, at most one block more than needed for each group: 5 to 7 times as fast with 8 groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from min_llm import platform
from min_llm.kernels import product

BLOCK = 256  # rows
TRANSPOSED = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))
OUTER = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())


def in_blocks() -> bool:
    return platform.backend() == "cpu"


def multiply(
    x: Float[Array, "m a"], w: Float[Array, "e a b"], sizes: Int[Array, " e"], tw: bool = False
) -> Float[Array, "m b"]:
    """Every row of group i times w[i] (tw: its transpose, w is [e b a]), in x's dtype, which is w's too."""
    return (_multiply_blocks if in_blocks() else _multiply)(x, w, sizes, tw)


def outer(
    x: Float[Array, "m a"], y: Float[Array, "m b"], sizes: Int[Array, " e"], dtype: Any
) -> Float[Array, "e a b"]:
    """xᵀ · y of every group, in `dtype`: the gradient of the matrices."""
    return (_outer_blocks if in_blocks() else _outer)(x, y, sizes, dtype)


def _multiply(x: Array, w: Array, sizes: Array, tw: bool) -> Array:
    x = _clear(x, sizes)
    rows = jax.lax.ragged_dot_general(x, w, sizes, TRANSPOSED) if tw else jax.lax.ragged_dot(x, w, sizes)
    return _clear(rows, sizes)


def _outer(x: Array, y: Array, sizes: Array, dtype: Any) -> Array:
    x, y = _clear(x, sizes), _clear(y, sizes)
    emit = platform.emit_dtype(x.dtype, dtype)
    return jax.lax.ragged_dot_general(x, y, sizes, OUTER, preferred_element_type=emit).astype(dtype)


def _clear(x: Array, sizes: Array) -> Array:
    """Zeros in the rows beyond the groups: `ragged_dot` does not say what it makes of them."""
    return jnp.where((jnp.arange(x.shape[0]) < sizes.sum())[:, None], x, 0)


def _multiply_blocks(x: Array, w: Array, sizes: Array, tw: bool) -> Array:
    def block(group: Array, rows: Rows, out: Array) -> Array:
        y = product.multiply(rows.of(x), jax.lax.dynamic_index_in_dim(w, group, keepdims=False), tw=tw)
        return rows.put(out, jnp.where(rows.inside, y, rows.of(out)))

    return _each_block(sizes, x.shape[0], block, jnp.zeros((x.shape[0], w.shape[1 if tw else 2]), x.dtype))


def _outer_blocks(x: Array, y: Array, sizes: Array, dtype: Any) -> Array:
    def block(group: Array, rows: Rows, out: Array) -> Array:
        x_block, y_block = (jnp.where(rows.inside, rows.of(a), 0) for a in (x, y))
        part = product.multiply(x_block, y_block, tx=True, dtype=dtype)
        return out.at[group].add(part)

    return _each_block(sizes, x.shape[0], block, jnp.zeros((len(sizes), x.shape[1], y.shape[1]), dtype))


class Rows:
    """A block of rows, from `start` on but never beyond the last row; `inside` [rows 1] says which of them count."""

    def __init__(self, start: Array, end: Array, m: int) -> None:
        self.size = min(BLOCK, m)
        self.first = jnp.minimum(start, m - self.size)
        row = self.first + jnp.arange(self.size)
        self.inside = ((row >= start) & (row < end))[:, None]

    def of(self, x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, self.first, self.size)

    def put(self, x: Array, rows: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, rows, self.first, 0)


def _each_block(sizes: Array, m: int, block: Callable[[Array, Rows, Array], Array], out: Array) -> Array:
    """`out` after `block(group, rows, out)` for every block of every group."""
    ends = jnp.cumsum(sizes)
    blocks = -(-sizes // BLOCK)
    until = jnp.cumsum(blocks)

    def step(i: Array, out: Array) -> Array:
        group = (until <= i).sum()
        start = ends[group] - sizes[group] + (i - until[group] + blocks[group]) * BLOCK
        return block(group, Rows(start, ends[group], m), out)

    return jax.lax.fori_loop(0, until[-1], step, out)
