"""What the ablation compares: Llama 3's choices with one of them undone or replaced, all at equal training FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from min_llm import config as config_lib
from min_llm.plan.flops import flops_per_token
from min_llm.train.config import RunConfig, check
from min_llm.train.ramp import Ramp

CONFIG = Path(__file__).resolve().parent / "config.yaml"
Settings = Mapping[str, Any]

# learning rates that `--tune` tries for each optimizer, in runs of TUNE_STEPS; VARIANTS and config.yaml have the best
TUNE_STEPS = 150
RATES = {
    "adamw": (1.5e-3, 3e-3, 6e-3, 1.2e-2),
    "muon": (6e-3, 1.2e-2, 2.4e-2, 4.8e-2),
    "lion": (6e-4, 1.2e-3, 2.4e-3, 4.8e-3),
    "adafactor": (1.5e-3, 3e-3, 6e-3, 1.2e-2),
}
# batches of 4, 8 and 16 rows for the first eighth, until half and to the end of the base's tokens (L3-4.2); its
# schedule counts tokens, so that a token meets the learning rate that it meets in the base
RAMP = {
    "train.ramp": [
        {"until_tokens": 102_400, "batch_size": 4, "seq_len": 256},
        {"until_tokens": 409_600, "batch_size": 8, "seq_len": 256},
    ],
    "train.batch_size": 16,
    "optim.over": "tokens",
    "optim.warmup": 51_200,
}
BASE = "Llama 3"
VARIANTS: dict[str, Settings] = {
    BASE: {},
    "no document mask": {"train.document_mask": False},
    "rotary base 10,000": {"model.rope_theta": 1e4},
    "MHA": {"model.n_kv_heads": 4},
    "GELU without gate": {"model.gated": False},
    "QK-norm": {"model.qk_norm": True},
    "Muon": {"optim.name": "muon", "optim.lr": 2.4e-2},
    "Lion": {"optim.name": "lion", "optim.lr": 2.4e-3},
    "Adafactor": {"optim.name": "adafactor", "optim.lr": 3e-3},
    "batch ramp": RAMP,
    "initial std 0.02": {"model.init_std": 0.02},  # GPT-2's, where the base has 1 / sqrt(d)
}


def settings(name: str, vocab_size: int) -> dict[str, Any]:
    """The changes of a variant, with the steps that cost as many training FLOPs as the base's (`plan.flops`, the full
    convention: 6N + 12·L·H·K·S a token), to the nearest step."""
    base, mine = (load(VARIANTS[which], vocab_size) for which in (BASE, name))
    tokens = base.train.steps * base.train.batch_size * base.train.seq_len
    tokens = round(tokens * _per_token(base) / _per_token(mine))
    ramp = Ramp.of(mine.train)
    steps = min((ramp.steps(tokens) - k for k in (0, 1)), key=lambda n: abs(ramp.tokens(n) - tokens))
    return {**VARIANTS[name], "train.steps": steps}


def load(changes: Settings, vocab_size: int) -> RunConfig:
    """The base configuration with these changes, and the tokenizer's vocabulary filled in."""
    words = [f"{key}={value}" for key, value in changes.items()]
    cfg = check(config_lib.load(RunConfig, CONFIG, words))
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=vocab_size))


def flops(cfg: RunConfig) -> float:
    """Of a whole training."""
    return Ramp.of(cfg.train).tokens(cfg.train.steps) * _per_token(cfg)


def _per_token(cfg: RunConfig) -> float:
    return flops_per_token(cfg.model, cfg.train.seq_len).training
