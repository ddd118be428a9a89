"""AdamW (Loshchilov & Hutter 2019) with clipping and weight decay by role, as an optax chain."""

from __future__ import annotations

from typing import Any

import optax

from min_llm.config import UserError
from min_llm.spec import leaves, map_spec
from min_llm.train.config import OptimConfig
from min_llm.train.schedules import schedule


def optimizer(cfg: OptimConfig, spec: Any, steps: int) -> optax.GradientTransformation:
    """The transformation for a parameter tree. State is float32, two moments a parameter."""
    roles = {p.role for _, p in leaves(spec)}
    unknown = set(cfg.decay_roles) - {"matrix", "embedding", "head", "norm", "bias"}
    if unknown:
        raise UserError(
            f"'optim.decay_roles' has {sorted(unknown)}; this model has the roles {sorted(roles)}."
        )
    decayed = map_spec(lambda p: p.role in cfg.decay_roles, spec)
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity(),
        optax.scale_by_adam(b1=cfg.beta1, b2=cfg.beta2, eps=cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule(cfg, steps)),
    )
