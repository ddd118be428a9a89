"""Llama 3 in plain PyTorch: min_llm/models/llama.py again, as modules. Nothing in this file knows of other processes.

Shapes: b batch, s sequence, d model dimension, h query heads, g key-value heads, k head dimension, f hidden,
v vocabulary. Modules carry the names of our parameters, and RoPE is half-split as ours is.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Config:
    """The fields of min_llm's Llama configuration that shape the computation."""

    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    vocab_size: int
    rope_theta: float
    norm_eps: float
    rope_scaling: dict[str, Any] | None = None

    @classmethod
    def of(cls, given: dict[str, Any]) -> Config:
        """From a whole configuration of ours. ValueError for what this model does not have."""
        if given["tie_embeddings"] or given["window"] or given["dropout"]:
            raise ValueError(
                "this Llama has neither tied embeddings (a pipeline would hold them twice) nor a window nor "
                f"dropout; got tie_embeddings={given['tie_embeddings']}, window={given['window']}, "
                f"dropout={given['dropout']}"
            )
        return cls(**{field.name: given[field.name] for field in dataclasses.fields(cls)})


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        d, h, g, k = cfg.dim, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        self.head_dim = k
        self.wq = nn.Linear(d, h * k, bias=False)
        self.wk = nn.Linear(d, g * k, bias=False)
        self.wv = nn.Linear(d, g * k, bias=False)
        self.wo = nn.Linear(h * k, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        b, s, _ = x.shape
        # -1 heads, not h or g: under tensor parallelism a process has its share of them
        q, k, v = (w(x).view(b, s, -1, self.head_dim).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.wo(out.transpose(1, 2).reshape(b, s, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.w_gate = nn.Linear(cfg.dim, cfg.hidden_dim, bias=False)
        self.w_up = nn.Linear(cfg.dim, cfg.hidden_dim, bias=False)
        self.w_down = nn.Linear(cfg.hidden_dim, cfg.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_down(F.silu(self.w_gate(x)) * self.w_up(x))


class Layer(nn.Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(cfg.dim, cfg.norm_eps)
        self.attention = Attention(cfg)
        self.mlp_norm = nn.RMSNorm(cfg.dim, cfg.norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attn_norm(x), cos, sin, mask)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """The whole model, or the part of it that is a pipeline stage.

    layers: which ones are here; embed, head: whether the embedding, the final norm and the head are. Layers keep
    their numbers, so a parameter has the same name in a stage and in the whole.
    """

    def __init__(
        self, cfg: Config, layers: range | None = None, embed: bool = True, head: bool = True
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.dim) if embed else None
        numbers = range(cfg.n_layers) if layers is None else layers
        self.layers = nn.ModuleDict({str(i): Layer(cfg) for i in numbers})
        self.final_norm = nn.RMSNorm(cfg.dim, cfg.norm_eps) if head else None
        self.head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False) if head else None

    def forward(self, x: Tensor, positions: Tensor, segment_ids: Tensor) -> Tensor:
        """Tokens [b, s] (or the hidden states [b, s, d] of the stage before) to logits [b, s, v] (or hidden states).

        positions [b, s]: places in the document, for RoPE. segment_ids [b, s]: which document.
        """
        cos, sin = angles(positions, self.cfg)
        mask = document_mask(segment_ids)
        x = x if self.embed is None else self.embed(x)
        for layer in self.layers.values():
            x = layer(x, cos, sin, mask)
        if self.final_norm is None or self.head is None:
            return x
        return self.head(self.final_norm(x))


def document_mask(segment_ids: Tensor) -> Tensor:
    """[b, 1, s, s], True where a query (row) sees a key (column): not after it, and in the same document. Padding,
    segment 0, is a document like any other, so no row is empty."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same.tril()[:, None]


def angles(positions: Tensor, cfg: Config) -> tuple[Tensor, Tensor]:
    """cos and sin of every position and pair of dimensions, [b, 1, s, k/2]: the same for all heads."""
    frequencies = torch.tensor(_frequencies(cfg), dtype=torch.float32, device=positions.device)
    angle = positions[:, None, :, None].float() * frequencies
    return angle.cos(), angle.sin()


def _frequencies(cfg: Config) -> list[float]:
    """Radians per position of each pair; with Llama 3.1's scaling, long wavelengths are stretched (nn/rope.py)."""
    plain = [cfg.rope_theta ** (-2 * i / cfg.head_dim) for i in range(cfg.head_dim // 2)]
    if cfg.rope_scaling is None:
        return plain
    low, high = cfg.rope_scaling["low_freq_factor"], cfg.rope_scaling["high_freq_factor"]
    scaled = []
    for frequency in plain:
        turns = cfg.rope_scaling["original_context"] * frequency / (2 * math.pi)
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        scaled.append(frequency * (keep + (1 - keep) / cfg.rope_scaling["factor"]))
    return scaled


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn dimensions i and i + k/2 of x [b, heads, s, k] by their angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def loss_sum(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Σ weights · −log softmax(logits)[target], in nats. Weights that sum to 1 over a whole batch make the parts of
    it, on other processes or in other micro-batches, add up to the mean."""
    nll = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (weights.flatten() * nll).sum()
