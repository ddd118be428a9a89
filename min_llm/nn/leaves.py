"""The one projection: every product with a parameter goes through here.

A parameter leaf is an array in float32 (the master copy); it is cast to the activations' dtype where it is used, so
no autocast and no second copy of the weights exist. Other kinds of leaves (LoRA pairs, quantised or packed tensors) are
`Leaf`s, which bring their own product, and no model file changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from min_llm.kernels.product import product
from min_llm.nn import axes, sharded


@runtime_checkable
class Leaf(Protocol):
    """A parameter that is no plain array: a registered dataclass whose arrays are stacked on axis 0 like any other
    parameter's and whose static fields describe one layer."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter of one layer, as the model's spec has it."""
        ...

    def product(self, x: Float[Array, "n k"]) -> Float[Array, "n m"]:
        """x · w in x's dtype, w as a matrix: its contracted dimensions by its other ones."""
        ...


@runtime_checkable
class Whole(Protocol):
    """A `Leaf` that layers share: each is told its number, since slicing its arrays would copy them at every use."""

    def of_layer(self, layer: Int[Array, ""] | int) -> Leaf:
        """The parameter of one layer."""
        ...


@runtime_checkable
class Together(Protocol):
    """A `Leaf` whose type multiplies several parameters with the same activations in one call."""

    @staticmethod
    def products(x: Float[Array, "n k"], several: Sequence[Any]) -> list[Float[Array, "n m"]]: ...


def is_leaf(x: Any) -> bool:
    """For `jax.tree` functions that are to see such a parameter as one."""
    return isinstance(x, Leaf)


def dot(eq: str, x: Array, w: Any, *out: str | None) -> Array:
    """`einsum(eq, x, w)` in x's dtype, for equations like "bsd,dhk->bshk": x ends with the contracted dimensions,
    w begins with them, the result is what is left. out: the logical axes of the result, given where a contracted
    dimension is cut on a mesh.

    On one device it runs as one matrix product: XLA's CPU backend copies the activations, transposed, for the
    gradient of a product with several free dimensions, and reads them in place for the gradient of a matrix.
    """
    inputs, result = eq.split("->")
    left, right = inputs.split(",")
    contracted = sum(name in left for name in right)
    if right[:contracted] != left[-contracted:] or left[:-contracted] + right[contracted:] != result:
        raise ValueError(f"dot takes equations like 'bsd,dhk->bshk', not {eq!r}")
    shape = (*x.shape[:-contracted], *w.shape[contracted:])
    if axes.on_mesh():
        return sharded.dot(eq, x, w, axes.to_partition(out, shape) if out else None)
    size = math.prod(w.shape[:contracted])
    return multiply(x.reshape(-1, size), w).reshape(shape)


def multiply(x: Float[Array, "n k"], w: Any) -> Float[Array, "n m"]:
    """x · w on one device in x's dtype, w as a matrix: an array whose first dimensions make up k, or a `Leaf`."""
    return w.product(x) if isinstance(w, Leaf) else product(x, w.reshape(x.shape[1], -1))


def dots(eq: str, x: Array, *several: Any) -> list[Array]:
    """`dot` with each of several parameters, which differ in size alone: in one call where their type makes that."""
    kind = type(several[0])
    if not issubclass(kind, Together) or any(type(w) is not kind for w in several):
        return [dot(eq, x, w) for w in several]
    left, right = eq.split("->")[0].split(",")
    contracted = sum(name in left for name in right)
    size = math.prod(several[0].shape[:contracted])
    kept = x.shape[: x.ndim - contracted]
    made = kind.products(x.reshape(-1, size), several)
    return [y.reshape(*kept, *w.shape[contracted:]) for y, w in zip(made, several, strict=True)]


def plus(x: Array, bias: Array | None) -> Array:
    """x + bias in x's dtype; None adds nothing."""
    return x if bias is None else x + bias.astype(x.dtype)


def embed(tokens: Int[Array, "b s"], table: Float[Array, "v d"], dtype: jnp.dtype) -> Float[Array, "b s d"]:
    """Rows of the embedding table, in the compute dtype."""
    if not axes.on_mesh():
        return table[tokens].astype(dtype)
    whole = jax.reshard(table, axes.without(axes.partition(table), "fsdp"))
    out = axes.to_partition(("batch", "residual", "features"), (*tokens.shape, table.shape[1]))
    return whole.at[tokens].get(out_sharding=out).astype(dtype)


def unembed(x: Float[Array, "b s d"], head: Float[Array, "d v"]) -> Float[Array, "b s v"]:
    """Logits, float32."""
    if isinstance(head, Together):  # rounds x itself as its product needs it, and then rounds no logit
        x = x.astype(jnp.float32)
    with sharded.keeping_gathered(True):  # its backward pass comes next
        return dot("bsd,dv->bsv", axes.shard(x, "batch", "seq", "features"), head).astype(jnp.float32)
