"""Optimizers as optax chains: clipping, a direction, weight decay by role, the learning rate of the step.

    name        direction of a matrix                              float32 values of state a parameter
    adamw       m / sqrt(v)  (Loshchilov & Hutter 2019)             2
    muon        U V^T of the momentum's U S V^T, by five            1 (2 outside the layers' matrices)
                Newton-Schulz steps (Jordan et al. 2024)
    lion        sign of the momentum (Chen et al. 2023)             1
    adafactor   g / sqrt(v), v from row and column means            1 / rows + 1 / columns
                (Shazeer & Stern 2018; `train.adafactor`)

Muon's update is scaled to the root mean square that AdamW's has, 0.2 (Liu et al. 2025, equation 4), so that both share
one learning rate and weight decay.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from min_llm.config import UserError
from min_llm.nn import axes
from min_llm.spec import leaves, map_spec
from min_llm.train.adafactor import scale_by_factored
from min_llm.train.config import OptimConfig
from min_llm.train.ramp import Ramp
from min_llm.train.schedules import schedule

MUON_RMS = 0.2


def optimizer(
    cfg: OptimConfig, spec: Any, steps: int, ramp: Ramp | None = None
) -> optax.GradientTransformation:
    """The transformation for a parameter tree. State is float32. steps, ramp: as `schedules.schedule` takes them."""
    roles = {p.role for _, p in leaves(spec)}
    unknown = set(cfg.decay_roles) - {"matrix", "embedding", "head", "norm", "bias"}
    if unknown:
        raise UserError(
            f"'optim.decay_roles' has {sorted(unknown)}; this model has the roles {sorted(roles)}."
        )
    decayed = map_spec(lambda p: p.role in cfg.decay_roles, spec)
    rate = optax.scale_by_learning_rate(schedule(cfg, steps, ramp))
    if cfg.decay_with_lr:  # decayed before the rate multiplies both (`schedules.weight_decay`)
        last = (optax.add_decayed_weights(cfg.weight_decay, decayed), rate)
    else:
        last = (rate, optax.add_decayed_weights(-cfg.weight_decay, decayed))
    clip = optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity()
    return optax.chain(clip, direction(cfg, spec), *last)


def direction(cfg: OptimConfig, spec: Any) -> optax.GradientTransformation:
    """What the optimizer makes of a gradient before the learning rate multiplies it."""
    adam = optax.scale_by_adam(b1=cfg.beta1, b2=cfg.beta2, eps=cfg.eps)
    if cfg.name == "muon":
        kinds = map_spec(lambda p: "muon" if p.role == "matrix" else "adam", spec)
        return optax.partition({"muon": muon(cfg, spec), "adam": adam}, kinds)
    if cfg.name == "lion":
        return optax.scale_by_lion(b1=cfg.beta1, b2=cfg.beta2)
    if cfg.name == "adafactor":
        return scale_by_factored(spec)
    return adam


def muon(cfg: OptimConfig, spec: Any) -> optax.GradientTransformation:
    """Muon for the leaves of role "matrix": layer by layer (and expert by expert), all heads as one matrix."""
    some = map_spec(lambda p: p if p.role == "matrix" else optax.MaskedNode(), spec)
    numbers = map_spec(lambda p: MuonDimensionNumbers(*p.sides), some)

    def to_rms(updates: Any, params: Any = None) -> Any:
        """The root mean square of a matrix with orthonormal rows or columns is 1 / sqrt(longer side)."""
        return map_spec(
            lambda p, u: (
                MUON_RMS * math.sqrt(max(math.prod(p.shape[i] for i in side) for side in p.sides)) * u
            ),
            some,
            updates,
        )

    ours = scale_by_muon(beta=cfg.momentum, weight_dimension_numbers=numbers)
    return optax.chain(_laid_out_by_xla(ours), optax.stateless(to_rms))


def _laid_out_by_xla(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """On a mesh the products of Newton-Schulz lie as XLA chooses; what comes out lies as what went in."""

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if not axes.on_mesh():
            return inner.update(grads, state)
        out = jax.tree.map(axes.partition, (grads, state))
        return jax.sharding.auto_axes(inner.update, out_sharding=out)(grads, state)

    return optax.GradientTransformation(inner.init, update)
