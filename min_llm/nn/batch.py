"""What flows through a model: one batch of token rows."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """B rows of S tokens (NumPy or JAX arrays).

    tokens, targets [B, S] int32: target s is the token that follows token s.
    positions [B, S]: feed the rotary (or learned) position embedding and restart at each document.
    index [B, S]: the place in the row, which causal order compares. None for either means 0, 1, 2, …
    segment_ids [B, S]: document numbers from 1; 0 is padding; None means one document a row.
    weights [B, S] float32: the loss is Σ weights·nll / Σ weights; None means 1 everywhere.
    """

    tokens: Int[Array, "b s"]
    targets: Int[Array, "b s"] | None = None
    positions: Int[Array, "b s"] | None = None
    index: Int[Array, "b s"] | None = None
    segment_ids: Int[Array, "b s"] | None = None
    weights: Float[Array, "b s"] | None = None
