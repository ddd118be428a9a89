"""What lies between the products of a layer, each in one pass over memory, forward and backward, on CPUs with AMX.

XLA's CPU backend makes several loops of each, with float32 copies between them (reductions have loops of their own).
The plain forms stay in `nn`; they ask `fits` which way to go.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from min_llm.kernels import cpu

SMALLEST = 1 << 14  # numbers below which calling a kernel costs more than it gains


_apart: ContextVar[bool] = ContextVar("apart", default=False)


@contextlib.contextmanager
def rows_apart() -> Iterator[None]:
    """Programs traced in the body compute each row in one way, whatever the number of rows: the kernels take arrays of
    any size, and norms in float32, too, whose sums XLA orders by the shape."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def fits(x: Array) -> bool:
    """Whether the kernels take this array, here."""
    return _fits(x, x.dtype == jnp.bfloat16)


def norm_fits(x: Array) -> bool:
    """Whether those of norms do."""
    return _fits(x, x.dtype == jnp.bfloat16 or (x.dtype == jnp.float32 and _apart.get()))


def _fits(x: Array, known: bool) -> bool:
    wanted = known and (x.size >= SMALLEST or _apart.get())
    return wanted and cpu.takes_over()


def like(x: Array, dtype: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)


def _call(name: str, result: Any, *operands: Array, **attributes: Any) -> Any:
    return jax.ffi.ffi_call(f"min_llm_{name}", result, vmap_method="sequential")(*operands, **attributes)


def rms_norm(
    x: Float[Array, "... d"], scale: Float[Array, " d"], eps: float
) -> tuple[Float[Array, "... d"], Float[Array, ...]]:
    """(x · inverse · scale, inverse) with inverse = 1 / sqrt(mean(x²) + eps), float32."""
    inverse = jax.ShapeDtypeStruct(x.shape[:-1], jnp.float32)
    return _call("rms_norm", (like(x), inverse), x, scale.astype(jnp.float32), eps=np.float32(eps))


def rms_norm_gradient(x: Array, scale: Array, inverse: Array, dy: Array) -> tuple[Array, Array]:
    """Gradients of x and scale (float32)."""
    operands = (x, scale.astype(jnp.float32), inverse, dy)
    return _call("rms_norm_gradient", (like(x), like(scale, jnp.float32)), *operands)


def layer_norm(
    x: Float[Array, "... d"], scale: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> tuple[Float[Array, "... d"], Float[Array, ...], Float[Array, ...]]:
    """((x − mean) · inverse · scale + bias, mean, inverse) with inverse = 1 / sqrt(var + eps), float32."""
    row = jax.ShapeDtypeStruct(x.shape[:-1], jnp.float32)
    operands = (x, scale.astype(jnp.float32), bias.astype(jnp.float32))
    return _call("layer_norm", (like(x), row, row), *operands, eps=np.float32(eps))


def layer_norm_gradient(
    x: Array, scale: Array, mean: Array, inverse: Array, dy: Array
) -> tuple[Array, Array, Array]:
    """Gradients of x, scale and bias (both float32)."""
    column = like(scale, jnp.float32)
    operands = (x, scale.astype(jnp.float32), mean, inverse, dy)
    return _call("layer_norm_gradient", (like(x), column, column), *operands)


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) ∘ up."""
    return _call("swiglu", like(gate), gate, up)


def swiglu_gradient(gate: Array, up: Array, d_out: Array) -> tuple[Array, Array]:
    """Gradients of gate and up."""
    return _call("swiglu_gradient", (like(gate), like(up)), gate, up, d_out)


def gelu(x: Array) -> Array:
    """x · sigmoid(2u), u = sqrt(2/π) · (x + 0.044715 x³): the tanh form."""
    return _call("gelu", like(x), x)


def gelu_gradient(x: Array, dy: Array) -> Array:
    """Gradient of x."""
    return _call("gelu_gradient", like(x), x, dy)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def rotate(
    x: Float[Array, "b s h k"],
    cos: Float[Array, "b s half"],
    sin: Float[Array, "b s half"],
    back: bool = False,
) -> Float[Array, "b s h k"]:
    """Pairs (i, i + K/2) of every head turned by the angles of their place; `back`: by minus the angles, which is also
    the gradient."""
    return _call("rotate", like(x), x, cos, sin, back=back)


def _rotate_forward(x: Array, cos: Array, sin: Array, back: bool) -> tuple[Array, tuple[Array, Array]]:
    return rotate(x, cos, sin, back), (cos, sin)


def _rotate_backward(back: bool, saved: tuple[Array, Array], dy: Array) -> tuple[Array, None, None]:
    return rotate(dy, *saved, not back), None, None


rotate.defvjp(_rotate_forward, _rotate_backward)
