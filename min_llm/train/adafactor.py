"""Adafactor's second moment: of a matrix only the means of its rows and of its columns are kept.

optax has Adafactor, but factors the two longest dimensions of an array, which in our stacks of layers with their heads
apart are not the two sides of a matrix; the spec knows which they are (`Param.sides`). Each layer and each expert is a
matrix of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from min_llm.spec import Param, map_spec

DECAY = 0.8  # the mean of step t forgets with 1 - t^-0.8
SMALLEST = 1e-30  # added to squares
VECTORS = ("norm", "bias")
LARGEST = 1.0  # root mean square of an update


class Factored(NamedTuple):
    """step: steps taken. second: for each parameter the means of the squares over its outputs and over its inputs, in
    shapes that broadcast; for a vector the means themselves, alone."""

    step: jax.Array
    second: Any


def scale_by_factored(spec: Any) -> optax.GradientTransformation:
    """g / sqrt(v) with v = rows x columns / mean, clipped to a root mean square of 1 (Shazeer & Stern 2018,
    arXiv 1804.04235, algorithm 4 without momentum and without the step size relative to the parameter)."""

    def init(params: Any) -> Factored:
        return Factored(
            jnp.zeros((), jnp.int32), map_spec(_means, spec, jax.tree.map(jnp.zeros_like, params))
        )

    def update(grads: Any, state: Factored, params: Any = None) -> tuple[Any, Factored]:
        t = state.step + 1
        kept = 1 - t.astype(jnp.float32) ** -DECAY
        second = map_spec(
            lambda p, g, old: tuple(
                kept * a + (1 - kept) * b for a, b in zip(old, _means(p, g**2 + SMALLEST), strict=True)
            ),
            spec, grads, state.second,
        )  # fmt: skip
        return map_spec(_scaled, spec, grads, second), Factored(t, second)

    return optax.GradientTransformation(init, update)


def _means(p: Param, squares: jax.Array) -> tuple[jax.Array, ...]:
    if p.role in VECTORS:
        return (squares,)
    inputs, outputs = p.sides
    return squares.mean(outputs, keepdims=True), squares.mean(inputs, keepdims=True)


def _scaled(p: Param, g: jax.Array, second: tuple[jax.Array, ...]) -> jax.Array:
    if p.role in VECTORS:
        u = g * jax.lax.rsqrt(second[0])
        one = tuple(i for i, axis in enumerate(p.axes) if axis != "layers")
    else:
        rows, columns = second
        inputs, outputs = p.sides
        u = g * jax.lax.rsqrt(rows / rows.mean(inputs, keepdims=True)) * jax.lax.rsqrt(columns)
        one = inputs + outputs
    return u / jnp.maximum(1.0, jnp.sqrt((u**2).mean(one, keepdims=True)) / LARGEST)
