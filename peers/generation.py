"""transformers' `generate` as a warm model that continues prompts when it is told to."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

_model: PreTrainedModel | None = None
_cache: str | None = None

CACHES = {"dynamic": None, "static": "static"}


def load(path: str, dtype: str, cache: str, threads: int) -> dict[str, Any]:
    """A Hugging Face folder in float32 or bfloat16; cache: "dynamic" grows with the text, "static" is allocated once.
    Returns the seconds it took."""
    global _model, _cache
    began = time.perf_counter()
    torch.set_num_threads(threads)
    _model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    _cache = CACHES[cache]
    return {"seconds": time.perf_counter() - began}


class Clock(BaseStreamer):
    """Notes when each step's tokens are handed over; the first call brings the prompts."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.steps: list[float] = []

    def put(self, value: Tensor) -> None:
        self.steps.append(time.perf_counter() - self.began)

    def end(self) -> None: ...


def generate(prompts: np.ndarray, n: int) -> dict[str, Any]:
    """n greedy tokens behind each row of prompts [B, S]: seconds [B, n] at which each was there, and of all."""
    if _model is None:
        raise RuntimeError("no model is loaded in this process: ask for `load` first")
    clock = Clock()
    ids = torch.from_numpy(prompts).long()
    with torch.inference_mode():
        out = _model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            cache_implementation=_cache,
            streamer=clock,
        )
    total = time.perf_counter() - clock.began
    at = np.array(clock.steps[1:])
    if out.shape[1] != prompts.shape[1] + n or len(at) != n:
        raise RuntimeError(f"transformers generated {out.shape[1] - prompts.shape[1]} tokens, not {n}")
    return {"seconds": total, "at": np.tile(at, (len(prompts), 1))}
