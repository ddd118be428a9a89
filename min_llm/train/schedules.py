"""Learning-rate schedules: functions of the step, under jit.

Step 0 is the first update; its rate is lr / (warmup + 1), not 0, which would waste it. Each schedule warms up
linearly and ends at `min_lr` times the peak:
cosine (Llama 3 section 3.4.1), linear, wsd (warmup, stable, decay: Hu et al. 2024), constant.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from min_llm.train.config import OptimConfig

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def schedule(cfg: OptimConfig, steps: int) -> Schedule:
    """Learning rate at a step (traced or not), float32. `steps`: length of the run."""
    end = cfg.decay_steps or steps
    final = cfg.lr * cfg.min_lr

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        warm = cfg.lr * (step + 1) / (cfg.warmup + 1)
        return jnp.where(step < cfg.warmup, warm, _decayed(cfg, step, end, final))

    return rate


def _decayed(cfg: OptimConfig, step: Array, end: int, final: float) -> Array:
    start = cfg.warmup
    if cfg.schedule == "constant":
        return jnp.full_like(step, cfg.lr)
    if cfg.schedule == "wsd":
        start = max(start, round(end * (1 - cfg.wsd_decay)))
    done = jnp.clip((step - start) / max(end - start, 1), 0.0, 1.0)
    remaining = 0.5 * (1 + jnp.cos(jnp.pi * done)) if cfg.schedule == "cosine" else 1 - done
    return final + (cfg.lr - final) * remaining
