"""Which keys each query sees, described rather than drawn.

A dense mask of a 128K context is 16 GiB of booleans; this is a handful of vectors and two static facts, from which
every implementation builds the piece it needs (`visible`) or finds what to skip.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """B rows, S queries, T keys. A pair is visible when every rule that is given allows it.

    q_index [B, S], kv_index [B, T]: places in the sequence; None means 0, 1, 2, … on both sides.
    q_segments [B, S], kv_segments [B, T]: document numbers, equal ones see each other; 0 is padding, which is a
    document like any other (a padding query sees padding, so no row of the softmax is empty).
    prefix [B]: keys with index below it are visible to every query whatever `causal` says (prefix LM).
    causal: a key is visible only to queries at or after it. window: and only to the `window` queries from it on.
    """

    q_index: Int[Array, "b s"] | None = None
    kv_index: Int[Array, "b t"] | None = None
    q_segments: Int[Array, "b s"] | None = None
    kv_segments: Int[Array, "b t"] | None = None
    prefix: Int[Array, " b"] | None = None
    causal: bool = dataclasses.field(default=True, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def in_order(self) -> bool:
        """True when indices are 0, 1, 2, … on both sides: blocks above the diagonal can be skipped unseen."""
        return self.q_index is None and self.kv_index is None and self.prefix is None

    def visible(self, q: slice, kv: slice) -> Bool[Array, "b s t"] | None:
        """The dense piece for these queries and keys, [B or 1, s, t]; None when everything is visible.

        The slices need start and stop; the starts may be traced only where the arrays are given.
        """
        rules = []
        i = _part(self.q_index, q)[:, :, None]
        j = _part(self.kv_index, kv)[:, None, :]
        if self.causal:
            rule = j <= i
            if self.prefix is not None:
                rule |= j < self.prefix[:, None, None]
            rules.append(rule)
        if self.window is not None:
            rules.append(i - j < self.window)
        if self.q_segments is not None and self.kv_segments is not None:
            rules.append(_part(self.q_segments, q)[:, :, None] == _part(self.kv_segments, kv)[:, None, :])
        if not rules:
            return None
        together = rules[0]
        for rule in rules[1:]:
            together &= rule
        return together


def _part(x: Array | None, part: slice) -> Array:
    return jnp.arange(part.start, part.stop)[None] if x is None else x[:, part]
