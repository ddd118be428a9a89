"""The product of groups of rows, each with a matrix of its own: the experts of a mixture.

The rows of a group lie together, in the order of the groups. Rows beyond the last group belong to none: they are 0 in
the result and get no gradient, whatever they hold, so every operand is cleared there before it is used
(`jax.lax.ragged_dot` does not say what it does with them).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from min_llm import platform
from min_llm.nn import sharded

TRANSPOSED = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))  # dy · wᵀ, group by group
OUTER = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())  # xᵀ · dy of each group


def ragged_dot(
    x: Float[Array, "m d"], w: Float[Array, "e d f"], sizes: Int[Array, " e"], cut: int | None = None
) -> Float[Array, "m f"]:
    """The first sizes[0] rows of x times w[0], the next sizes[1] rows times w[1], …, in x's dtype.

    On a mesh it is called by code that is written as one device sees it (`shard_map`), and w is this device's piece:
    `cut` is the axis that is cut over fsdp. As in `sharded`, the whole is gathered in the compute dtype, again in the
    backward pass, and its gradient is summed and cut in float32.
    """
    return _ragged_dot(cut, sharded.keeps_gathered(), x, w, sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ragged_dot(cut: int | None, keep: bool, x: Array, w: Array, sizes: Array) -> Array:
    return _clear(jax.lax.ragged_dot(_clear(x, sizes), _whole(w, x.dtype, cut), sizes), sizes)


def _forward(cut: int | None, keep: bool, x: Array, w: Array, sizes: Array) -> tuple[Array, tuple]:
    x, whole = _clear(x, sizes), _whole(w, x.dtype, cut)
    return _clear(jax.lax.ragged_dot(x, whole, sizes), sizes), (x, w, sizes, whole if keep else None)


def _backward(cut: int | None, keep: bool, saved: tuple, dy: Array) -> tuple[Array, Array, None]:
    x, w, sizes, whole = saved
    dy, whole = _clear(dy, sizes), _whole(w, x.dtype, cut) if whole is None else whole
    dx = _clear(jax.lax.ragged_dot_general(dy, whole, sizes, TRANSPOSED), sizes)
    emit = platform.emit_dtype(x.dtype, w.dtype)
    dw = jax.lax.ragged_dot_general(x, dy, sizes, OUTER, preferred_element_type=emit).astype(w.dtype)
    if cut is not None:
        dw = jax.lax.psum_scatter(dw, "fsdp", scatter_dimension=cut, tiled=True)
    return dx, dw, None


_ragged_dot.defvjp(_forward, _backward)


def _clear(x: Array, sizes: Array) -> Array:
    return jnp.where((jnp.arange(x.shape[0]) < sizes.sum())[:, None], x, 0)


def _whole(w: Array, dtype: jnp.dtype, cut: int | None) -> Array:
    w = w.astype(dtype)
    return w if cut is None else jax.lax.all_gather(w, "fsdp", axis=cut, tiled=True)
