"""A projection on a mesh: fully sharded data parallelism and tensor parallelism in one product.

A parameter lives in pieces over fsdp (ZeRO-3: Rajbhandari et al. 2020). Before its product each device gathers, in
the compute dtype, the whole of what it multiplies; the gradient leaves the product in float32, already summed over
the batch and cut back into pieces (Llama 3 section 3.3.2: FP32 reduce-scatter). Over tp parameters stay cut: the wide
dimension of the first product of a block by columns, of the second by rows, whose partial results are summed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from min_llm.nn import axes

_keep: ContextVar[bool] = ContextVar("keep", default=False)


@contextlib.contextmanager
def keeping_gathered(keep: bool) -> Iterator[None]:
    """Products traced in the body hold their gathered parameter from the forward to the backward pass, where it is
    otherwise gathered again: half the gathering of a micro-batch for the memory of the whole parameters (the choice
    of Llama 3 section 3.3.2)."""
    token = _keep.set(keep)
    try:
        yield
    finally:
        _keep.reset(token)


def keeps_gathered() -> bool:
    return _keep.get()


def dot(eq: str, x: Array, w: Array, out: P | None) -> Array:
    """`einsum(eq, x, w)` in x's dtype. out: layout of the result, wanted where a contracted dimension is cut."""
    return _dot(eq, out, keeps_gathered(), x, w)


def gathered(w: Array, dtype: jnp.dtype) -> Array:
    """The parameter whole over fsdp, in `dtype`."""
    return jax.reshard(w.astype(dtype), axes.without(axes.partition(w), "fsdp"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _dot(eq: str, out: P | None, keep: bool, x: Array, w: Array) -> Array:
    return jnp.einsum(eq, x, gathered(w, x.dtype), out_sharding=out)


def _forward(eq: str, out: P | None, keep: bool, x: Array, w: Array) -> tuple[Array, tuple]:
    whole = gathered(w, x.dtype)
    y = jnp.einsum(eq, x, whole, out_sharding=out)
    return y, (x, w, whole if keep else None)


def _backward(eq: str, out: P | None, keep: bool, saved: tuple, dy: Array) -> tuple[Array, Array]:
    x, w, whole = saved
    if whole is None:
        # the barrier keeps XLA from gathering it before it is needed, or from keeping it since the forward pass
        w, dy = jax.lax.optimization_barrier((w, dy))
        whole = gathered(w, x.dtype)
    left, right, result = eq.replace("->", ",").split(",")
    dx = jnp.einsum(f"{result},{right}->{left}", dy, whole, out_sharding=axes.partition(x))
    dw = jnp.einsum(
        f"{left},{result}->{right}", x, dy, preferred_element_type=w.dtype, out_sharding=axes.partition(w)
    )
    return dx, dw


_dot.defvjp(_forward, _backward)
