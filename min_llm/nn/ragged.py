"""The product of groups of rows with the matrix of their group: one of a mixture's parameters."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from min_llm.kernels import grouped
from min_llm.nn import sharded

NAME = "ragged_dot"  # of the result, for rematerialisation


def ragged_dot(
    x: Float[Array, "m d"], w: Float[Array, "e d f"], sizes: Int[Array, " e"], cut: int | None = None
) -> Float[Array, "m f"]:
    """The first sizes[0] rows of x times w[0], the next sizes[1] rows times w[1], …, in x's dtype. Rows beyond the
    last group are 0 and get no gradient.

    On a mesh it is called by code that is written as one device sees it (`nn.manual`), and w is this device's piece:
    `cut` is the axis that is cut over fsdp. As in `sharded`, the whole is gathered in the compute dtype, again in the
    backward pass, and its gradient is summed and cut in float32.
    """
    return _ragged_dot(cut, sharded.keeps_gathered(), x, w, sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ragged_dot(cut: int | None, keep: bool, x: Array, w: Array, sizes: Array) -> Array:
    return grouped.multiply(x, _whole(w, x.dtype, cut), sizes)


def _forward(cut: int | None, keep: bool, x: Array, w: Array, sizes: Array) -> tuple[Array, tuple]:
    whole = _whole(w, x.dtype, cut)
    y = checkpoint_name(grouped.multiply(x, whole, sizes), NAME)
    return y, (x, w, sizes, whole if keep else None)


def _backward(cut: int | None, keep: bool, saved: tuple, dy: Array) -> tuple[Array, Array, None]:
    x, w, sizes, whole = saved
    if whole is None:
        w, dy = jax.lax.optimization_barrier((w, dy))  # to be gathered here and not earlier, as in `sharded`
        whole = _whole(w, x.dtype, cut)
    dx = grouped.multiply(dy, whole, sizes, tw=True)
    dw = grouped.outer(x, dy, sizes, w.dtype)
    if cut is not None:
        dw = jax.lax.psum_scatter(dw, "fsdp", scatter_dimension=cut, tiled=True)
    return dx, dw, None


_ragged_dot.defvjp(_forward, _backward)


def _whole(w: Array, dtype: jnp.dtype, cut: int | None) -> Array:
    w = w.astype(dtype)
    return w if cut is None else jax.lax.all_gather(w, "fsdp", axis=cut, tiled=True)
