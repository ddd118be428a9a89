"""Cross-entropy of a large vocabulary, in chunks, with its gradient computed on the way forward.

With 128K tokens in the vocabulary the logits of one batch are larger than the model. Here they exist one chunk of
positions at a time: the forward pass computes the logits of a chunk, their log-sum-exp, and at once the gradient
(softmax − one-hot), which it multiplies out to the gradients of the hidden states and of the head. The backward pass
only scales them.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from min_llm.kernels.product import multiply
from min_llm.kernels.softmax_loss import loss_and_gradient, pick
from min_llm.nn import axes
from min_llm.nn.leaves import unembed


def cross_entropy(
    hidden: Float[Array, "b s d"],
    head: Float[Array, "d v"],
    targets: Int[Array, "b s"],
    weights: Float[Array, "b s"] | None,
    logits_per_chunk: int,
) -> Float[Array, ""]:
    """Σ weights · −log softmax(hidden · head)[target], in nats, float32 (weights None: all 1)."""
    weights = jnp.ones(targets.shape, jnp.float32) if weights is None else weights
    if axes.on_mesh():
        return _on_mesh(hidden, head, targets, weights, logits_per_chunk)
    n = targets.size
    rows = max(1, min(n, logits_per_chunk // head.shape[1]))
    chunks = -(-n // rows)
    rows = -(-n // chunks)  # equal chunks
    d = hidden.shape[-1]
    return _chunked(hidden.reshape(n, d), head, targets.reshape(n), weights.reshape(n), rows)


def _on_mesh(hidden: Array, head: Array, targets: Array, weights: Array, logits_per_chunk: int) -> Array:
    """The vocabulary is cut over tp, places over cp; every device holds at most about `logits_per_chunk` logits at
    once, and computes them again in the backward pass."""
    sizes = axes.sizes()
    devices = math.prod(sizes.get(axis, 1) for axis in ("dp", "fsdp", "ep", "cp", "tp"))
    logits = targets.size * head.shape[1] // devices
    parts = parts_on_mesh(logits, targets.shape[1] // sizes.get("cp", 1), logits_per_chunk)
    if parts == 1:
        return (weights * nll(hidden, head, targets)).sum()

    @jax.checkpoint
    def part(total: Array, xs: tuple) -> tuple[Array, None]:
        h, t, w = xs
        return total + (w * nll(h, head, t)).sum(), None

    hidden = axes.shard(hidden, "batch", "seq", "features")
    xs = tuple(axes.split_places(x, parts) for x in (hidden, targets, weights))
    return jax.lax.scan(part, jnp.float32(0), xs)[0]


def parts_on_mesh(logits: int, places: int, logits_per_chunk: int) -> int:
    """In how many equal parts a device takes its places, so that none has more than `logits_per_chunk` logits."""
    fits = (n for n in range(1, places + 1) if places % n == 0 and logits <= n * logits_per_chunk)
    return next(fits, places)


def nll(
    hidden: Float[Array, "b s d"], head: Float[Array, "d v"], targets: Int[Array, "b s"]
) -> Float[Array, "b s"]:
    """−log softmax(hidden · head)[target] of every position, plainly: the reference, and the form that is exact
    under a vocabulary-sharded head."""
    logits = unembed(hidden, head)
    hit = targets[..., None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(hit, logits, 0).sum(-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(hidden: Array, head: Array, targets: Array, weights: Array, rows: int) -> Array:
    total = jnp.float32(0)
    for part in _parts(targets.shape[0], rows):
        logits = multiply(hidden[part], head)
        lse = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
        total += (weights[part] * (lse - pick(logits, targets[part]))).sum()
    return total


def _parts(n: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def _forward(hidden: Array, head: Array, targets: Array, weights: Array, rows: int) -> tuple[Array, tuple]:
    total, d_hidden, d_head, nlls = jnp.float32(0), [], None, []
    for part in _parts(targets.shape[0], rows):
        h, t, w = hidden[part], targets[part], weights[part]
        nll, d_logits = loss_and_gradient(multiply(h, head), t, w)
        nlls.append(nll)
        total += (w * nll).sum()
        d_hidden.append(multiply(d_logits, head, tw=True))
        part_head = multiply(h, d_logits, tx=True, dtype=jnp.float32)
        d_head = part_head if d_head is None else d_head + part_head
    return total, (jnp.concatenate(d_hidden).astype(hidden.dtype), d_head, jnp.concatenate(nlls))


def _backward(rows: int, saved: tuple, g: Array) -> tuple:
    d_hidden, d_head, nlls = saved
    return (g * d_hidden).astype(d_hidden.dtype), g * d_head, None, g * nlls


_chunked.defvjp(_forward, _backward)
