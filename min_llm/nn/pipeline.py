"""Pipeline parallelism: consecutive layers on consecutive devices, parts of the batch following each other
(Llama 3 section 3.3.2).

Every rank runs the same program: at tick t, rank r works on the part that left rank r − 1 one tick ago, and passes on
what it made. With one round this is GPipe (Huang et al. 2019); with v rounds a rank holds v stages, n apart, and a
part goes v times round the ring (the interleaved schedule of Narayanan et al. 2021), which divides the idle time by v:

    ticks = M·v + n − 1,  of which n − 1 are idle;     n ranks, M parts, v rounds

Where one or two layers are missing for equal stages, the last and the first have one less, as in Llama 3 405B, whose
126 layers are 16 x 8 − 2: a layer of zeros, which adds nothing to the residual stream, stands in its place.

Gradients come from differentiating the loop, so all forward ticks are before all backward ones. Ranks that are idle
compute on stale numbers and what they make is never read. Embedding and head are outside: every rank computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from min_llm import platform
from min_llm.config import UserError
from min_llm.nn import axes

Tree = TypeVar("Tree")
# (layers, x, rows, a number for the first layer that none has in another part) -> x
Stage = Callable[[Any, Array, Any, Array], Array]


def run_pipeline(
    stage: Stage, stack: Any, x: Float[Array, "b s d"], rows: Any, parts: int, rounds: int
) -> Float[Array, "b s d"]:
    """x after all layers of the stack. rows: what the layers know of each row of the batch, a tree of [B or 1, …]."""
    n_layers, n = jax.tree.leaves(stack)[0].shape[0], axes.sizes()["pp"]
    check(n_layers, x.shape[0], n, parts, rounds)
    before, after = spare(n_layers, n * rounds)
    per_stage = (before + n_layers + after) // (n * rounds)
    stack = arranged(stack, n, rounds, before, after)
    # what is summed over pp (the result, the gradient of the input) is float32 on CPU, where XLA aborts on bfloat16
    summed = jnp.float32 if platform.backend() == "cpu" else x.dtype
    x_parts = axes.split_rows(x.astype(summed), parts)
    row_parts = jax.tree.map(lambda a: _split(a, parts), rows)

    def run(stack: Any, xs: Array, rows: Any) -> Array:
        rank, ring = jax.lax.axis_index("pp"), [(i, (i + 1) % n) for i in range(n)]
        stages = jax.tree.map(lambda w: w.reshape(rounds, per_stage, *w.shape[1:]), stack)

        def tick(passed: Array, t: Array) -> tuple[Array, Array]:
            j = jnp.clip(t - rank, 0, parts * rounds - 1)  # this rank's j-th piece of work
            lap, part = j % (n * rounds) // n, j // (n * rounds) * n + j % n
            first = jnp.where((rank == 0) & (lap == 0), _at(xs, part).astype(x.dtype), passed)
            # picked by number, the weights of a stage would be kept for the backward pass once for every tick
            weights = jax.tree.map(lambda w: w[0] if rounds == 1 else _at(w, lap), stages)
            part_rows = jax.tree.map(lambda a: _at(a, part), rows)
            # dropout differs from part to part
            index = (lap * n + rank) * per_stage - before + part * (n_layers + 1)
            y = stage(weights, first, part_rows, index)
            return jax.lax.ppermute(y, "pp", ring), y

        # varying from here on: the gradient of the input is summed over pp once, and not in every tick
        xs = jax.lax.pcast(xs, "pp", to="varying")
        start = jnp.zeros_like(xs[0], x.dtype)
        _, ys = jax.lax.scan(tick, start, jnp.arange(parts * rounds + n - 1))
        part = jnp.arange(parts)  # a part leaves the last rank of its last round at this tick
        done = ys[part // n * n * rounds + (rounds - 1) * n + part % n + n - 1]
        return jax.lax.psum(jnp.where(rank == n - 1, done, jnp.zeros_like(done)).astype(summed), "pp")

    replicated = jax.tree.map(lambda a: P(), row_parts)
    over_ranks = jax.shard_map(
        run,
        in_specs=(jax.tree.map(lambda w: P("pp"), stack), P(), replicated),
        out_specs=P(),
        axis_names={"pp"},
    )
    return axes.join_rows(over_ranks(stack, x_parts, row_parts).astype(x.dtype))


def check(n_layers: int, rows: int, n: int, parts: int, rounds: int) -> None:
    """A sentence where these layers and rows do not go through such a pipeline."""
    spare(n_layers, n * rounds)
    if rows % parts:
        raise UserError(
            f"A micro-batch of {rows} rows cannot be cut into parallel.pipeline_parts = {parts} equal parts."
        )
    if rounds > 1 and parts % n:
        raise UserError(
            f"With several rounds parallel.pipeline_parts ({parts}) must be a multiple of parallel.mesh.pp ({n})."
        )


def spare(n_layers: int, stages: int) -> tuple[int, int]:
    """How many layers fewer than the others the first and the last stage have: 0 or 1 each."""
    missing = -n_layers % stages
    if missing > 2:
        fitting = [n for n in range(n_layers - stages, n_layers + stages) if n > 0 and -n % stages <= 2]
        raise UserError(
            f"The model has {n_layers} layers, which do not fill parallel.mesh.pp x parallel.pipeline_rounds = "
            f"{stages} stages: those have equal numbers, the last and the first perhaps one less. "
            f"{', '.join(map(str, fitting))} layers would."
        )
    return missing // 2, missing - missing // 2


def arranged(stack: Tree, n: int, rounds: int, before: int, after: int) -> Tree:
    """The layers in the order of the ranks that run them: rank r runs stages r, r + n, r + 2n, … With one round and
    nothing missing they are there already; otherwise they travel, once a step: cut along another dimension they can be
    put in order on every device, and are then exchanged."""
    if rounds == 1 and not before + after:
        return stack

    def leaf(w: Array) -> Array:
        apart = axes.joined(axes.elsewhere(axes.parted(axes.partition(w)), w.shape, axes.sizes()))
        w = jax.reshard(w, apart)
        w = jnp.pad(w, ((before, after), *[(0, 0)] * (w.ndim - 1)))
        w = w.reshape(rounds, n, -1, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape)
        return jax.reshard(w, P("pp", *axes.without(apart, "pp")[1:]))

    return jax.tree.map(leaf, stack)


def _split(x: Array, parts: int) -> Array:
    return jnp.broadcast_to(x, (parts, *x.shape)) if x.shape[0] == 1 else axes.split_rows(x, parts)


def _at(x: Array, i: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
