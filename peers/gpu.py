"""PyTorch's side of bench/gpu.py: a Llama as a person would write it there, compiled, bfloat16 autocast, AdamW."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU; PyTorch's own grouped-query attention."""

    def __init__(self, m: dict[str, Any]) -> None:
        super().__init__()
        d, h, g, k, f = m["dim"], m["n_heads"], m["n_kv_heads"], m["head_dim"], m["hidden_dim"]
        self.h, self.g, self.k = h, g, k
        self.attn_norm, self.mlp_norm = nn.RMSNorm(d, m["norm_eps"]), nn.RMSNorm(d, m["norm_eps"])
        self.wq, self.wo = nn.Linear(d, h * k, bias=False), nn.Linear(h * k, d, bias=False)
        self.wk, self.wv = nn.Linear(d, g * k, bias=False), nn.Linear(d, g * k, bias=False)
        self.gate, self.up = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
        self.down = nn.Linear(f, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, s, _ = x.shape
        n = self.attn_norm(x)
        q, k, v = (
            w(n).view(b, s, heads, self.k).transpose(1, 2)
            for w, heads in ((self.wq, self.h), (self.wk, self.g), (self.wv, self.g))
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.wo(y.transpose(1, 2).reshape(b, s, -1))
        n = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Llama(nn.Module):
    def __init__(self, m: dict[str, Any]) -> None:
        super().__init__()
        self.m = m
        self.embed = nn.Embedding(m["vocab_size"], m["dim"])
        self.layers = nn.ModuleList(Layer(m) for _ in range(m["n_layers"]))
        self.norm = nn.RMSNorm(m["dim"], m["norm_eps"])
        self.head = nn.Linear(m["dim"], m["vocab_size"], bias=False)
        if m["tie_embeddings"]:
            self.head.weight = self.embed.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        half = self.m["head_dim"] // 2
        power = torch.arange(half, device=tokens.device) / half
        place = torch.arange(tokens.shape[1], device=tokens.device)
        angle = place[:, None] * self.m["rope_theta"] ** -power
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, angle.cos(), angle.sin())
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """{model, rows, length, n, on_cpu} -> {"seconds": of each of n training steps, the card idle before and after,
    "device": its name, "torch": the version}.

    Plain causal attention: PyTorch's fused kernels take no document mask, which favours this side.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not request["on_cpu"]:
        raise SystemExit("PyTorch sees no card")
    torch.set_float32_matmul_precision("high")
    model: Any = Llama(request["model"]).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    run: Any = torch.compile(model) if device == "cuda" else model
    shape = (request["rows"], request["length"] + 1)
    text = torch.randint(0, request["model"]["vocab_size"], shape, device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    for i in range(request["n"] + 3):
        wait()
        began = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = run(text[:, :-1], text[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        if i >= 3:
            seconds.append(time.perf_counter() - began)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"seconds": seconds, "device": name, "torch": torch.__version__}
