"""Adapters for some rows of a step and not for others (LoRA; nn/lora.py has a single one for all).

Every adapted matrix has room for a fixed number of adapters of a fixed rank, its slots; smaller ranks are padded with
zeros, which add nothing. A product goes over the adapters that the step's rows ask for, one after the other, and each
row takes what is its own's (Punica's BGMV, Chen et al. 2023, gathers the adapter of each row instead). So adapters cost
in proportion to how many are in use, nothing is compiled when they change, and the bits of a row depend neither on the
other rows nor on the slot that its adapter lies in. Rows without an adapter keep the bits of the model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from min_llm import models
from min_llm.config import UserError
from min_llm.infer.scheduler import Part
from min_llm.kernels import cpu, rows
from min_llm.models import ModelConfig
from min_llm.nn.activations import swiglu
from min_llm.nn.gated import Gating, gated
from min_llm.nn.layers import length
from min_llm.nn.leaves import Whole, multiply
from min_llm.nn.lora import Adapter, is_adaptable
from min_llm.nn.packed import Packed

NONE = 0  # the slot of rows without an adapter; the others are numbered from 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A `Leaf` and `Whole` (nn/leaves.py). a [slots · layers, k, rank], b [slots · layers, rank, m]: the adapters, each
    with its scale in b, as arrays or packed. holds [1 + slots]: whether the adapter in a slot changes this matrix.
    layers: how many the stack has. slot [T]: of each row of the activations. used: the slots of all rows, each once,
    then zeros."""

    base: Any
    a: Any
    b: Any
    holds: np.ndarray
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    layers: int = dataclasses.field(metadata={"static": True})
    layer: Any = 0
    slot: Int[Array, " t"] | None = None
    used: Int[Array, " s"] | None = None

    def of_layer(self, layer: Any) -> Adapted:
        """See `leaves.Whole`."""
        return dataclasses.replace(self, base=_at(self.base, layer), layer=layer)

    def product(self, x: Float[Array, "n k"]) -> Float[Array, "n m"]:
        assert self.slot is not None and self.used is not None
        own, used, holds = self.slot, self.used, jnp.asarray(self.holds)

        def add(slot: Array, out: Array) -> Array:
            at = (slot - 1) * self.layers + self.layer
            change = multiply(multiply(x, _at(self.a, at)), _at(self.b, at))
            return jnp.where((own == slot)[:, None], out + change, out)

        def step(i: Array, out: Array) -> Array:
            return jax.lax.cond(holds[used[i]], add, lambda _, out: out, used[i], out)

        return jax.lax.fori_loop(0, (used != NONE).sum(), step, multiply(x, self.base))

    def gated(self, x: Float[Array, "n d"], up: Adapted, down: Adapted) -> Float[Array, "n d"]:
        """See `gated.Gating`. Rows whose adapter changes one of the three matrices get their network product by
        product, the others in one call, as without adapters: it rounds otherwise, and their bits must not change."""

        def plain() -> Array:
            return gated(x[None], self.base, up.base, down.base)[0]

        def changed() -> Array:
            return down.product(swiglu(self.product(x), up.product(x)))

        def both() -> Array:
            return jnp.where(changes[:, None], changed(), plain())

        if not isinstance(self.base, Gating):
            return changed()
        assert self.slot is not None
        changes = jnp.asarray(self.holds | up.holds | down.holds)[self.slot]
        return jax.lax.switch(changes.any().astype(jnp.int32) + changes.all(), [plain, both, changed])


def _at(w: Any, i: Any) -> Any:
    return w.of_layer(i) if isinstance(w, Whole) else jax.tree.map(lambda x: x[i], w)


def aimed(params: Any, slot: Int[Array, " t"], used: Int[Array, " s"]) -> Any:
    """The parameters for one step with these slots."""

    def leaf(w: Any) -> Any:
        return dataclasses.replace(w, slot=slot, used=used) if _is_adapted(w) else w

    return jax.tree.map(leaf, params, is_leaf=_is_adapted)


def _is_adapted(w: Any) -> bool:
    return isinstance(w, Adapted)


class Slots:
    """The slots of one model. params: its prepared parameters (infer/prepare.py) with `Adapted` leaves."""

    def __init__(
        self, params: Any, cfg: ModelConfig, slots: int, rank: int, sequences: int, dtype: DTypeLike
    ) -> None:
        """rank: the largest that fits. sequences: rows of the page tables. dtype: of activations."""
        self._total, self._rank = slots, rank
        self._slot = np.zeros(sequences, np.int32)
        layer = vars(models.of(cfg).layer_spec(cfg))
        self._matrices = {name: p for name, p in layer.items() if p is not None and is_adaptable(p)}

        def adapted(name: str, base: Any, layers: range) -> Adapted:
            p, n = self._matrices[name], len(layers)
            k, m = p.matrix
            a, b = _zeros(slots * n, k, rank, dtype), _zeros(slots * n, rank, m, dtype)
            return Adapted(base, a, b, np.zeros(1 + slots, bool), p.shape, n)

        self.params = self._each(adapted, params)

    def fill(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter into a slot. Requests that use what it held before go on with the new one. UserError where it
        does not fit; then nothing has changed."""
        self._check(adapter)

        def filled(name: str, leaf: Adapted, layers: range) -> Adapted:
            a, b = self._padded(name, adapter, layers)
            at = np.int32((slot - 1) * len(layers))
            holds = leaf.holds.copy()
            holds[slot] = name in adapter.pairs
            return dataclasses.replace(leaf, a=_put(leaf.a, a, at), b=_put(leaf.b, b, at), holds=holds)

        self.params = self._each(filled, self.params)

    def of(self, parts: Iterable[Part]) -> tuple[np.ndarray, np.ndarray] | None:
        """The slot of each row of the page tables, and those in use as `Adapted` has them. None where no part has an
        adapter."""
        used = np.zeros(self._total, np.int32)
        for part in parts:
            self._slot[part.sequence.row] = part.sequence.adapter
        found = sorted({part.sequence.adapter for part in parts} - {NONE})
        used[: len(found)] = found
        return (self._slot, used) if found else None

    def padding(self) -> tuple[np.ndarray, np.ndarray]:
        """What `of` gives, of no request: to compile with."""
        return np.zeros_like(self._slot), np.zeros(self._total, np.int32)

    def _check(self, adapter: Adapter) -> None:
        if adapter.rank > self._rank:
            raise UserError(
                f"The adapter has rank {adapter.rank}, and this engine takes up to {self._rank}. Set a larger "
                "max_lora_rank."
            )
        n = sum(length(stack) for stack in self.params.layers)
        for name, (a, b) in adapter.pairs.items():
            k, m = self._matrices[name].matrix if name in self._matrices else (0, 0)
            if a.shape[:2] != (n, k) or b.shape != (n, a.shape[2], m):
                raise UserError(f"The adapter was made for another model: {name} does not fit this one.")

    def _each(self, change: Callable[[str, Any, range], Adapted], params: Any) -> Any:
        """The parameters with each matrix changed: its name, what is there, and which layers it is of."""
        stacks, first = [], 0
        for stack in params.layers:
            layers = range(first, first + length(stack))
            made = {name: change(name, getattr(stack, name), layers) for name in self._matrices}
            stacks.append(dataclasses.replace(stack, **made))
            first = layers.stop
        return dataclasses.replace(params, layers=tuple(stacks))

    def _padded(self, name: str, adapter: Adapter, layers: range) -> tuple[np.ndarray, np.ndarray]:
        """A and scale · B of these layers with the largest rank; zeros where the adapter has none."""
        k, m = self._matrices[name].matrix
        a, b = (np.zeros((len(layers), *shape), np.float32) for shape in ((k, self._rank), (self._rank, m)))
        if name in adapter.pairs:
            some = slice(layers.start, layers.stop)
            narrow_a, narrow_b = (x[some] for x in adapter.pairs[name])
            rank = narrow_a.shape[-1]
            a[..., :rank], b[:, :rank] = narrow_a, narrow_b * np.float32(adapter.scale)
        return a, b


def _zeros(n: int, k: int, m: int, dtype: DTypeLike) -> Any:
    """n matrices, packed where our kernels run."""
    if not cpu.available():
        return jnp.zeros((n, k, m), dtype)
    one = jax.eval_shape(lambda: rows.pack(jnp.zeros((k, m)), dtype))
    return Packed(jnp.zeros((n, *one.shape), one.dtype), (k, m))


def _put(pool: Any, new: np.ndarray, at: np.int32) -> Any:
    if not isinstance(pool, Packed):
        return _put_array(pool, new, at, packed=False)
    return dataclasses.replace(pool, panels=_put_array(pool.panels, new, at, packed=True))


@functools.partial(jax.jit, static_argnames="packed")
def _put_array(pool: Array, new: Float[Array, "n k m"], at: Int[Array, ""], packed: bool) -> Array:
    """The pool with new matrices from place `at` on. It is copied: steps that run still read the old one, and a load
    that fails leaves it as it was."""
    new = jax.lax.map(lambda w: rows.pack(w, pool.dtype), new) if packed else new.astype(pool.dtype)
    return jax.lax.dynamic_update_slice_in_dim(pool, new, at, 0)
