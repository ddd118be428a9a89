"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU, tied embeddings, biases.

    x = embed[tokens] + positions[p]
    each layer:   x += wo · attention(wq·n, wk·n, wv·n) + bo,   n = layer_norm(x)
                  x += w_down · gelu(w_up·n + b_up) + b_down,   n = layer_norm(x)
    logits = embedᵀ · layer_norm(x)

`bias=False` removes every bias, as nanoGPT does by default.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from min_llm.config import UserError
from min_llm.models import ModelConfig
from min_llm.nn import axes
from min_llm.nn.activations import gelu
from min_llm.nn.batch import Batch
from min_llm.nn.dropout import dropout, split
from min_llm.nn.layers import run_layers
from min_llm.nn.leaves import dot, dots, embed, plus
from min_llm.nn.norm import layer_norm
from min_llm.nn.probe import probe
from min_llm.nn.runtime import Runtime
from min_llm.spec import Param, stack


@dataclasses.dataclass(frozen=True)
class Config(ModelConfig):
    n_layers: int = 4
    dim: int = 256
    n_heads: int = 8
    hidden_dim: int = 0  # 0: 4 dim
    norm_eps: float = 1e-5
    bias: bool = True
    init_std: float = 0.02

    family = "gpt2"

    def __post_init__(self) -> None:
        if not self.hidden_dim:
            object.__setattr__(self, "hidden_dim", 4 * self.dim)

    @property
    def n_kv_heads(self) -> int:
        return self.n_heads

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def checked(self, path: str = "model") -> Config:
        if min(self.n_layers, self.dim, self.n_heads) < 1:
            raise UserError(f"'{path}' needs n_layers, dim and n_heads of at least 1.")
        if self.dim % self.n_heads:
            raise UserError(
                f"'{path}.dim' ({self.dim}) must be a multiple of '{path}.n_heads' ({self.n_heads})."
            )
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    attn_norm_scale: Any
    attn_norm_bias: Any
    wq: Any
    wk: Any
    wv: Any
    bq: Any
    bk: Any
    bv: Any
    wo: Any
    bo: Any
    mlp_norm_scale: Any
    mlp_norm_bias: Any
    w_up: Any
    b_up: Any
    w_down: Any
    b_down: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GPT2:
    embed: Any
    positions: Any
    layers: tuple[Layer, ...]
    final_norm_scale: Any
    final_norm_bias: Any


def layer_spec(cfg: Config) -> Layer:
    d, h, k, f = cfg.dim, cfg.n_heads, cfg.head_dim, cfg.hidden_dim
    std = cfg.init_std
    out = std / (2 * cfg.n_layers) ** 0.5  # residual projections (GPT-2 section 2.3)

    def bias(shape: tuple[int, ...], *names: str | None) -> Param | None:
        return Param(shape, names, None, "bias") if cfg.bias else None

    return Layer(
        attn_norm_scale=Param((d,), (None,), None, "norm", fill=1.0),
        attn_norm_bias=bias((d,), None),
        wq=Param((d, h, k), ("embed", "heads", "head_dim"), std, "matrix"),
        wk=Param((d, h, k), ("embed", "heads", "head_dim"), std, "matrix"),
        wv=Param((d, h, k), ("embed", "heads", "head_dim"), std, "matrix"),
        bq=bias((h, k), "heads", "head_dim"),
        bk=bias((h, k), "heads", "head_dim"),
        bv=bias((h, k), "heads", "head_dim"),
        wo=Param((h, k, d), ("heads", "head_dim", "embed"), out, "matrix"),
        bo=bias((d,), None),
        mlp_norm_scale=Param((d,), (None,), None, "norm", fill=1.0),
        mlp_norm_bias=bias((d,), None),
        w_up=Param((d, f), ("embed", "hidden"), std, "matrix"),
        b_up=bias((f,), "hidden"),
        w_down=Param((f, d), ("hidden", "embed"), out, "matrix"),
        b_down=bias((d,), None),
    )


def spec(cfg: Config) -> GPT2:
    v, t, d = cfg.vocab_size, cfg.max_seq_len, cfg.dim
    return GPT2(
        embed=Param((v, d), ("vocab", "embed"), cfg.init_std, "embedding"),
        positions=Param((t, d), ("position", "embed"), cfg.init_std, "embedding"),
        layers=(stack(layer_spec(cfg), cfg.n_layers),),
        final_norm_scale=Param((d,), (None,), None, "norm", fill=1.0),
        final_norm_bias=Param((d,), (None,), None, "bias") if cfg.bias else None,
    )


def head(params: GPT2) -> Float[Array, "d v"]:
    return params.embed.T


def forward(
    params: GPT2, cfg: Config, batch: Batch, runtime: Runtime, cache: Any, key: Any
) -> tuple[Float[Array, "b s d"], Any]:
    """Hidden states after the final norm, in the compute dtype, and the updated cache."""
    s = batch.tokens.shape[1]
    if batch.positions is None and s > cfg.max_seq_len:
        raise UserError(f"{s} tokens do not fit this GPT-2, which has learned {cfg.max_seq_len} positions.")
    dtype = jnp.dtype(runtime.dtype)
    mask = cache.mask(batch, None)

    def layer(i: Any, w: Layer, x: Array, cache: Any, mask: Any) -> tuple[Array, Any]:
        keys = split(None if key is None else jax.random.fold_in(key, i), 2)
        out, cache = attention(w, cfg, x, mask, i, cache, runtime)
        x = x + dropout(probe("attention", out), cfg.dropout, keys[0])
        x = x + dropout(probe("mlp", mlp(w, cfg, x)), cfg.dropout, keys[1])
        return probe("residual", x), cache

    x = embed(batch.tokens, params.embed, dtype)
    if batch.positions is None:
        x = x + axes.shard(params.positions[:s].astype(dtype)[None], None, "residual", "features")
    else:
        x = x + embed(batch.positions, params.positions, dtype)
    x = dropout(x, cfg.dropout, None if key is None else jax.random.fold_in(key, cfg.n_layers))
    x, cache = run_layers(layer, params.layers, x, cache, mask, runtime)
    return layer_norm(x, params.final_norm_scale, params.final_norm_bias, cfg.norm_eps), cache


def attention(
    w: Layer, cfg: Config, x: Float[Array, "b s d"], mask: Any, i: Any, cache: Any, runtime: Runtime
) -> tuple[Float[Array, "b s d"], Any]:
    n = axes.shard(
        layer_norm(x, w.attn_norm_scale, w.attn_norm_bias, cfg.norm_eps), "batch", "seq", "features"
    )
    q, k, v = map(plus, dots("bsd,dhk->bshk", n, w.wq, w.wk, w.wv), (w.bq, w.bk, w.bv))
    out, cache = cache.attend(i, q, k, v, mask, runtime)
    return plus(dot("bshk,hkd->bsd", out, w.wo, "batch", "residual", "features"), w.bo), cache


def mlp(w: Layer, cfg: Config, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    n = axes.shard(layer_norm(x, w.mlp_norm_scale, w.mlp_norm_bias, cfg.norm_eps), "batch", "seq", "features")
    hidden = gelu(plus(dot("bsd,df->bsf", n, w.w_up), w.b_up))
    return plus(dot("bsf,fd->bsd", hidden, w.w_down, "batch", "residual", "features"), w.b_down)


def _gpt2(n_layers: int, dim: int, n_heads: int) -> Config:
    return Config(n_layers=n_layers, dim=dim, n_heads=n_heads, vocab_size=50_257, max_seq_len=1024)


PRESETS = {
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
}
