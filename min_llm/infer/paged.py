"""The paged key-value cache: pages of tokens, shared by all sequences, and a table of pages for each of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from min_llm.infer.pages import TRASH
from min_llm.kernels.attention import paged
from min_llm.kernels.attention.paged import Int8, Pool
from min_llm.kernels.mask import Mask
from min_llm.models import ModelConfig
from min_llm.nn import axes, context, manual
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.quant.rounding import int8_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedCache:
    """What the T tokens of a step, laid out in one row, read and write.

    keys, values [layers, 1 + pages, size, kv_heads, head_dim]: the pool, of numbers in some type or of `Int8`; page 0
    takes what padding writes.
    tables [rows, most pages]: the pages of each running sequence, in order.
    row [T]: the sequence of each token. index [T]: its place in it; -1 is padding.
    singles: so many tokens come first that belong to any sequence; blocks of one sequence follow.
    On a mesh the pool is cut over tp by heads; fewer key-value heads than devices are repeated.
    """

    keys: Pool
    values: Pool
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
        places = (self.tables, self.row, self.index)
        attend = functools.partial(_attend, window=mask.window, singles=self.singles)
        if axes.on_mesh():  # every device has the pages of its heads
            k, v = context.spread(k), context.spread(v)
            q, k, v = (axes.shard(x, None, None, "heads", "head_dim") for x in (q, k, v))
            operands = (q, k, v, self.keys, self.values, jnp.int32(layer), *places)
            out, keys, values = manual.shard_map(attend, (q, self.keys, self.values), operands)
        else:
            out, keys, values = attend(q, k, v, self.keys, self.values, layer, *places)
        return out, dataclasses.replace(self, keys=keys, values=values)


def _attend(
    q: Array, k: Array, v: Array, keys: Pool, values: Pool, layer: Any, tables: Array, row: Array, index: Array,
    window: int | None, singles: int,
) -> tuple[Array, Pool, Pool]:  # fmt: skip
    """Write the keys and values of all tokens, then attend."""
    size = keys.shape[2]
    at = jnp.maximum(index, 0)
    page = jnp.where(index < 0, TRASH, tables[row, at // size])
    keys, values = (_write(pool, (layer, page, at % size), x[0]) for pool, x in ((keys, k), (values, v)))
    out = paged.best()(q[0], keys, values, layer, tables, row, index, window, singles)
    return out[None], keys, values


def _write(pool: Pool, at: tuple, x: Float[Array, "t g k"]) -> Pool:
    """x at these places, rounded to what the pool holds."""
    if isinstance(pool, Int8):
        rows, scales = int8_rows(x)
        return Int8(pool.values.at[at].set(rows), pool.scales.at[at].set(scales[..., 0]))
    return pool.at[at].set(x.astype(pool.dtype))


def pool(cfg: ModelConfig, pages: int, size: int, dtype: Any) -> tuple[Pool, Pool]:
    """Keys and values of `pages` pages of `size` tokens, and of the one that padding is written to. dtype: int8 for
    `Int8`."""
    heads = max(cfg.n_kv_heads, axes.sizes().get("tp", 1))  # type: ignore[attr-defined]  # as context.spread has them
    shape = (cfg.n_layers, 1 + pages, size, heads, cfg.head_dim)  # type: ignore[attr-defined]

    def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
        names = (None, None, None, "heads", "head_dim")[: len(shape)]
        layout = axes.to_partition(names, shape) if axes.on_mesh() else None
        return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=layout)()

    def one() -> Pool:
        whole = zeros(shape, dtype)
        return Int8(whole, zeros(shape[:-1], jnp.float32)) if whole.dtype == jnp.int8 else whole

    return one(), one()


def page_bytes(cfg: ModelConfig, size: int, dtype: Any) -> int:
    """Keys and values of one page in all layers; int8 with its scales."""
    dtype = jnp.dtype(dtype)
    per_head = cfg.head_dim * dtype.itemsize + (4 if dtype == jnp.int8 else 0)  # type: ignore[attr-defined]
    return 2 * size * cfg.n_layers * cfg.n_kv_heads * per_head  # type: ignore[attr-defined]
