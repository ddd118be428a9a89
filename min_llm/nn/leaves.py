"""The one projection: every product with a parameter goes through here.

A parameter leaf is an array in float32 (the master copy); it is cast to the activations' dtype where it is used, so
no autocast and no second copy of the weights exist. Other leaf types (LoRA pairs, quantised tensors) get their own
product here and no model file changes.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from min_llm.kernels.product import product
from min_llm.nn import axes


def dot(eq: str, x: Array, w: Array, out_sharding: P | None = None) -> Array:
    """`einsum(eq, x, w)` in x's dtype, for equations like "bsd,dhk->bshk": x ends with the contracted dimensions,
    w begins with them, the result is what is left. out_sharding where a contracted dimension is sharded
    (`axes.out`).

    On one device it runs as one matrix product: XLA's CPU backend copies the activations, transposed, for the
    gradient of a product with several free dimensions, and reads them in place for the gradient of a matrix.
    """
    if axes.mesh_axes():
        return jnp.einsum(eq, x, w.astype(x.dtype), out_sharding=out_sharding)
    inputs, result = eq.split("->")
    left, right = inputs.split(",")
    contracted = sum(name in left for name in right)
    if right[:contracted] != left[-contracted:] or left[:-contracted] + right[contracted:] != result:
        raise ValueError(f"dot takes equations like 'bsd,dhk->bshk', not {eq!r}")
    size = math.prod(w.shape[:contracted])
    out = product(x.reshape(-1, size), w.reshape(size, -1))
    return out.reshape(*x.shape[:-contracted], *w.shape[contracted:])


def embed(tokens: Int[Array, "b s"], table: Float[Array, "v d"], dtype: jnp.dtype) -> Float[Array, "b s d"]:
    """Rows of the embedding table, in the compute dtype."""
    if not axes.mesh_axes():
        return table[tokens].astype(dtype)
    table = jax.reshard(table, axes.to_partition(("vocab", "embed"), drop=("fsdp",)))
    return table.at[tokens].get(out_sharding=axes.out("batch", "seq", "features")).astype(dtype)


def unembed(x: Float[Array, "b s d"], head: Float[Array, "d v"]) -> Float[Array, "b s v"]:
    """Logits, float32."""
    if axes.mesh_axes():
        head = jax.reshard(head, axes.to_partition(("embed", "vocab"), drop=("fsdp",)))
    return dot("bsd,dv->bsv", x, head).astype(jnp.float32)
