"""Running layers: scanned, unrolled and rematerialised are one function, in values and gradients."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm.nn.layers import run_layers, unstack
from min_llm.nn.runtime import Runtime

RNG = np.random.default_rng(0)
D = 6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    w: jax.Array
    scale: jax.Array


def stack(n):
    return Layer(*(jnp.asarray(RNG.normal(size=size), jnp.float32) for size in ((n, D, D), (n, D))))


STACKS = (stack(3), stack(1), stack(2))  # dense-first models have several
X = jnp.asarray(RNG.normal(size=(2, 4, D)), jnp.float32)


def body(index, w, x, cache, rows):
    """Uses the weights, its number and the cache, so that any of them in the wrong place shows."""
    x = x + jnp.tanh(x @ w.w) * w.scale / (1 + index)
    return x, cache + index * x.sum()


def by_hand(stacks, x, cache):
    index = 0
    for layers in stacks:
        for i in range(layers.w.shape[0]):
            x, cache = body(index, Layer(layers.w[i], layers.scale[i]), x, cache, None)
            index += 1
    return x, cache


def loss_of(run):
    def loss(stacks, x, cache):
        y, cache = run(stacks, x, cache)
        return (y**2).sum() + cache

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(STACKS, X, jnp.float32(1))


@pytest.fixture(scope="module")
def expected():
    return loss_of(by_hand)


@pytest.mark.parametrize(
    ("scan", "remat"), list(itertools.product([False, True], ["none", "selective", "full", "offload"]))
)
def test_every_way_is_the_same_function(scan, remat, expected):
    runtime = Runtime(scan=scan, remat=remat)
    got = loss_of(lambda stacks, x, cache: run_layers(body, stacks, x, cache, None, runtime))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def residuals(remat):
    """Floats that the backward pass of one layer keeps, beside its inputs."""
    saved = jax.vjp(lambda w, x: run_layers(body, (w,), x, 0.0, None, Runtime(remat=remat))[0], STACKS[0], X)[
        1
    ]
    return sum(leaf.size for leaf in jax.tree.leaves(saved))


def test_rematerialisation_keeps_less():
    """Nothing but the stream and the weights under "full", the products too under "selective"."""
    full, selective, none = residuals("full"), residuals("selective"), residuals("none")
    assert full < selective < none


def test_unstack_gives_the_layers_and_one_gradient():
    layers = unstack(STACKS[0], 3)
    for i, layer in enumerate(layers):
        np.testing.assert_array_equal(layer.w, STACKS[0].w[i])
        np.testing.assert_array_equal(layer.scale, STACKS[0].scale[i])

    def loss(stack, parts):
        return sum(
            (i + 1) * (layer.w**2).sum() + (layer.scale**3).sum() for i, layer in enumerate(parts(stack))
        )

    slices = lambda stack: [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(3)]
    got = jax.grad(lambda s: loss(s, lambda s: unstack(s, 3)))(STACKS[0])
    jax.tree.map(np.testing.assert_array_equal, got, jax.grad(lambda s: loss(s, slices))(STACKS[0]))
    program = str(jax.make_jaxpr(jax.grad(lambda s: loss(s, lambda s: unstack(s, 3))))(STACKS[0]))
    assert " pad[" not in program  # no padded copy of the whole stack for each layer
