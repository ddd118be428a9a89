"""Llama 3 (The Llama 3 Herd of Models, section 3.2): a dense pre-norm decoder.

    x = embed[tokens]
    each layer:   x += wo · attention(rope(wq·n), rope(wk·n), wv·n),   n = rms_norm(x)      grouped-query attention
                  x += w_down · (silu(w_gate·n) ∘ w_up·n),             n = rms_norm(x)      SwiGLU
    logits = head · rms_norm(x)

Relatives of Llama are this model with a field set: `window` (Mistral), `qkv_bias` (Qwen2), `qk_norm` (Qwen3). What
Llama's own choices are worth is seen without them: `gated`, n_kv_heads, rope_theta (apps/ablations).

Shapes: b batch, s sequence, d model dimension, h query heads, g key-value heads, k head dimension, f hidden,
v vocabulary.
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
from min_llm.nn.gated import gated
from min_llm.nn.layers import run_layers
from min_llm.nn.leaves import dot, dots, embed, plus
from min_llm.nn.norm import rms_norm
from min_llm.nn.probe import probe
from min_llm.nn.rope import RopeScaling, angles, rotate
from min_llm.nn.runtime import Runtime
from min_llm.spec import Param, stack


@dataclasses.dataclass(frozen=True)
class Config(ModelConfig):
    n_layers: int = 4
    dim: int = 256
    n_heads: int = 8
    n_kv_heads: int = 4
    head_dim: int = 0  # 0: dim / n_heads
    hidden_dim: int = (
        0  # 0: 8/3 dim, rounded up to a multiple of 32; without a gate 4 dim, as many parameters
    )
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    window: int | None = None  # sliding-window attention, as in Mistral; Llama has none
    qkv_bias: bool = False  # biases of queries, keys and values, as in Qwen2; Llama has none
    qk_norm: bool = (
        False  # RMSNorm of each head's query and key before they are rotated, as in Qwen3; Llama has none
    )
    gated: bool = True  # SwiGLU; without the gate the network is w_down · gelu(w_up·n), as in GPT-2
    init_std: float = 0.02

    family = "llama"

    def __post_init__(self) -> None:
        if not self.head_dim and self.n_heads > 0:
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if not self.hidden_dim:
            wide = -(-8 * self.dim // 3 // 32) * 32 if self.gated else 4 * self.dim
            object.__setattr__(self, "hidden_dim", wide)

    def checked(self, path: str = "model") -> Config:
        if min(self.n_layers, self.dim, self.n_heads, self.n_kv_heads) < 1:
            raise UserError(f"'{path}' needs n_layers, dim, n_heads and n_kv_heads of at least 1.")
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"'{path}.n_heads' ({self.n_heads}) must be a multiple of '{path}.n_kv_heads' ({self.n_kv_heads})."
            )
        if self.head_dim % 2:
            raise UserError(f"'{path}.head_dim' is {self.head_dim}; rotary embedding needs an even one.")
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    attn_norm: Any
    wq: Any
    wk: Any
    wv: Any
    bq: Any  # these three None without qkv_bias
    bk: Any
    bv: Any
    q_norm: Any  # these two None without qk_norm
    k_norm: Any
    wo: Any
    mlp_norm: Any
    w_gate: Any  # None where the network has no gate
    w_up: Any
    w_down: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Llama:
    embed: Any
    layers: tuple[Layer, ...]
    final_norm: Any
    head: Any  # None when tied


def layer_spec(cfg: Config) -> Layer:
    d, h, g, k, f = cfg.dim, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim, cfg.hidden_dim
    std = cfg.init_std
    out = std / (2 * cfg.n_layers) ** 0.5  # what is added to the residual stream (GPT-2 section 2.3)

    def bias(heads: int, name: str) -> Param | None:
        return Param((heads, k), (name, "head_dim"), None, "bias") if cfg.qkv_bias else None

    def norm_of_heads() -> Param | None:
        return Param((k,), (None,), None, "norm", fill=1.0) if cfg.qk_norm else None

    return Layer(
        attn_norm=Param((d,), (None,), None, "norm", fill=1.0),
        wq=Param((d, h, k), ("embed", "heads", "head_dim"), std, "matrix"),
        wk=Param((d, g, k), ("embed", "kv_heads", "head_dim"), std, "matrix"),
        wv=Param((d, g, k), ("embed", "kv_heads", "head_dim"), std, "matrix"),
        bq=bias(h, "heads"),
        bk=bias(g, "kv_heads"),
        bv=bias(g, "kv_heads"),
        q_norm=norm_of_heads(),
        k_norm=norm_of_heads(),
        wo=Param((h, k, d), ("heads", "head_dim", "embed"), out, "matrix"),
        mlp_norm=Param((d,), (None,), None, "norm", fill=1.0),
        w_gate=Param((d, f), ("embed", "hidden"), std, "matrix") if cfg.gated else None,
        w_up=Param((d, f), ("embed", "hidden"), std, "matrix"),
        w_down=Param((f, d), ("hidden", "embed"), out, "matrix"),
    )


def spec(cfg: Config) -> Llama:
    v, d = cfg.vocab_size, cfg.dim
    return Llama(
        embed=Param((v, d), ("vocab", "embed"), cfg.init_std, "embedding"),
        layers=(stack(layer_spec(cfg), cfg.n_layers),),
        final_norm=Param((d,), (None,), None, "norm", fill=1.0),
        head=None if cfg.tie_embeddings else Param((d, v), ("embed", "vocab"), cfg.init_std, "head"),
    )


def head(params: Llama) -> Float[Array, "d v"]:
    return params.embed.T if params.head is None else params.head


def forward(
    params: Llama, cfg: Config, batch: Batch, runtime: Runtime, cache: Any, key: Any
) -> tuple[Float[Array, "b s d"], Any]:
    """Hidden states after the final norm, in the compute dtype, and the updated cache."""
    return decoder(mlp, params, cfg, batch, runtime, cache, key)


def decoder(
    mlp: Any, params: Llama, cfg: Config, batch: Batch, runtime: Runtime, cache: Any, key: Any
) -> tuple[Float[Array, "b s d"], Any]:
    """`forward` of this family and of those that differ from it in the feed-forward network alone: mlp(w, cfg, x)."""
    positions = jnp.arange(batch.tokens.shape[1])[None] if batch.positions is None else batch.positions
    rope = angles(positions, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
    mask = cache.mask(batch, cfg.window)

    def layer(i: Any, w: Layer, x: Array, cache: Any, rows: Any) -> tuple[Array, Any]:
        rope, mask = rows
        keys = split(None if key is None else jax.random.fold_in(key, i), 2)
        out, cache = attention(w, cfg, x, rope, mask, i, cache, runtime)
        x = x + dropout(probe("attention", out), cfg.dropout, keys[0])
        x = x + dropout(probe("mlp", mlp(w, cfg, x)), cfg.dropout, keys[1])
        return probe("residual", x), cache

    x = embed(batch.tokens, params.embed, jnp.dtype(runtime.dtype))
    x, cache = run_layers(layer, params.layers, x, cache, (rope, mask), runtime)
    return rms_norm(x, params.final_norm, cfg.norm_eps), cache


def attention(
    w: Layer,
    cfg: Config,
    x: Float[Array, "b s d"],
    rope: tuple,
    mask: Any,
    i: Any,
    cache: Any,
    runtime: Runtime,
) -> tuple[Float[Array, "b s d"], Any]:
    n = axes.shard(rms_norm(x, w.attn_norm, cfg.norm_eps), "batch", "seq", "features")
    q, k, v = map(plus, dots("bsd,dhk->bshk", n, w.wq, w.wk, w.wv), (w.bq, w.bk, w.bv))
    if cfg.qk_norm:
        q, k = rms_norm(q, w.q_norm, cfg.norm_eps), rms_norm(k, w.k_norm, cfg.norm_eps)
    q, k = rotate(q, *rope), rotate(k, *rope)
    out, cache = cache.attend(i, q, k, v, mask, runtime)
    return dot("bshk,hkd->bsd", out, w.wo, "batch", "residual", "features"), cache


def mlp(w: Layer, cfg: Config, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    n = axes.shard(rms_norm(x, w.mlp_norm, cfg.norm_eps), "batch", "seq", "features")
    if cfg.gated:
        return gated(n, w.w_gate, w.w_up, w.w_down)
    hidden = gelu(dot("bsd,df->bsf", n, w.w_up))
    return dot("bsf,fd->bsd", hidden, w.w_down, "batch", "residual", "features")


def _llama3(n_layers: int, dim: int, n_heads: int, hidden_dim: int, **changes: Any) -> Config:
    """Table 3 of the paper; 128,000 tokens and 256 specials (llama-models)."""
    fields: dict[str, Any] = dict(n_kv_heads=8, vocab_size=128_256, max_seq_len=8192) | changes
    return Config(n_layers=n_layers, dim=dim, n_heads=n_heads, hidden_dim=hidden_dim, **fields)


# Llama 3.2 (llama-models): tied embeddings, context extended with factor 32, not 8
_LLAMA32: dict[str, Any] = dict(
    tie_embeddings=True, max_seq_len=131_072, rope_scaling=RopeScaling(factor=32.0)
)

PRESETS = {
    "llama3-8b": _llama3(32, 4096, 32, 14_336),
    "llama3-70b": _llama3(80, 8192, 64, 28_672),
    "llama3-405b": _llama3(126, 16_384, 128, 53_248),
    "llama3.2-1b": _llama3(16, 2048, 32, 8192, **_LLAMA32),
    "llama3.2-3b": _llama3(28, 3072, 24, 8192, **_LLAMA32),
    "mini-1m": Config(n_layers=4, dim=128, n_heads=4, n_kv_heads=2, max_seq_len=256, tie_embeddings=True),
    "mini-10m": Config(n_layers=6, dim=384, n_heads=6, n_kv_heads=2, max_seq_len=256),
    "mini-30m": Config(n_layers=8, dim=512, n_heads=8, n_kv_heads=2, max_seq_len=512),
    "mini-100m": Config(n_layers=12, dim=768, n_heads=12, n_kv_heads=4, max_seq_len=1024),
}
