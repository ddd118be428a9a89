"""How an engine is set up, and what it counts."""

from __future__ import annotations

import dataclasses

from min_llm.config import UserError, option
from min_llm.kernels.attention.paged import BLOCK

KV_DTYPES = ("same", "int8")  # "same": as the model computes


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How much an engine does at once and how much it remembers."""

    max_sequences: int = option(16, "requests that run at once")
    chunk: int = option(256, "prompt tokens of a step, a multiple of 16")
    page_size: int = option(16, "tokens of a page of the cache")
    cache_tokens: int = option(0, "tokens that the cache holds; 0: as many as fit in cache_bytes")
    cache_bytes: int = option(2**29, "memory of the cache where cache_tokens is 0")
    kv_dtype: str = option(
        "same", "of the cache: same as the model computes in, or int8, about half the bytes of bfloat16"
    )
    model_len: int = option(0, "longest prompt and answer; 0: the model's context")
    prefix_cache: bool = option(True, "keep prompts for later requests that begin alike")
    speculate: int = option(0, "tokens of an answer that are guessed for each step")
    max_loras: int = option(0, "adapters that can be loaded at once")
    max_lora_rank: int = option(16, "the largest rank of an adapter")
    warm: bool = option(True, "compile all at the start, and nothing later")

    def __post_init__(self) -> None:
        for name, least in (("max_sequences", 1), ("page_size", 1), ("cache_bytes", 1), ("cache_tokens", 0),
                            ("model_len", 0), ("speculate", 0), ("max_loras", 0), ("max_lora_rank", 1)):  # fmt: skip
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.chunk < BLOCK or self.chunk % BLOCK:
            raise UserError(f"chunk is {self.chunk}; it must be a multiple of {BLOCK}.")
        if self.kv_dtype not in KV_DTYPES:
            raise UserError(f"kv_dtype is {self.kv_dtype!r}; it must be one of {', '.join(KV_DTYPES)}.")

    def cache_dtype(self, compute: str) -> str:
        """What keys and values are kept in, where a model computes in `compute`."""
        return compute if self.kv_dtype == "same" else self.kv_dtype


@dataclasses.dataclass(frozen=True)
class Statistics:
    waiting: int
    running: int
    pages_total: int
    pages_free: int
    pages_cached: int
    pages_used: int
    compiles: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    preemptions: int
    prefix_hits: int  # prompt tokens that were not computed again
    drafted: int  # guessed tokens that were checked
    accepted: int
