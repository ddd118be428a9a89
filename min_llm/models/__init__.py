"""Model families: one file each, plus its line in `FAMILIES`.

A family module has a frozen config class (`Config`), `PRESETS`, and pure functions:

    spec(cfg) -> the parameter dataclass with `Param` leaves
    forward(params, cfg, batch, runtime, cache, key) -> (hidden [B, S, D], cache)
    head(params) -> the output matrix [D, V]

`init`, `loss` and `logits` below are written once, over those.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from min_llm.config import UserError, build_fields, nearest
from min_llm.nn import axes, initial
from min_llm.nn.batch import Batch
from min_llm.nn.cache import NoCache
from min_llm.nn.cross_entropy import cross_entropy
from min_llm.nn.leaves import unembed
from min_llm.nn.runtime import Runtime

FAMILIES = {
    "llama": "min_llm.models.llama",
    "mixtral": "min_llm.models.mixtral",
    "gpt2": "min_llm.models.gpt2",
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What every family's config has. `vocab_size` 0 means "the tokenizer's"."""

    vocab_size: int = 0
    max_seq_len: int = 1024
    dropout: float = 0.0

    family = ""

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], path: str) -> ModelConfig:
        """The config of `family` (llama by default) or of `preset`, with the other keys on top."""
        rest = {k: v for k, v in given.items() if k not in ("family", "preset")}
        name = given.get("preset")
        if name is not None:
            cfg = preset(name)
            if given.get("family", cfg.family) != cfg.family:
                raise UserError(
                    f"Preset {name!r} is a {cfg.family}, but '{path}.family' says {given['family']!r}."
                )
            base = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
            return build_fields(type(cfg), base | rest, path).checked(path)
        family = given.get("family", "llama")
        if family not in FAMILIES:
            raise UserError(f"There is no model family {family!r}.{nearest(str(family), list(FAMILIES))}")
        return build_fields(module(family).Config, rest, path).checked(path)

    def to_mapping(self) -> dict[str, Any]:
        return {"family": self.family} | {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def checked(self, path: str = "model") -> ModelConfig:
        """Itself, or a sentence about what does not fit."""
        return self


def module(family: str) -> Any:
    return importlib.import_module(FAMILIES[family])


def of(cfg: ModelConfig) -> Any:
    """The module of a config's family."""
    return module(cfg.family)


def presets() -> dict[str, ModelConfig]:
    """Every named configuration of every family."""
    return {name: cfg for family in FAMILIES for name, cfg in module(family).PRESETS.items()}


def preset(name: str) -> ModelConfig:
    known = presets()
    if name not in known:
        raise UserError(f"There is no preset {name!r}.{nearest(str(name), list(known))}")
    return known[name]


def spec(cfg: ModelConfig) -> Any:
    """The parameter tree of a config, with `Param` leaves."""
    if cfg.vocab_size <= 0:
        raise UserError(
            "The model's vocab_size is not set. Give model.vocab_size, or train with a tokenizer."
        )
    return of(cfg).spec(cfg)


def init(cfg: ModelConfig, seed: int) -> Any:
    """Fresh parameters, float32, laid out over the mesh in use."""
    return init_spec(spec(cfg), seed)


def init_spec(tree: Any, seed: int) -> Any:
    """`init` from a spec."""
    return initial.init(tree, jax.random.key(seed), shardings=axes.shardings(tree))


def forward(
    params: Any, cfg: ModelConfig, batch: Batch, runtime: Runtime, cache: Any = None, key: Any = None
) -> tuple[Float[Array, "b s d"], Any]:
    """Hidden states after the final norm, and the cache. key: dropout (training only)."""
    return of(cfg).forward(params, cfg, batch, runtime, NoCache() if cache is None else cache, key)


def logits(
    params: Any, cfg: ModelConfig, batch: Batch, runtime: Runtime, cache: Any = None
) -> tuple[Float[Array, "b s v"], Any]:
    """Float32 logits of every position, and the cache."""
    hidden, cache = forward(params, cfg, batch, runtime, cache)
    return unembed(hidden, of(cfg).head(params)), cache


def loss_sum(
    params: Any, cfg: ModelConfig, batch: Batch, runtime: Runtime, key: Any = None
) -> Float[Array, ""]:
    """Σ weights · nll over the batch, in nats. Divide by Σ weights for the mean."""
    if batch.targets is None:
        raise ValueError("A loss needs targets; this Batch has none.")
    hidden, _ = forward(params, cfg, batch, runtime, key=key)
    return cross_entropy(hidden, of(cfg).head(params), batch.targets, batch.weights, runtime.logits_per_chunk)
