"""What attention attends to.

A model calls `cache.attend(layer, q, k, v, mask)` and never asks what kind of cache it has: training passes
`NoCache`, which attends within the batch; serving passes one that remembers (`infer.cache`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
from jaxtyping import Array, Float, Int

from min_llm.kernels import attention
from min_llm.kernels.mask import Mask
from min_llm.nn import axes, context
from min_llm.nn.batch import Batch
from min_llm.nn.probe import probe_entropy
from min_llm.nn.runtime import Runtime


class Cache(Protocol):
    """A pytree: it is carried through the layers and returned."""

    def mask(self, batch: Batch, window: int | None) -> Mask:
        """What each query of the batch may see, built once and used by every layer."""
        ...

    def attend(
        self,
        layer: int | Int[Array, ""],
        q: Float[Array, "b s h k"],
        k: Float[Array, "b s g k"],
        v: Float[Array, "b s g k"],
        mask: Mask,
        runtime: Runtime,
    ) -> tuple[Float[Array, "b s h k"], Any]:
        """The attention output and the updated cache."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoCache:
    """Attention within the batch: training, scoring."""

    def mask(self, batch: Batch, window: int | None) -> Mask:
        return Mask(batch.index, batch.index, batch.segment_ids, batch.segment_ids, window=window)

    def attend(
        self, layer: Any, q: Array, k: Array, v: Array, mask: Mask, runtime: Runtime
    ) -> tuple[Array, NoCache]:
        probe_entropy("attention_entropy", q, k, mask)
        if axes.on_mesh():
            return context.attend(q, k, v, mask, runtime), self
        return attention.get(runtime.attention)(q, k, v, mask), self
