"""One optimizer step, jitted: micro-batches, gradients in float32, AdamW, metrics.

The loss is a mean over the whole batch whatever the micro-batches: weights are normalised by their total first, and
the gradients of the parts simply add up, in float32 (Llama 3 section 3.3.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from min_llm import models, platform
from min_llm.models import ModelConfig
from min_llm.nn import axes, probe
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.train.monitor import Watch

LossSum = Callable[[Any, Batch, Any], jax.Array]  # (params, batch, dropout key) -> Σ weights · loss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes."""

    step: jax.Array  # int32: updates made
    params: Any
    opt: Any
    watch: Watch | None = None  # what spikes are told by, where their updates are left out


Metrics = dict[str, Any]
Step = Callable[[State, Batch], tuple[State, Metrics]]


def init_state(params: Any, optimizer: optax.GradientTransformation, watched: bool = False) -> State:
    watch = Watch.start() if watched else None
    return State(jnp.zeros((), jnp.int32), params, jax.jit(optimizer.init)(params), watch)


def language_model_loss(cfg: ModelConfig, runtime: Runtime) -> LossSum:
    """The next-token loss of a model."""

    def loss(params: Any, batch: Batch, key: Any) -> jax.Array:
        return models.loss_sum(params, cfg, batch, runtime, key)

    return loss


def make_step(
    loss_sum: LossSum,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    dropout_seed: int | None = None,
    probing: bool = False,
    spike_z: float = 0.0,
) -> Step:
    """The step function; jit it with the state donated (`jit_step`).

    Metrics: loss (nats per weighted token), grad_norm (before clipping); with `probing` also "probe": statistics of
    activations (one row a layer), gradients and parameters; where the state has a watch also "skipped": whether loss or
    norm was more than `spike_z` deviations above their recent means and the update was left out. The schedule and the
    other counters of the optimizer go on with such a step.
    """

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        batch = normalised(batch)
        key = None
        if dropout_seed is not None:
            key = jax.random.fold_in(jax.random.key(dropout_seed, impl="rbg"), state.step)
        loss, grads, stats = _gradients(loss_sum, state.params, batch, key, micro_batches, probing)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics: Metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        watch = state.watch
        if watch is not None:
            watch, spike = watch.feed(loss, metrics["grad_norm"], spike_z)
            params, opt = _unless(spike, (params, opt), (state.params, state.opt))
            metrics["skipped"] = spike
        if probing:
            metrics["probe"] = stats | tree_statistics("grad", grads) | tree_statistics("param", params)
        return State(state.step + 1, params, opt, watch), metrics

    return step


def _unless(skip: jax.Array, new: Any, old: Any) -> Any:
    """The new arrays, or, to skip the step, the old ones; counters are always the new."""
    return jax.tree.map(
        lambda n, o: jnp.where(skip, o, n) if jnp.issubdtype(n.dtype, jnp.inexact) else n, new, old
    )


def jit_step(step: Step) -> Any:
    return jax.jit(step, donate_argnums=0)


def compile_step(step: Step, state: State, batch: Batch) -> Any:
    """The compiled step for these shapes. What the compiler has freed goes back to the system before the first step
    takes its memory: 80 MiB for a small model on CPU."""
    compiled = jit_step(step).lower(state, batch).compile()
    platform.trim()
    return compiled


def normalised(batch: Batch) -> Batch:
    """The batch with weights that sum to 1, so that Σ weights · loss is the mean."""
    weights = batch.weights
    weights = jnp.ones(batch.tokens.shape, jnp.float32) if weights is None else weights
    return dataclasses.replace(batch, weights=weights / jnp.maximum(weights.sum(), 1e-9))


def _gradients(
    loss_sum: LossSum, params: Any, batch: Batch, key: Any, micro_batches: int, probing: bool
) -> tuple[jax.Array, Any, probe.Stats]:
    def loss(params: Any, part: Batch, key: Any) -> tuple[jax.Array, probe.Stats]:
        with probe.collecting(probing) as stats:
            value = loss_sum(params, part, key)
        return value, stats

    gradient = jax.value_and_grad(loss, has_aux=True)
    if micro_batches == 1:
        (value, stats), grads = gradient(params, batch, key)
        return value, grads, stats
    parts = jax.tree.map(lambda x: axes.split_rows(x, micro_batches), batch)

    def add(carry: tuple, xs: tuple) -> tuple[tuple, probe.Stats]:
        i, part = xs
        (value, stats), grads = gradient(params, part, None if key is None else jax.random.fold_in(key, i))
        return (carry[0] + value, jax.tree.map(jnp.add, carry[1], grads)), stats

    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    (value, grads), stats = jax.lax.scan(add, zero, (jnp.arange(micro_batches), parts))
    return value, grads, jax.tree.map(lambda x: x.mean(0), stats)


def tree_statistics(kind: str, tree: Any) -> probe.Stats:
    """ "grad/layers.0.wq/rms" … of every leaf; one row a layer for stacked ones."""
    stats: probe.Stats = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        of = jax.vmap(probe.statistics) if name.startswith("layers.") else probe.statistics
        stats |= {f"{kind}/{name}/{key}": value for key, value in of(leaf).items()}
    return stats
