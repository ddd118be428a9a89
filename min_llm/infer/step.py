"""What one step of the engine does on the device. Every function here is compiled for a few shapes, when the engine
starts, and never again: what changes from step to step is in arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from min_llm import models, platform
from min_llm.config import UserError
from min_llm.infer import choose, drawing, lora_slots, paged
from min_llm.infer.answer import Answer
from min_llm.infer.lora_slots import Slots
from min_llm.infer.paged import PagedCache
from min_llm.infer.pages import TRASH, Pages
from min_llm.infer.prepare import prepared
from min_llm.infer.request import MOST_TOPS, Token
from min_llm.infer.scheduler import BLOCK, Plan
from min_llm.kernels import elementwise
from min_llm.kernels.attention.paged import Pool
from min_llm.models import ModelConfig
from min_llm.nn import axes
from min_llm.nn.batch import Batch
from min_llm.nn.leaves import unembed
from min_llm.nn.lora import Adapter
from min_llm.nn.runtime import Runtime

COPIES = 8  # pages copied by one call


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a plan's tokens lie. tokens, row, index [T] as in PagedCache; sample_at [S]: the places whose next token is
    drawn, 0 beyond those."""

    tokens: np.ndarray
    row: np.ndarray
    index: np.ndarray
    sample_at: np.ndarray
    singles: int


def lay_out(plan: Plan, singles: int, chunk: int, samples: int) -> tuple[Layout, list[int]]:
    """The plan in `singles` rows and `chunk` places in blocks, with room for `samples` draws, and where each of its
    parts begins."""
    size = singles + chunk
    tokens, row, index = (np.zeros(size, np.int32) for _ in range(3))
    index[:] = -1
    sample_at, starts, drawn = np.zeros(samples, np.int32), [], 0
    at, block = 0, singles
    for parts, blocked in ((plan.singles, False), (plan.chunks, True)):
        for part in parts:
            first = block if blocked else at
            sequence, end = part.sequence, first + part.count
            text = sequence.tokens + sequence.drafts if sequence.drafts else sequence.tokens
            tokens[first:end] = text[part.start : part.start + part.count]
            index[first:end] = np.arange(part.start, part.start + part.count)
            taken = -(-part.count // BLOCK) * BLOCK if blocked else part.count
            assert sequence.row is not None
            row[first : first + taken] = sequence.row
            starts.append(first)
            if part.samples:
                n = 1 if blocked else part.count
                sample_at[drawn : drawn + n] = np.arange(end - n, end)
                drawn += n
            if blocked:
                block += taken
            else:
                at += taken
    return Layout(tokens, row, index, sample_at, singles), starts


@functools.partial(
    jax.jit, static_argnames=("cfg", "runtime", "singles", "vocab"), donate_argnames=("keys", "values")
)
def forward(
    params: Any,
    head: Any,
    keys: Pool,
    values: Pool,
    tables: Int[Array, "r m"],
    places: Int[Array, "3 t"],
    sample_at: Int[Array, " s"],
    *,
    cfg: ModelConfig,
    runtime: Runtime,
    singles: int,
    vocab: int,
    slots: tuple[Array, Array] | None = None,
) -> tuple[Float[Array, "s v"], Float[Array, "t d"], Pool, Pool]:
    """Logits at `sample_at`, the hidden states of all tokens, and the updated pool. places: tokens, row, index. slots:
    of the adapters, as `Slots.of` gives them, where params have some."""
    tokens, row, index = places
    if slots is not None:
        table, used = slots  # padding has what others have
        params = lora_slots.aimed(params, jnp.where(index < 0, used[0], table[row]), used)
    cache = PagedCache(keys, values, tables, row, index, singles)
    at = jnp.maximum(index, 0)[None]
    batch = Batch(tokens[None], positions=at, index=at)
    with elementwise.rows_apart():
        hidden, cache = models.forward(params, cfg, batch, runtime, cache)
    hidden = axes.shard(hidden, None, None, None)
    return _logits(head, hidden[0, sample_at], vocab), hidden[0], cache.keys, cache.values


def _logits(head: Any, hidden: Float[Array, "n d"], vocab: int) -> Float[Array, "n v"]:
    """The tokenizer's part of the logits, whole on every device."""
    return axes.shard(unembed(hidden[None], head), None, None, None)[0, :, :vocab]


@functools.partial(jax.jit, donate_argnames=("keys", "values"))
def copy_pages(
    keys: Pool, values: Pool, source: Int[Array, " n"], target: Int[Array, " n"]
) -> tuple[Pool, Pool]:
    """Whole pages, all read before any is written."""
    return jax.tree.map(lambda x: x.at[:, target].set(x[:, source]), (keys, values))


project = jax.jit(_logits, static_argnames="vocab")


@functools.partial(jax.jit, static_argnames="k")
def score(
    logits: Float[Array, "t v"], targets: Int[Array, " t"], k: int
) -> tuple[Float[Array, " t"], Int[Array, "t k"], Float[Array, "t k"]]:
    """Log-probabilities of given next tokens, and of the k likeliest ones."""
    return choose.logprobs(logits, targets[:, None])[:, 0], *choose.tops(logits, k)


class Program:
    """A model's parameters, its pool of pages, and the compiled steps, on the mesh in use when it is made. kv_dtype: of
    the pool. singles, chunks: the sizes that steps have. release: give the parameters' memory back as they are packed.
    loras: how many adapters there may be, and of what rank."""

    def __init__(
        self, params: Any, cfg: ModelConfig, runtime: Runtime, vocab: int, pages: Pages, tables: tuple[int, int],
        kv_dtype: str, singles: Sequence[int], chunks: Sequence[int], release: bool = False,
        loras: tuple[int, int] = (0, 0),
    ) -> None:  # fmt: skip
        if set(axes.sizes()) - {"tp"}:
            raise UserError(
                "The engine runs on one device or on a tensor-parallel mesh: set all axes but tp to 1."
            )
        mesh = jax.sharding.get_mesh() if axes.on_mesh() else None
        self._mesh = functools.partial(jax.set_mesh, mesh) if mesh else contextlib.nullcontext
        self._alone = platform.first_device if mesh else contextlib.nullcontext
        if mesh:
            layouts = axes.shardings(models.spec(cfg))
            params = jax.tree.map(lambda w, p: jax.device_put(w, NamedSharding(mesh, p)), params, layouts)
        self._params, self._head, self._runtime = prepared(params, cfg, runtime, release)
        self.vocab, self._cfg, self._pages, self._kv_dtype = vocab, cfg, pages, kv_dtype
        self._singles, self._chunks = sorted(singles), sorted(chunks)
        self._tables = np.zeros(tables, np.int32)
        self._slots: Slots | None = None
        if loras[0]:
            if mesh:
                raise UserError("Adapters are served on one device: set tp to 1, or max_loras to 0.")
            self._slots = Slots(self._params, cfg, *loras, tables[0], self._runtime.dtype)
        self.empty()

    @property
    def dim(self) -> int:
        """Of the hidden states."""
        return int(self._cfg.dim)  # type: ignore[attr-defined]

    def empty(self) -> None:
        """Forget what the pages hold."""
        with self._mesh():
            pool = paged.pool(self._cfg, self._pages.total, self._pages.size, self._kv_dtype)
        self._keys, self._values = pool

    def run(self, plan: Plan) -> tuple[Array, Array, list[int]]:
        """Logits [S, V] of the places whose next token is drawn, in the order of the plan, then padding; hidden states
        of all places; where each part of the plan begins among them."""
        for i in range(0, len(plan.copies), COPIES):
            self._copy(plan.copies[i : i + COPIES])
        layout, starts = lay_out(plan, *self._shape(plan))
        for part in plan.parts:
            pages = part.sequence.pages
            self._tables[part.sequence.row, : len(pages)] = pages
        slots = None if self._slots is None else self._slots.of(plan.parts)
        return *self._forward(layout, slots), starts

    def fill(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter into a slot that no running request uses."""
        assert self._slots is not None
        self._slots.fill(slot, adapter)

    def score(self, hidden: Array, targets: np.ndarray, k: int) -> list[np.ndarray]:
        """`score` of the last step's hidden states, for k up to 1 or up to MOST_TOPS."""
        most = 1 if k <= 1 else MOST_TOPS
        with self._mesh():
            logits = project(self._head, hidden, vocab=self.vocab)
        with self._alone():
            return [np.asarray(a) for a in score(_here(logits), targets, k=most)]

    def draw(self, logits: Array, wanted: list[tuple[Answer, int]]) -> list[Token]:
        """`drawing.draw` on the first device."""
        with self._alone():
            return drawing.draw(logits, wanted)

    def warm_up(self) -> None:
        """Compile everything, by computing padding."""
        self._copy([(TRASH, TRASH)])
        if self._slots is not None:
            self._slots.fill(1, Adapter({}, 0.0))
        for shape in self._shapes():
            layout, _ = lay_out(Plan(), *shape)
            logits, hidden = self._forward(layout)
            if self._slots is not None:
                self._forward(layout, self._slots.padding())
            if shape[1]:
                for k in (1, MOST_TOPS):
                    self.score(hidden, np.zeros(hidden.shape[0], np.int32), k)
            else:
                with self._alone():
                    drawing.warm_up(logits)

    def _shapes(self) -> list[tuple[int, int, int]]:
        """Singles, places in blocks, and draws of the steps that are compiled, smaller ones first. Prompts with nothing
        else running have steps of their own: of 64 tokens beside 16 idle rows a fifth would be idle."""
        most = self._singles[-1]
        alone = [(0, chunk, most) for chunk in self._chunks]
        return [(n, 0, n) for n in self._singles] + alone + [(most, chunk, most) for chunk in self._chunks]

    def _shape(self, plan: Plan) -> tuple[int, int, int]:
        """The smallest compiled one that holds the plan."""
        singles = sum(p.count for p in plan.singles)
        blocked = sum(-(-p.count // BLOCK) * BLOCK for p in plan.chunks)
        draws = singles + sum(p.samples for p in plan.chunks)
        return next(
            shape
            for shape in self._shapes()
            if shape[0] >= singles and shape[1] >= blocked and shape[2] >= draws
        )

    def _forward(
        self, layout: Layout, slots: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[Array, Array]:
        """A step without adapters runs the program without them."""
        params = self._params if slots is None or self._slots is None else self._slots.params
        places = np.stack([layout.tokens, layout.row, layout.index])
        with self._mesh():
            logits, hidden, self._keys, self._values = forward(
                params, self._head, self._keys, self._values, self._tables, places, layout.sample_at,
                cfg=self._cfg, runtime=self._runtime, singles=layout.singles, vocab=self.vocab, slots=slots,
            )  # fmt: skip
        return _here(logits), hidden

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        source, target = np.full((2, COPIES), TRASH, np.int32)
        for i, (a, b) in enumerate(copies):
            source[i], target[i] = a, b
        with self._mesh():
            self._keys, self._values = copy_pages(self._keys, self._values, source, target)


def _here(x: Array) -> Array:
    """What every device of the mesh has, on the first alone, where the tokens are drawn."""
    return x if len(x.devices()) == 1 else x.addressable_data(0)
