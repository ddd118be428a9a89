"""Everything a spec says about a model, as plain data: what `min-llm info` prints."""

from __future__ import annotations

import dataclasses
from typing import Any

from min_llm import models
from min_llm.plan import memory
from min_llm.plan.flops import flops_per_token
from min_llm.spec import count, leaves


def summary(cfg: models.ModelConfig, seq_len: int) -> dict[str, Any]:
    """Parameters by leaf and by role, FLOPs per token at `seq_len`, bytes by dtype. Allocates nothing."""
    spec = models.spec(cfg)
    total = count(spec)
    roles: dict[str, int] = {}
    for _, p in leaves(spec):
        roles[p.role] = roles.get(p.role, 0) + p.size
    return {
        "family": cfg.family,
        "config": cfg.to_mapping(),
        "max_seq_len": cfg.max_seq_len,
        "parameters": total,
        "active_parameters": count(spec, active=True),
        "components": [
            {
                "name": name,
                "shape": list(p.shape),
                "axes": list(p.axes),
                "role": p.role,
                "count": p.size,
                "share": p.size / total,
            }
            for name, p in leaves(spec)
        ],
        "roles": roles,
        "flops_per_token": dataclasses.asdict(flops_per_token(cfg, seq_len)),
        "bytes": {
            dtype: {
                "weights": memory.bytes_of(total, dtype),
                "kv_per_token": memory.kv_bytes_per_token(cfg, dtype),
                "kv_per_sequence": cfg.max_seq_len * memory.kv_bytes_per_token(cfg, dtype),
            }
            for dtype in ("float32", "bfloat16", "int8", "int4")
        },
        "training_state_bytes": {
            "parameters": memory.bytes_of(total, "float32"),
            "gradients": memory.bytes_of(total, "float32"),
            "optimizer": sum(memory.optimizer_bytes(p) for _, p in leaves(spec)),
        },
    }
