"""The product of two matrices, the one operation that nearly all FLOPs are in.

On CPUs with AMX bfloat16 products run in our own kernel (`cpu`); everywhere else, and in float32, in XLA's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from min_llm import platform
from min_llm.kernels import cpu

SMALLEST = 1 << 20  # multiplications below which calling the kernel costs more than it gains
FEWEST_ROWS = 16  # a tile: fewer rows are bound by reading the other matrix


def product(x: Float[Array, "n k"], w: Float[Array, "k m"]) -> Float[Array, "n m"]:
    """x · w in x's dtype, accumulated in float32; w may be the float32 master copy of a parameter."""
    return _product(x, w)


def native(dtype: jnp.dtype, n: int, k: int, m: int) -> bool:
    """Whether an (n x k)(k x m) product in this dtype runs in our kernel."""
    return dtype == jnp.bfloat16 and min(n, k, m) >= FEWEST_ROWS and n * k * m >= SMALLEST and cpu.available()


def multiply(x: Array, w: Array, tx: bool = False, tw: bool = False, dtype: DTypeLike | None = None) -> Array:
    """x · w with either operand transposed, without gradient; the result in `dtype` (default: x's)."""
    n, k = x.shape[::-1] if tx else x.shape
    m = w.shape[0] if tw else w.shape[1]
    out = jnp.dtype(dtype or x.dtype)
    if native(x.dtype, n, k, m):
        call = jax.ffi.ffi_call(
            "min_llm_product", jax.ShapeDtypeStruct((n, m), out), vmap_method="sequential"
        )
        return call(x, w, ta=tx, tb=tw)
    contract = (((0 if tx else 1,), (1 if tw else 0,)), ((), ()))
    w = w.astype(x.dtype)
    emit = platform.emit_dtype(x.dtype, out)
    return jax.lax.dot_general(x, w, contract, preferred_element_type=emit).astype(out)


@jax.custom_vjp
def _product(x: Array, w: Array) -> Array:
    """The gradient is written out so that both of its products take operands in x's dtype: autodiff on
    accelerators would multiply the float32 gradient of a float32 result, at half the speed or less."""
    return multiply(x, w)


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return multiply(x, w), (x, w)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    return multiply(dy, w, tw=True), multiply(x, dy, tx=True, dtype=w.dtype)


_product.defvjp(_forward, _backward)
