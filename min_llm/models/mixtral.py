"""Mixtral (Mixtral of Experts, Jiang et al. 2024): a Llama whose feed-forward network is a mixture of experts.

    each layer:   x += wo · attention(rope(wq·n), rope(wk·n), wv·n),              n = rms_norm(x)
                  x += Σ_i softmax(top_k(router·n))_i · SwiGLU_i(n),              n = rms_norm(x)      section 2.1

Each token goes through `experts_per_token` of the `n_experts` networks, so a model holds many more parameters than a
token multiplies. Everything else is Llama's. Attention sees the whole context (Table 1); the loss is the plain one, as
the paper has no balancing term.

Shapes: as in models/llama.py, e experts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from min_llm.config import UserError
from min_llm.models import llama
from min_llm.models.llama import Llama, head
from min_llm.nn.batch import Batch
from min_llm.nn.moe import moe
from min_llm.nn.norm import rms_norm
from min_llm.nn.runtime import Runtime
from min_llm.spec import Param, stack

__all__ = ["PRESETS", "Config", "Layer", "forward", "head", "layer_spec", "spec"]


@dataclasses.dataclass(frozen=True)
class Config(llama.Config):
    rope_theta: float = 1_000_000.0
    n_experts: int = 8
    experts_per_token: int = 2

    family = "mixtral"

    def checked(self, path: str = "model") -> Config:
        super().checked(path)
        if not self.gated:
            raise UserError(
                f"'{path}.gated' is false, but experts are SwiGLU networks. Remove it, or train a llama."
            )
        if not 1 <= self.experts_per_token <= self.n_experts:
            raise UserError(
                f"'{path}.experts_per_token' is {self.experts_per_token}; it must be between 1 and "
                f"'{path}.n_experts' ({self.n_experts})."
            )
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer(llama.Layer):
    router: Any


def layer_spec(cfg: Config) -> Layer:
    e, active = cfg.n_experts, cfg.experts_per_token / cfg.n_experts
    dense = llama.layer_spec(cfg)

    def experts(p: Param) -> Param:
        return dataclasses.replace(p, shape=(e, *p.shape), axes=("experts", *p.axes), active=active)

    matrices = {name: experts(getattr(dense, name)) for name in ("w_gate", "w_up", "w_down")}
    router = Param((cfg.dim, e), ("embed", None), cfg.init_std, "matrix")
    return Layer(**vars(dense) | matrices, router=router)


def spec(cfg: Config) -> Llama:
    return dataclasses.replace(llama.spec(cfg), layers=(stack(layer_spec(cfg), cfg.n_layers),))


def forward(
    params: Llama, cfg: Config, batch: Batch, runtime: Runtime, cache: Any, key: Any
) -> tuple[Float[Array, "b s d"], Any]:
    """Hidden states after the final norm, in the compute dtype, and the updated cache."""
    return llama.decoder(mlp, params, cfg, batch, runtime, cache, key)


def mlp(w: Layer, cfg: Config, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    n = rms_norm(x, w.mlp_norm, cfg.norm_eps)
    return moe(n, w.router, (w.w_gate, w.w_up, w.w_down), cfg.experts_per_token)


PRESETS = {
    # Table 1 of the paper, and the configuration released as Mixtral-8x22B-v0.1
    "mixtral-8x7b": Config(
        n_layers=32, dim=4096, n_heads=32, n_kv_heads=8, hidden_dim=14_336, vocab_size=32_000, max_seq_len=32_768
    ),
    "mixtral-8x22b": Config(
        n_layers=56, dim=6144, n_heads=48, n_kv_heads=8, hidden_dim=16_384, vocab_size=32_000, max_seq_len=65_536
    ),
    # a token multiplies as many parameters as in Llama's mini-1m
    "mini-mixtral-3m": Config(
        n_layers=4, dim=128, n_heads=4, n_kv_heads=2, hidden_dim=176, max_seq_len=256, rope_theta=500_000.0,
        tie_embeddings=True,
    ),
}  # fmt: skip
