"""Mixture of experts: a router sends every token to the k feed-forward networks, of many, that it scores highest.

    y = Σ_i softmax(top_k(x · router))_i · SwiGLU_i(x)            Mixtral of Experts (Jiang et al. 2024), section 2.1

The softmax comes after top_k, so the weights of the k experts add up to 1. Experts have no capacity and no token is
dropped: rows are sorted by expert and each expert multiplies as many as it is given (`ragged_dot`).

On a mesh (expert parallelism, section 2.1) every device has a share of the tokens, cut as the residual stream is, and
of the experts: over ep, their hidden dimension over tp, their pieces over fsdp. It sends its tokens to the devices
along ep that hold their experts, the devices along tp share what arrived, run their slices of the experts and add up,
and the results go back. Sorting has no sharding rule, so all of this is written as one device sees it (`shard_map`).

Shapes: n tokens of a device, k choices of a token, e experts of a device, r devices along ep, d model dimension,
f hidden dimension.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from min_llm.nn import axes
from min_llm.nn.activations import swiglu
from min_llm.nn.leaves import dot
from min_llm.nn.manual import on_devices
from min_llm.nn.ragged import ragged_dot

Experts = tuple[Array, Array, Array]  # w_gate, w_up [e d f] and w_down [e f d]


def moe(
    x: Float[Array, "b s d"], router: Float[Array, "d experts"], experts: Experts, k: int
) -> Float[Array, "b s d"]:
    """The weighted sum of what the k best experts of each token make of it, in x's dtype."""
    if not axes.on_mesh():
        tokens = x.reshape(-1, x.shape[-1])
        return run_experts(tokens, *route(tokens, router, k), experts).reshape(x.shape)
    x = axes.shard(x, "batch", "residual", "features")
    router = jax.reshard(router, axes.without(axes.partition(router), "fsdp"))
    return on_devices(functools.partial(_on_device, k), x, router, experts)


def _on_device(k: int, x: Array, router: Array, experts: Experts) -> Array:
    tokens = x.reshape(-1, x.shape[-1])
    return exchange(tokens, *route(tokens, router, k), experts).reshape(x.shape)


def route(
    x: Float[Array, "n d"], router: Float[Array, "d experts"], k: int
) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """Weights, float32, and numbers of the k experts of each token."""
    scores, chosen = jax.lax.top_k(dot("nd,de->ne", x.astype(jnp.float32), router), k)
    return jax.nn.softmax(scores), chosen


def exchange(
    x: Float[Array, "n d"], weights: Float[Array, "n k"], chosen: Int[Array, "n k"], experts: Experts
) -> Float[Array, "n d"]:
    """`run_experts` where a device along ep holds e of the experts, and one along tp a slice of them.

    The buffer has a place for every token on every device, [r n d], so it holds whatever the router does; the places
    of tokens that are not wanted there are 0. A token goes to a device once, however many of its experts are there,
    and one row comes back. That is the traffic of the worst case (an all-gather and its reverse):
    `jax.lax.ragged_all_to_all` would send only what is wanted, but XLA does not have it on CPU.
    """
    r, e = jax.lax.axis_size("ep"), experts[0].shape[0]
    here = chosen // e == jnp.arange(r)[:, None, None]  # [r n k]
    x_here = _arrive(jnp.where(here.any(-1, keepdims=True), x, 0))
    weights, chosen = _arrive(jnp.where(here, weights, 0)), _arrive(jnp.where(here, chosen % e, e))
    y = run_experts(x_here, weights, chosen, experts, on_mesh=True).reshape(r, -1, x.shape[-1])
    y = _swap(jax.lax.psum_scatter(y, "tp", scatter_dimension=1, tiled=True))
    return y.sum(0, dtype=jnp.float32).astype(x.dtype)


def _arrive(parts: Shaped[Array, "r n a"]) -> Shaped[Array, "m a"]:
    """What all devices along ep have for this one, and what those along tp were sent too."""
    arrived = jax.lax.all_gather(_swap(parts), "tp", axis=1, tiled=True)
    return arrived.reshape(-1, parts.shape[-1])


def _swap(parts: Shaped[Array, "r n a"]) -> Shaped[Array, "r n a"]:
    """Part i goes to device i along ep, whose part for this device takes its place."""
    return jax.lax.all_to_all(parts, "ep", split_axis=0, concat_axis=0)


def run_experts(
    x: Float[Array, "n d"],
    weights: Float[Array, "n k"],
    chosen: Int[Array, "n k"],
    experts: Experts,
    on_mesh: bool = False,
) -> Float[Array, "n d"]:
    """Σ_k weights · SwiGLU_chosen(x), summed in float32. A choice of e means no expert of this device: nothing."""
    (n, k), (w_gate, w_up, w_down) = chosen.shape, experts
    into, out_of = (1, 2) if on_mesh else (None, None)  # the axes that are cut over fsdp
    choice = chosen.reshape(-1)
    order = jnp.argsort(choice)  # row i of the sorted is choice order[i] …
    place = jnp.argsort(order)  # … and choice j is row place[j] of the sorted
    sizes = (choice[:, None] == jnp.arange(w_gate.shape[0])).sum(0)
    rows = permute(jnp.repeat(x, k, axis=0), order, place)
    hidden = swiglu(ragged_dot(rows, w_gate, sizes, into), ragged_dot(rows, w_up, sizes, into))
    out = permute(ragged_dot(hidden, w_down, sizes, out_of), place, order)
    return (weights[..., None] * out.reshape(n, k, -1)).sum(1).astype(x.dtype)


@jax.custom_vjp
def permute(
    x: Float[Array, "m d"], order: Int[Array, " m"], inverse: Int[Array, " m"]
) -> Float[Array, "m d"]:
    """x[order], for a permutation and its inverse: so the gradient is a gather too, not a slow scatter."""
    return x[order]


permute.defvjp(
    lambda x, order, inverse: (x[order], inverse),
    lambda inverse, dy: (dy[inverse], None, None),
)
