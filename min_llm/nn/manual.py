"""Code that is written as one device sees it (`jax.shard_map`), within a model that is written for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from min_llm.nn import axes


def on_devices(local: Callable[..., Array], *operands: Any) -> Array:
    """`local` on every device's pieces of the operands (arrays or trees of them); its result is laid out like the
    first operand, an array. The gradient of an operand is summed over the mesh axes that do not cut it."""
    in_pipeline = "pp" not in axes.explicit()
    return (_in_pipeline if in_pipeline else _run)(local, *operands)


def _run(local: Callable[..., Array], *operands: Any) -> Array:
    return shard_map(local, operands[0], operands)


def shard_map(local: Callable[..., Any], results: Any, operands: tuple) -> Any:
    """`local` on every device's pieces of the operands; what it returns is laid out like `results`, arrays."""
    call = jax.shard_map(
        local,
        in_specs=jax.tree.map(axes.partition, operands),
        out_specs=jax.tree.map(axes.partition, results),
        axis_names=set(axes.explicit()),  # all: JAX cannot transpose an all-gather beside explicit axes
        check_vma=False,  # kernels that are not XLA's do not say how their results vary
    )
    return call(*operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_pipeline(local: Callable[..., Array], *operands: Any) -> Array:
    """Inside the pipeline's shard_map, `local` is computed again in the backward pass: JAX cannot carry residuals out
    of a shard_map within another, nor see that its results differ from rank to rank."""
    return _varying(_run(local, *operands))


def _varying(x: Array) -> Array:
    """x, typed as differing from rank to rank: what some operations return is so already."""
    return x if "pp" in jax.typeof(x).manual_axis_type.varying else jax.lax.pcast(x, "pp", to="varying")


def _backward(local: Callable[..., Array], operands: tuple, dy: Array) -> tuple:
    leaves, tree = jax.tree.flatten(operands)
    floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    uncut = [_uncut(leaves[i]) for i in floats]

    def pull(leaves: list[Array], dy: Array) -> list[Array]:
        # arguments are still typed by pp, results of any sum are not, and both must agree
        leaves, dy = jax.tree.map(lambda x: x + jnp.zeros((), x.dtype), (leaves, dy))

        def forward(some: list[Array]) -> Array:
            given = dict(zip(floats, some, strict=True))
            return local(*jax.tree.unflatten(tree, [given.get(i, leaf) for i, leaf in enumerate(leaves)]))

        grads = jax.vjp(forward, [leaves[i] for i in floats])[1](dy)[0]
        return [jax.lax.psum(d, names) if names else d for d, names in zip(grads, uncut, strict=True)]

    grads = shard_map(pull, [leaves[i] for i in floats], (leaves, dy))
    found = dict(zip(floats, map(_varying, grads), strict=True))
    return jax.tree.unflatten(tree, [found.get(i) for i in range(len(leaves))])


def _uncut(x: Array) -> tuple[str, ...]:
    """The axes of the mesh that do not cut an array."""
    cut = {name for names in axes.parted(axes.partition(x)) for name in names}
    return tuple(name for name in axes.sizes() if name not in cut)


_in_pipeline.defvjp(lambda local, *operands: (_in_pipeline(local, *operands), operands), _backward)
