"""A GPT of nanoGPT's shape in PyTorch: what a person would write there, as a peer of our GPT-2 in speed.

Pre-norm blocks with LayerNorm, fused q, k and v, PyTorch's own causal attention, GELU, learned positions, the head
tied to the embedding, no biases, no dropout. Residual projections start smaller by sqrt(2 n_layers).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(x).split(d, dim=2)
        q, k, v = (t.view(b, s, self.n_heads, d // self.n_heads).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, s, d))


class Block(nn.Module):
    def __init__(self, dim: int, n_heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, bias=False)
        self.attention = Attention(dim, n_heads)
        self.mlp_norm = nn.LayerNorm(dim, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    """tokens [B,S] to logits [B,S,V]."""

    def __init__(self, vocab: int, context: int, n_layers: int, n_heads: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.positions = nn.Embedding(context, dim)
        self.blocks = nn.ModuleList(Block(dim, n_heads, hidden) for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.register_buffer("index", torch.arange(context), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * n_layers) if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions(self.index[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embed.weight)


def gpt(config: dict[str, Any]) -> GPT:
    """A GPT from our GPT-2 field names: dim, n_layers, n_heads, hidden_dim, vocab_size, max_seq_len."""
    return GPT(
        config["vocab_size"],
        config["max_seq_len"],
        config["n_layers"],
        config["n_heads"],
        config["dim"],
        config["hidden_dim"],
    )
