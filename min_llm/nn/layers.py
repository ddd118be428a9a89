"""Run the layers of a model: scanned or unrolled, rematerialised or not, probed or not. Same numbers each way.

`params.layers` is a tuple of stacks; a stack is one layer's dataclass with every leaf stacked on axis 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm.config import UserError
from min_llm.nn import axes, probe, ragged, sharded
from min_llm.nn.leaves import Whole
from min_llm.nn.pipeline import run_pipeline
from min_llm.nn.runtime import Remat, Runtime

Layer = TypeVar("Layer")
Carry = tuple[Any, Any]  # the residual stream and the cache
Body = Callable[[Any, Any, Any, Any, Any], Carry]
Probed = Callable[[Any, Any, Any, Any, Any], tuple[Carry, probe.Stats]]


def run_layers(
    body: Body, stacks: tuple[Any, ...], x: Float[Array, "b s d"], cache: Any, rows: Any, runtime: Runtime
) -> tuple[Float[Array, "b s d"], Any]:
    """x and cache after `body(index, weights, x, cache, rows)` of every layer; index counts through all stacks.

    rows: what the body knows of each row of the batch (angles, mask), a tree of [B or 1, …] arrays.
    """
    # probes are collected inside what is rematerialised, so that they leave it as outputs
    layer = rematerialised(functools.partial(_probed, body), runtime.remat)
    first = 0
    for stack in stacks:
        n = length(stack)
        run = _scan if runtime.scan else _unroll
        stats: probe.Stats = {}
        # what is rematerialised is gathered again by that, just before its backward pass
        with sharded.keeping_gathered(runtime.keep_gathered or runtime.remat != "none"):
            if "pp" in axes.sizes():
                x = _pipelined(run, layer, stack, x, cache, rows, first, runtime)
            else:
                x, cache, stats = run(layer, stack, x, cache, rows, first, n)
        outer = probe._collected.get()
        if outer is not None:  # one row a layer
            for key, value in stats.items():
                outer[key] = jnp.concatenate([outer[key], value]) if key in outer else value
        first += n
    return x, cache


def _pipelined(
    run: Any, layer: Probed, stack: Any, x: Array, cache: Any, rows: Any, first: int, runtime: Runtime
) -> Array:
    if probe.enabled() or jax.tree.leaves(cache):
        raise UserError("Probes and caches do not go through a pipeline; set parallel.mesh.pp to 1.")

    def stage(weights: Any, x: Array, rows: Any, index: Array) -> Array:
        return run(layer, weights, x, cache, rows, first + index, length(weights))[0]

    return run_pipeline(stage, stack, x, rows, runtime.pipeline_parts, runtime.pipeline_rounds)


def _probed(
    body: Body, index: Any, weights: Any, x: Array, cache: Any, rows: Any
) -> tuple[Carry, probe.Stats]:
    with probe.collecting(probe.enabled()) as stats:
        carry = body(index, weights, x, cache, rows)
    return carry, stats


def _scan(
    layer: Probed, stack: Any, x: Array, cache: Any, rows: Any, first: Any, n: int
) -> tuple[Array, Any, probe.Stats]:
    leaves, tree = jax.tree.flatten(stack, is_leaf=_is_whole)

    def step(carry: Carry, xs: tuple) -> tuple[Carry, probe.Stats]:
        index, cut = xs
        weights = [
            leaf.of_layer(index) if _is_whole(leaf) else part for leaf, part in zip(leaves, cut, strict=True)
        ]
        return layer(first + index, jax.tree.unflatten(tree, weights), *carry, rows)

    cut = [None if _is_whole(leaf) else leaf for leaf in leaves]
    (x, cache), stats = jax.lax.scan(step, (x, cache), (jnp.arange(n), cut))
    return x, cache, stats


def _unroll(
    layer: Probed, stack: Any, x: Array, cache: Any, rows: Any, first: Any, n: int
) -> tuple[Array, Any, probe.Stats]:
    each = []
    if isinstance(x, jax.core.Tracer):  # traced once and called n times; XLA inlines the calls
        layer = jax.jit(layer)
    for i, weights in enumerate(unstack(stack, n)):
        (x, cache), stats = layer(jnp.int32(first + i), weights, x, cache, rows)
        each.append(stats)
    return x, cache, jax.tree.map(lambda *leaf: jnp.stack(leaf), *each)


def unstack(stack: Layer, n: int) -> list[Layer]:
    """The n layers of a stack. The gradient is one concatenation (slicing alone would add n padded arrays)."""
    leaves, tree = jax.tree.flatten(stack, is_leaf=_is_whole)
    parts = [[leaf.of_layer(i) for i in range(n)] if _is_whole(leaf) else _split(leaf, n) for leaf in leaves]
    return [jax.tree.unflatten(tree, [part[i] for part in parts]) for i in range(n)]


def length(stack: Any) -> int:
    """How many layers a stack has."""
    return int(jax.tree.leaves(stack)[0].shape[0])


def _is_whole(leaf: Any) -> bool:
    """Whether a layer of this leaf is taken by its number, and not by slicing."""
    return isinstance(leaf, Whole)


def _split(x: Array, n: int) -> tuple[Array, ...]:
    @jax.custom_vjp
    def split(x: Array) -> tuple[Array, ...]:
        return tuple(x[i] for i in range(n))

    split.defvjp(lambda x: (split(x), None), lambda _, grads: (jnp.stack(grads),))
    return split(x)


def rematerialised(body: Probed, remat: Remat) -> Probed:
    """The body with `jax.checkpoint`: "selective" keeps matrix products and recomputes the rest, "full" keeps
    nothing but the residual stream, "offload" is selective with the kept products in host memory."""
    policies = jax.checkpoint_policies
    if remat == "none":
        return body
    if remat == "full":
        return jax.checkpoint(body, policy=policies.nothing_saveable)
    if remat == "selective":
        return jax.checkpoint(body, policy=_saves_products)
    return jax.checkpoint(body, policy=policies.offload_dot_with_no_batch_dims("device", "pinned_host"))


def _saves_products(primitive: Any, *args: Any, **params: Any) -> bool:
    if primitive.name == "ffi_call":  # ours (kernels/product.py)
        return params["target_name"] == "min_llm_product"
    if primitive.name == "name":
        return params["name"] == ragged.NAME
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)
