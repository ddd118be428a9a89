"""Attention on a mesh: heads over tp, queries over cp (context parallelism, Llama 3 section 3.3.2).

Every device keeps its queries and gathers all keys and values of its sequences, which are small next to the queries
under grouped-query attention. The paper prefers this to a ring because any mask works unchanged.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from min_llm.kernels import attention
from min_llm.kernels.mask import Mask
from min_llm.nn import axes, ring
from min_llm.nn.batch import Batch
from min_llm.nn.manual import on_devices
from min_llm.nn.runtime import Runtime


def order(seq_len: int, cp: int) -> Int[np.ndarray, s]:
    """Which place of the sequence stands where: cut in 2·cp chunks, rank i takes chunks i and 2·cp − 1 − i, so that
    every rank has as many visible pairs under a causal mask."""
    chunks = np.arange(seq_len).reshape(2 * cp, -1)
    return np.concatenate([chunks[[i, 2 * cp - 1 - i]].ravel() for i in range(cp)])


def arrange(batch: Batch, cp: int) -> Batch:
    """The batch with the places of its rows in the order of `order`, positions and index written out. The model does
    not notice: nothing else knows where a token stands. NumPy, on the host; cp 1 changes nothing."""
    if cp == 1:
        return batch
    places = order(batch.tokens.shape[1], cp)
    index: Any = np.broadcast_to(np.arange(len(places), dtype=np.int32), batch.tokens.shape)
    implied = {"positions": index, "index": index}
    given = {name: x for name, x in vars(batch).items() if x is not None}
    moved: dict[str, Any] = {name: np.asarray(x)[:, places] for name, x in (implied | given).items()}
    return dataclasses.replace(batch, **moved)


def attend(
    q: Float[Array, "b s h k"],
    k: Float[Array, "b s g k"],
    v: Float[Array, "b s g k"],
    mask: Mask,
    runtime: Runtime,
) -> Float[Array, "b s h k"]:
    """The runtime's attention implementation, on every device with its rows, heads and queries."""
    k, v = spread(k), spread(v)
    k, v = (axes.shard(x, "batch", "seq", "heads", "head_dim") for x in (k, v))
    mask = jax.tree.map(lambda x: jax.reshard(x, _rows(x)), mask)
    name = "ring" if runtime.context == "ring" else runtime.attention
    return on_devices(functools.partial(_local, name), q, k, v, mask)


def _local(name: str, q: Array, k: Array, v: Array, mask: Mask) -> Array:
    """The implementation `name`, or the ring, on this device's part."""
    if name == "ring":
        return ring.attention(q, k, v, mask)
    if jax.lax.axis_size("cp") > 1:
        gather = functools.partial(jax.lax.all_gather, axis_name="cp", axis=1, tiled=True)
        k, v = gather(k), gather(v)
        mask = dataclasses.replace(
            mask,
            kv_index=jax.tree.map(gather, mask.kv_index),
            kv_segments=jax.tree.map(gather, mask.kv_segments),
        )
    return attention.get(name)(q, k, v, mask)


def _rows(x: Array) -> P:
    """The layout of a field of a mask: rows over the batch axes (one row for all stays whole), places over cp."""
    names = ("batch" if x.shape[0] > 1 else None, "seq")
    return axes.to_partition(names[: x.ndim], x.shape)


def spread(x: Float[Array, "b s g k"]) -> Float[Array, "b s g k"]:
    """Keys or values with at least one head for each device of tp: fewer are repeated, g to tp."""
    tp = axes.sizes().get("tp", 1)
    return x if x.shape[2] % tp == 0 else jnp.repeat(x, tp // x.shape[2], axis=2)
