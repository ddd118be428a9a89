"""Inference arithmetic: what limits prefill and decoding, and how many sequences fit.

After "Transformer Inference Arithmetic" (kipply, 2022) and "Throughput is all you need" (Jain, 2024). A forward pass
has to read every weight and every cached key and value once (of experts only those that are chosen), and to multiply:
it cannot be faster than

    memory    (weight bytes + cache bytes) / bandwidth
    compute   FLOPs / peak FLOP/s

and the larger of the two is the floor of its latency, reached when loads and products overlap perfectly. Nothing is
counted for launching kernels, for the host, for communication, or for activations, which stay on the chip.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from min_llm import models
from min_llm.config import UserError
from min_llm.plan import memory
from min_llm.plan.flops import flops_per_token, matmul_parameters
from min_llm.plan.hardware import Hardware
from min_llm.spec import count, leaves


@dataclasses.dataclass(frozen=True)
class Floor:
    """The floor of one forward pass. Seconds; tokens_per_second is over the batch; bound is "memory" or "compute"."""

    batch: int
    tokens: int  # new tokens a sequence
    context: int  # tokens attended to, the new ones included
    bytes_read: float
    flops: float
    memory_seconds: float
    compute_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.memory_seconds, self.compute_seconds)

    @property
    def bound(self) -> str:
        return "memory" if self.memory_seconds >= self.compute_seconds else "compute"

    @property
    def tokens_per_second(self) -> float:
        return self.batch * self.tokens / self.seconds


def decode(
    cfg: models.ModelConfig,
    hardware: Hardware,
    batch: int,
    context: int,
    dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
) -> Floor:
    """One token for each of `batch` sequences that hold `context` tokens."""
    _at_least_one(batch=batch, context=context)
    seen = min(context, getattr(cfg, "window", None) or context)
    spec = models.spec(cfg)
    n = matmul_parameters(spec)
    heads = cfg.n_layers * cfg.n_heads * cfg.head_dim  # type: ignore[attr-defined]
    weights = memory.bytes_of(weights_read(spec, batch), dtype)
    read = weights + batch * seen * memory.kv_bytes_per_token(cfg, kv_dtype)
    flops = batch * (2.0 * n + 4.0 * heads * seen)
    return _floor(hardware, dtype, batch, 1, context, read, flops)


def prefill(
    cfg: models.ModelConfig,
    hardware: Hardware,
    batch: int,
    context: int,
    dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
) -> Floor:
    """All `context` tokens of `batch` prompts at once, causal; the cache is written once."""
    _at_least_one(batch=batch, context=context)
    flops = flops_per_token(cfg, context)
    weights = memory.bytes_of(weights_read(models.spec(cfg), batch * context), dtype)
    moved = weights + batch * context * memory.kv_bytes_per_token(cfg, kv_dtype)
    return _floor(hardware, dtype, batch, context, context, moved, batch * context * flops.forward_causal)


def _floor(
    hardware: Hardware, dtype: str, batch: int, tokens: int, context: int, read: float, flops: float
) -> Floor:
    seconds = read / hardware.bandwidth, flops / hardware.peak(dtype)
    return Floor(batch, tokens, context, read, flops, *seconds)


def weights_read(spec: Any, tokens: int) -> float:
    """Parameters that a pass over `tokens` tokens reads: all that multiply, but of experts only those that some token
    is sent to. Where a token uses the share a and routers spread tokens evenly, that is the share 1 − (1 − a)^tokens.
    """
    more = sum(p.size * (1 - p.active - (1 - p.active) ** tokens) for _, p in leaves(spec))
    return matmul_parameters(spec) + more


def crossover(hardware: Hardware, dtype: str = "bfloat16") -> float:
    """The batch size from which decoding is bound by compute, caches aside: 2N·B / peak = bytes·N / bandwidth."""
    return hardware.peak(dtype) * memory.bytes_of(1, dtype) / (2 * hardware.bandwidth)


@dataclasses.dataclass(frozen=True)
class Capacity:
    """How many sequences a cache of `cache_bytes` holds.

    blocks: pages of `block` tokens in the cache; blocks_per_sequence: what a sequence of its real length takes.
    paged: sequences that fit in pages; reserved: where each one reserves the longest context ahead of time.
    """

    cache_bytes: float
    bytes_per_token: float
    bytes_per_block: float
    tokens: int
    blocks: int
    blocks_per_sequence: int
    paged: int
    reserved: int


def capacity(
    cache_bytes: float, bytes_per_token: float, length: int, longest: int | None = None, block: int = 16
) -> Capacity:
    """Sequences of `length` tokens that fit at once, in pages and with `longest` tokens reserved for each.

    "Throughput is all you need": 7 GiB, 0.125 MiB a token, chats of 5,000 tokens, 8,192 reserved, blocks of 16:
    3,584 blocks, 313 a chat, 11 chats paged and 7 reserved.
    """
    _at_least_one(length=length, block=block)
    longest = length if longest is None else longest
    cache_bytes = max(0.0, cache_bytes)
    blocks = int(cache_bytes // (bytes_per_token * block))
    each = -(-length // block)
    return Capacity(
        cache_bytes=cache_bytes,
        bytes_per_token=bytes_per_token,
        bytes_per_block=bytes_per_token * block,
        tokens=int(cache_bytes // bytes_per_token),
        blocks=blocks,
        blocks_per_sequence=each,
        paged=blocks // each,
        reserved=int(cache_bytes // (bytes_per_token * longest)),
    )


def serving_capacity(
    cfg: models.ModelConfig,
    hardware: Hardware,
    length: int,
    dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
    reserve: float = 0.1,
    block: int = 16,
) -> Capacity:
    """`capacity` with the memory of one device that weights leave; `reserve` of it is kept for everything else
    (activations, fragmentation, the runtime). Reserved allocation takes the model's longest context."""
    if not hardware.memory:
        raise UserError(f"The memory of {hardware.name} is not known, so its capacity is not either.")
    weights = memory.bytes_of(count(models.spec(cfg)), dtype)
    free = hardware.memory * (1 - reserve) - weights
    return capacity(free, memory.kv_bytes_per_token(cfg, kv_dtype), length, cfg.max_seq_len, block)


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1.")
