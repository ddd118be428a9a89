"""The dense key-value cache: one buffer for keys and one for values, carried and updated in place.

Rows may hold sequences of different lengths: each token is written at its own index, and a query sees the keys whose
index is not after its own, so whatever a shorter row holds beyond its end stays invisible until it is overwritten.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm import models
from min_llm.config import UserError
from min_llm.kernels import attention
from min_llm.kernels.mask import Mask
from min_llm.models import ModelConfig
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseCache:
    """keys, values [layers, batch, length, kv_heads, head_dim] in the compute dtype."""

    keys: Float[Array, "l b t g k"]
    values: Float[Array, "l b t g k"]

    def mask(self, batch: Batch, window: int | None) -> Mask:
        if batch.segment_ids is not None:
            raise UserError("A cache holds one document a row; packed rows (segment_ids) cannot be decoded.")
        b, t = self.keys.shape[1:3]
        index = batch.index
        if index is None:
            index = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1])[None], batch.tokens.shape)
        return Mask(q_index=index, kv_index=jnp.broadcast_to(jnp.arange(t)[None], (b, t)), window=window)

    def attend(
        self, layer: Any, q: Array, k: Array, v: Array, mask: Mask, runtime: Runtime
    ) -> tuple[Array, DenseCache]:
        assert mask.q_index is not None
        start = mask.q_index[:, 0]  # the tokens of a row are consecutive
        keys, values = _write(self.keys, layer, k, start), _write(self.values, layer, v, start)
        out = attention.get(runtime.attention)(q, keys[layer], values[layer], mask)
        return out, DenseCache(keys, values)


def _write(buffer: Array, layer: Any, new: Array, start: Array) -> Array:
    """buffer[layer, row, start[row] : start[row] + s] = new[row]."""
    rows = jnp.arange(new.shape[0])[:, None]
    places = start[:, None] + jnp.arange(new.shape[1])[None]
    return buffer.at[layer, rows, places].set(new.astype(buffer.dtype))


def empty(cfg: ModelConfig, rows: int, length: int, dtype: Any) -> DenseCache:
    """A cache for `rows` sequences of up to `length` tokens."""
    models.spec(cfg)  # a configuration that describes a model
    shape = (cfg.n_layers, rows, length, cfg.n_kv_heads, cfg.head_dim)  # type: ignore[attr-defined]
    return DenseCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
