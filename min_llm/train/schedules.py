"""Learning rate and weight decay as functions of the steps done or of the tokens seen.

`learning_rate` is the one formula; it takes NumPy arrays (to plot) and JAX ones (under jit). A step's place is counted
in steps, or in tokens (`optim.over`), which is what a run whose batch grows needs. The first update has the rate
lr / (warmup + 1), not 0, which would waste it. Each schedule warms up linearly and ends at `min_lr` times the peak:
cosine (Llama 3 section 3.4.1, L3-4.1), linear (with min_lr=0 the paper's annealing, section 3.4.3), wsd (warmup,
stable, decay: Hu et al. 2024), constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from min_llm.train.config import OptimConfig, TrainConfig
from min_llm.train.ramp import Ramp

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def learning_rate(cfg: OptimConfig, at: Any, end: float, one: Any = 1.0) -> Any:
    """The rate of the step that begins at `at` (float array), in steps or tokens; `one` is the size of the step and
    `end` that of the run, in the same unit."""
    xp = at.__array_namespace__()
    warmup = float(cfg.warmup)  # as an integer it may be more than int32 holds
    warm = cfg.lr * (at + one) / (warmup + one)
    return xp.where(at < warmup, warm, _decayed(cfg, at, cfg.decay_steps or end))


def _decayed(cfg: OptimConfig, at: Any, end: float) -> Any:
    xp = at.__array_namespace__()
    start, final = float(cfg.warmup), cfg.lr * cfg.min_lr
    if cfg.schedule == "constant":
        return xp.full_like(at, cfg.lr)
    if cfg.schedule == "wsd":
        start = max(start, float(round(end * (1 - cfg.wsd_decay))))
    done = xp.clip((at - start) / max(end - start, 1.0), 0.0, 1.0)
    remaining = 0.5 * (1 + xp.cos(xp.pi * done)) if cfg.schedule == "cosine" else 1 - done
    return final + (cfg.lr - final) * remaining


def weight_decay(cfg: OptimConfig, rate: Any) -> Any:
    """The share of a weight that a step with this learning rate takes off it.

    With `decay_with_lr` it is weight_decay x rate: Llama 3's "0.1 times the learning rate at that step" (section 3.2.1,
    L3-2.7), and what AdamW does in torch and optax. Without it, weight_decay itself at every step.
    """
    return cfg.weight_decay * rate if cfg.decay_with_lr else cfg.weight_decay + 0 * rate


def schedule(cfg: OptimConfig, steps: int, ramp: Ramp | None = None) -> Schedule:
    """Learning rate at a step (traced or not), float32. steps: length of the run; ramp: the sizes of its steps, needed
    where `optim.over` is tokens."""
    if cfg.over == "tokens" and ramp is None:
        raise ValueError("A schedule over tokens needs the Ramp that says how many a step has.")

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        return rate_at(cfg, jnp.asarray(step, jnp.float32), steps, ramp)

    return rate


def rate_at(cfg: OptimConfig, step: Any, steps: int, ramp: Ramp | None) -> Any:
    """The same for a float array of steps, in NumPy or under jit, in its dtype."""
    if cfg.over == "steps" or ramp is None:
        return learning_rate(cfg, step, steps)
    at, one = ramp.places(step)
    return learning_rate(cfg, at, ramp.tokens(steps), one)


def planned(optim: OptimConfig, train: TrainConfig, points: int = 1000) -> dict[str, np.ndarray]:
    """What a run will do, as equally long columns over its steps: step, tokens (seen before the step), lr,
    weight_decay (share taken off), batch_tokens and seq_len. At most about `points` steps, every phase's first and last
    among them."""
    ramp = Ramp.of(train)
    spread = np.linspace(0, train.steps - 1, min(points, train.steps)).round()
    turns = [s.first_step + k for s in ramp.spans for k in (-1, 0) if 0 <= s.first_step + k < train.steps]
    step = np.unique(np.concatenate([spread, turns]))
    tokens, batch = ramp.places(step)
    rate = rate_at(optim, step, train.steps, ramp)
    return {
        "step": step,
        "tokens": tokens,
        "lr": rate,
        "weight_decay": weight_decay(optim, rate),
        "batch_tokens": batch,
        "seq_len": np.array([ramp.at(int(s)).seq_len for s in step], np.float64),
    }
