"""Which tensor of other programs is which leaf of ours: a table per family, and the two directions over it.

Their linear layers are [out, in], ours [in…, out…] with heads apart; GPT-2's are [in, out] with queries, keys and
values side by side. A table has one line for each of our leaves; reading and writing follow from it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from min_llm import models
from min_llm.config import UserError
from min_llm.models import ModelConfig, gpt2
from min_llm.nn.layers import length
from min_llm.nn.leaves import is_leaf
from min_llm.spec import is_param, leaves

Kind = Literal["table", "vector", "out, in", "in, out"]


@dataclasses.dataclass(frozen=True)
class Line:
    """One leaf of ours. name, gguf: theirs, with {i} for the layer's number. kind: how theirs lies. inputs: how many of
    our dimensions are contracted. part: theirs holds several of ours side by side, and ours is this one of so many."""

    name: str
    gguf: str
    kind: Kind = "vector"
    inputs: int = 1
    part: tuple[int, int] = (0, 1)

    def ours(self, theirs: Any, shape: tuple[int, ...]) -> Any:
        """Their tensor as our leaf of one layer; a ValueError where the shapes do not agree. A `Leaf` has their shape
        and is given ours."""
        if is_leaf(theirs):
            if theirs.shape != self.shape(shape):
                raise ValueError(theirs.shape)
            return dataclasses.replace(theirs, shape=shape)
        which, of = self.part
        if of > 1:
            theirs = np.split(theirs, of, axis=-1)[which]
        if self.kind == "out, in":
            theirs = theirs.T
        if theirs.shape != self._flat(shape):
            raise ValueError(theirs.shape)
        return theirs.reshape(shape)

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """Our array of one layer as their tensor, or the part of it that is ours."""
        flat = ours.reshape(self._flat(ours.shape))
        return flat.T if self.kind == "out, in" else flat

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Of their whole tensor."""
        *first, last = self._flat(ours)
        whole = (*first, last * self.part[1])
        return whole[::-1] if self.kind == "out, in" else whole

    def _flat(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Ours with inputs and outputs joined to one dimension each; a vector is one."""
        if self.kind == "vector":
            return (math.prod(shape),)
        return (
            shape
            if self.kind == "table"
            else (math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :]))
        )


def _llama(name: str, gguf: str, kind: Kind = "out, in", inputs: int = 1) -> Line:
    return Line("model.layers.{i}." + name, "blk.{i}." + gguf, kind, inputs)


def _gpt2(
    name: str, gguf: str, kind: Kind = "vector", inputs: int = 1, part: tuple[int, int] = (0, 1)
) -> Line:
    return Line("transformer.h.{i}." + name, "blk.{i}." + gguf, kind, inputs, part)


# leaf -> line; what a model does not have (biases, a head that is tied) is not looked for
TABLES: dict[str, dict[str, Line]] = {
    "llama": {
        "embed": Line("model.embed_tokens.weight", "token_embd.weight", "table"),
        "attn_norm": _llama("input_layernorm.weight", "attn_norm.weight", "vector"),
        "wq": _llama("self_attn.q_proj.weight", "attn_q.weight"),
        "wk": _llama("self_attn.k_proj.weight", "attn_k.weight"),
        "wv": _llama("self_attn.v_proj.weight", "attn_v.weight"),
        "bq": _llama("self_attn.q_proj.bias", "attn_q.bias", "vector"),
        "bk": _llama("self_attn.k_proj.bias", "attn_k.bias", "vector"),
        "bv": _llama("self_attn.v_proj.bias", "attn_v.bias", "vector"),
        "q_norm": _llama("self_attn.q_norm.weight", "attn_q_norm.weight", "vector"),
        "k_norm": _llama("self_attn.k_norm.weight", "attn_k_norm.weight", "vector"),
        "wo": _llama("self_attn.o_proj.weight", "attn_output.weight", inputs=2),
        "mlp_norm": _llama("post_attention_layernorm.weight", "ffn_norm.weight", "vector"),
        "w_gate": _llama("mlp.gate_proj.weight", "ffn_gate.weight"),
        "w_up": _llama("mlp.up_proj.weight", "ffn_up.weight"),
        "w_down": _llama("mlp.down_proj.weight", "ffn_down.weight"),
        "final_norm": Line("model.norm.weight", "output_norm.weight"),
        "head": Line("lm_head.weight", "output.weight", "out, in"),
    },
    "gpt2": {
        "embed": Line("transformer.wte.weight", "token_embd.weight", "table"),
        "positions": Line("transformer.wpe.weight", "position_embd.weight", "table"),
        "attn_norm_scale": _gpt2("ln_1.weight", "attn_norm.weight"),
        "attn_norm_bias": _gpt2("ln_1.bias", "attn_norm.bias"),
        "wq": _gpt2("attn.c_attn.weight", "attn_qkv.weight", "in, out", part=(0, 3)),
        "wk": _gpt2("attn.c_attn.weight", "attn_qkv.weight", "in, out", part=(1, 3)),
        "wv": _gpt2("attn.c_attn.weight", "attn_qkv.weight", "in, out", part=(2, 3)),
        "bq": _gpt2("attn.c_attn.bias", "attn_qkv.bias", part=(0, 3)),
        "bk": _gpt2("attn.c_attn.bias", "attn_qkv.bias", part=(1, 3)),
        "bv": _gpt2("attn.c_attn.bias", "attn_qkv.bias", part=(2, 3)),
        "wo": _gpt2("attn.c_proj.weight", "attn_output.weight", "in, out", 2),
        "bo": _gpt2("attn.c_proj.bias", "attn_output.bias"),
        "mlp_norm_scale": _gpt2("ln_2.weight", "ffn_norm.weight"),
        "mlp_norm_bias": _gpt2("ln_2.bias", "ffn_norm.bias"),
        "w_up": _gpt2("mlp.c_fc.weight", "ffn_up.weight", "in, out"),
        "b_up": _gpt2("mlp.c_fc.bias", "ffn_up.bias"),
        "w_down": _gpt2("mlp.c_proj.weight", "ffn_down.weight", "in, out"),
        "b_down": _gpt2("mlp.c_proj.bias", "ffn_down.bias"),
        "final_norm_scale": Line("transformer.ln_f.weight", "output_norm.weight"),
        "final_norm_bias": Line("transformer.ln_f.bias", "output_norm.bias"),
    },
}
# buffers that some checkpoints carry and no model needs
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def table(cfg: ModelConfig) -> dict[str, Line]:
    if cfg.family not in TABLES:
        raise UserError(
            f"A {cfg.family} can be neither read from nor written to other programs' files yet; those that can: "
            f"{', '.join(TABLES)}."
        )
    return TABLES[cfg.family]


class Row(NamedTuple):
    """One leaf of a model. name: dotted, "layers.0.wq". shape: of one layer. layers: those that it stacks; None where
    it belongs to no layer."""

    name: str
    line: Line
    shape: tuple[int, ...]
    layers: range | None

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    def theirs(self, i: int) -> str:
        """Its name in layer i by Hugging Face."""
        return self.line.name.format(i=i)

    @property
    def stacked(self) -> tuple[int, ...]:
        return self.shape if self.layers is None else (len(self.layers), *self.shape)


def rows(cfg: ModelConfig, sizes: Sequence[int] = ()) -> Iterator[Row]:
    """Every leaf of the model, in tree order. sizes: of the stacks in which its layers lie; all in one without them."""
    known, spec = table(cfg), models.spec(cfg)
    sizes = sizes or [jax.tree.leaves(spec.layers, is_leaf=is_param)[0].shape[0]]
    ends = list(itertools.accumulate(sizes))
    for name, param in leaves(dataclasses.replace(spec, layers=spec.layers * len(sizes))):
        line = known[name.rpartition(".")[2]]
        if name.startswith("layers."):
            end, n = ends[i := int(name.split(".")[1])], sizes[i]
            yield Row(name, line, param.shape[1:], range(end - n, end))
        else:
            yield Row(name, line, param.shape, None)


def read(
    cfg: ModelConfig,
    names: list[str],
    tensor: Callable[[str], Any],
    where: Any,
    dtype: str = "float32",
    sizes: Sequence[int] = (),
) -> Any:
    """Our parameters from their tensors, one leaf after the other: never more than the model and one leaf of it.

    names: all that are there, by Hugging Face's names. tensor: reads one, as an array, which becomes one of `dtype`, or
    as a `Leaf` of their shape, which stays what it is. sizes: of the stacks, as in `rows`. Raises UserError that lists
    what is missing, left over and misshapen.
    """
    here = set(names)
    short = (
        "transformer." if cfg.family == "gpt2" and "wte.weight" in here else ""
    )  # how OpenAI's are published

    def there(row: Row, i: int) -> str:
        return row.theirs(i).removeprefix(short)

    wanted = {there(row, i): row.line.shape(row.shape) for row in rows(cfg, sizes) for i in row.layers or [0]}
    missing = sorted(wanted.keys() - here)
    surplus = sorted(
        name for name in here - wanted.keys() if not name.endswith(IGNORED) and not _tied(cfg, name)
    )
    if missing or surplus:
        raise UserError(
            f"{where} does not hold this model. {_listed('Missing', missing)}{_listed('Left over', surplus)}"
        )
    wrong: list[str] = []

    def piece(row: Row, i: int) -> Any:
        name = there(row, i)
        theirs = tensor(name)
        try:
            return row.line.ours(theirs, row.shape)
        except ValueError:
            wrong.append(f"{name} {list(theirs.shape)}, not {list(wanted[name])}")
            return theirs if is_leaf(theirs) else np.zeros(row.shape, np.float32)

    def leaf(row: Row) -> Any:
        if row.layers is None:
            one = piece(row, 0)
            return jax.tree.map(jnp.asarray, one) if is_leaf(one) else jnp.asarray(one, dtype)
        first = piece(row, row.layers[0])
        if is_leaf(first):
            others = [piece(row, i) for i in row.layers[1:]]
            return first if wrong else jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), first, *others)
        stacked = np.empty(row.stacked, jnp.dtype(dtype))
        stacked[0] = first
        for i in row.layers[1:]:
            stacked[i - row.layers.start] = piece(row, i)
        return jnp.asarray(stacked)

    found = {row.name: leaf(row) for row in rows(cfg, sizes)}
    if wrong:
        raise UserError(f"{where} does not hold this model. {_listed('Misshapen', sorted(set(wrong)))}")
    return from_names(cfg, found, sizes)


def from_names(cfg: ModelConfig, found: Mapping[str, Any], sizes: Sequence[int] = ()) -> Any:
    """The parameter tree of a model from its leaves by their dotted names."""
    spec = models.spec(cfg)
    spec = dataclasses.replace(spec, layers=spec.layers * (len(sizes) or 1))
    order = [found[name] for name, _ in leaves(spec)]
    return jax.tree.unflatten(jax.tree.structure(spec, is_leaf=is_param), order)


def with_biases(cfg: ModelConfig, params: Any) -> tuple[ModelConfig, Any]:
    """The same model as other programs can have it: their GPT-2 has all biases, so that absent ones become zeros."""
    if not isinstance(cfg, gpt2.Config) or cfg.bias:
        return cfg, params
    full = dataclasses.replace(cfg, bias=True)
    given = dict(zip((row.name for row in rows(cfg)), jax.tree.leaves(params), strict=True))
    zeros = {row.name: np.zeros(row.stacked, np.float32) for row in rows(full) if row.name not in given}
    return full, from_names(full, zeros | given)


def placed(cfg: ModelConfig, params: Any) -> list[tuple[Row, Any]]:
    """Every leaf of these parameters with what it is."""
    sizes = [length(stack) for stack in params.layers]
    return list(zip(rows(cfg, sizes), jax.tree.leaves(params, is_leaf=is_leaf), strict=True))


def write(cfg: ModelConfig, params: Any) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Any]]]:
    """(their name, shape, what makes it) of every tensor, layer by layer as their files have them. A `Leaf` is made as
    that of one layer."""
    every = placed(cfg, params)
    inner = [(row, leaf) for row, leaf in every if row.layers]
    outer = [(row, leaf) for row, leaf in every if not row.layers]
    first = next(i for i, (row, _) in enumerate(every) if row.layers)
    yield from _tensors(outer[:first], 0)
    for i in range(max(row.layers.stop for row, _ in inner if row.layers)):
        yield from _tensors([(row, leaf) for row, leaf in inner if row.layers and i in row.layers], i)
    yield from _tensors(outer[first:], 0)


def _tensors(some: list[tuple[Row, Any]], i: int) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Any]]]:
    """Of layer i, or of what is outside of them; leaves that are parts of one tensor follow each other in a table."""

    def one(row: Row, leaf: Any) -> Any:
        at = ... if row.layers is None else i - row.layers.start
        if is_leaf(leaf):
            return jax.tree.map(lambda a: a[at], leaf)
        return row.line.theirs(np.asarray(leaf[at]))

    def make(group: list[tuple[Row, Any]]) -> Any:
        return one(*group[0]) if len(group) == 1 else np.concatenate([one(*part) for part in group], axis=-1)

    for their_name, found in itertools.groupby(some, lambda placed: placed[0].theirs(i)):
        group = list(found)
        row = group[0][0]
        yield their_name, row.line.shape(row.shape), functools.partial(make, group)


def _tied(cfg: ModelConfig, name: str) -> bool:
    """Whether it is a head that repeats the embedding table."""
    return name == "lm_head.weight" and (cfg.family == "gpt2" or getattr(cfg, "tie_embeddings", False))


def _listed(what: str, names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(names[:most])}{more}. " if names else ""
