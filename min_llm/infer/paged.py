"""The paged key-value cache: pages of tokens, shared by all sequences, and a table of pages for each of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from min_llm.infer.pages import TRASH
from min_llm.kernels.attention import paged
from min_llm.kernels.mask import Mask
from min_llm.models import ModelConfig
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedCache:
    """What the T tokens of a step, laid out in one row, read and write.

    keys, values [layers, 1 + pages, size, kv_heads, head_dim]: the pool; page 0 takes what padding writes.
    tables [rows, most pages]: the pages of each running sequence, in order.
    row [T]: the sequence of each token. index [T]: its place in it; -1 is padding.
    singles: so many tokens come first that belong to any sequence; blocks of one sequence follow.
    """

    keys: Float[Array, "l p z g k"]
    values: Float[Array, "l p z g k"]
    tables: Int[Array, "r m"]
    row: Int[Array, " t"]
    index: Int[Array, " t"]
    singles: int = dataclasses.field(metadata={"static": True})

    def mask(self, batch: Batch, window: int | None) -> Mask:
        """The window is all that a layer does not find in the cache itself."""
        return Mask(window=window)

    def attend(
        self, layer: Any, q: Array, k: Array, v: Array, mask: Mask, runtime: Runtime
    ) -> tuple[Array, PagedCache]:
        size = self.keys.shape[2]
        at = jnp.maximum(self.index, 0)
        page = jnp.where(self.index < 0, TRASH, self.tables[self.row, at // size])
        keys = self.keys.at[layer, page, at % size].set(k[0].astype(self.keys.dtype))
        values = self.values.at[layer, page, at % size].set(v[0].astype(self.values.dtype))
        out = paged.best()(
            q[0], keys, values, layer, self.tables, self.row, self.index, mask.window, self.singles
        )
        return out[None], dataclasses.replace(self, keys=keys, values=values)


def pool(cfg: ModelConfig, pages: int, size: int, dtype: Any) -> tuple[Array, Array]:
    """Keys and values of `pages` pages of `size` tokens, and of the one that padding is written to."""
    shape = (cfg.n_layers, 1 + pages, size, cfg.n_kv_heads, cfg.head_dim)  # type: ignore[attr-defined]
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)


def page_bytes(cfg: ModelConfig, size: int, dtype: Any) -> int:
    """Keys and values of one page in all layers."""
    per_token = cfg.n_layers * cfg.n_kv_heads * cfg.head_dim  # type: ignore[attr-defined]
    return 2 * size * per_token * jnp.dtype(dtype).itemsize
