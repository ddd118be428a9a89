"""Mixture of experts: dispatch equals every expert run on every token, whatever the routing, and loses no token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.nn.activations import swiglu
from min_llm.nn.moe import moe, permute, route, run_experts

N, K, E, D, F = 6, 2, 3, 5, 4


def draw(*shapes, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


X, WEIGHTS, ROUTER = draw((N, D), (N, K), (D, E))
EXPERTS = tuple(draw((E, D, F), (E, D, F), (E, F, D), seed=1))


def dense(x, weights, chosen, experts):
    """Every expert on every token, and then the sum over the choices; a choice of E is nothing."""
    gate, up, down = experts
    hidden = swiglu(jnp.einsum("nd,edf->nef", x, gate), jnp.einsum("nd,edf->nef", x, up))
    share = (weights[..., None] * (chosen[..., None] == jnp.arange(E))).sum(1)
    return jnp.einsum("ne,nef,efd->nd", share, hidden, down)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(f, x, weights, chosen, experts):
    """The result, and the gradients of x, weights and experts for the cotangent x + 1."""
    y, pull = jax.vjp(lambda x, w, e: f(x, w, chosen, e), x, weights, experts)
    return y, pull(x + 1)


def assert_equal(got, want, atol=2e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


ROUTINGS = {
    "all to the first expert": np.zeros((N, K), np.int32),
    "all to the last expert": np.full((N, K), E - 1, np.int32),
    "the middle one idle": np.tile(np.int32([2, 0]), (N, 1)),
    "nothing here": np.full((N, K), E, np.int32),
    "one token here": np.where(np.arange(N)[:, None] == 3, np.int32([1, 0]), E),
}


@pytest.mark.parametrize("routing", ROUTINGS)
def test_extreme_routings_equal_the_dense_form(routing):
    args = X, WEIGHTS, ROUTINGS[routing], EXPERTS
    assert_equal(with_gradients(run_experts, *args), with_gradients(dense, *args))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, E), min_size=K, max_size=K), min_size=N, max_size=N))
def test_any_routing_equals_the_dense_form(chosen):
    """Any choices: twice the same, of experts that are not here (E), all of one."""
    args = X, WEIGHTS, np.int32(chosen), EXPERTS
    assert_equal(with_gradients(run_experts, *args), with_gradients(dense, *args))


def test_no_token_is_lost_and_none_is_counted_twice():
    """Experts that return the sum of their inputs' parts times their number: each token gets just its own."""
    chosen = np.random.default_rng(3).integers(0, E, (N, K)).astype(np.int32)
    scale = np.float32([1, 10, 100])
    # silu(50) = 50: the gate is a constant for inputs whose first number is 1
    x = np.abs(X) + np.float32([1, 0, 0, 0, 0])
    gate = np.zeros((E, D, D), np.float32)
    up = np.tile(np.eye(D, dtype=np.float32), (E, 1, 1))
    down = up * scale[:, None, None]
    gate[:, 0] = 50 / x[:, 0].min()
    silu = gate[0, 0, 0] * x[:, 0]
    got = run_experts(x, np.ones((N, K), np.float32), chosen, (gate, up, down))
    np.testing.assert_allclose(got, scale[chosen].sum(1)[:, None] * silu[:, None] * x, rtol=1e-5)


def test_the_k_best_scores_are_softmaxed():
    weights, chosen = route(X[None], ROUTER, K)
    scores = np.float64(X) @ ROUTER
    np.testing.assert_array_equal(chosen[0], np.argsort(-scores, axis=-1)[:, :K])
    best = np.exp(np.sort(scores, axis=-1)[:, ::-1][:, :K])
    np.testing.assert_allclose(weights[0], best / best.sum(-1, keepdims=True), rtol=1e-5)
    assert weights.dtype == np.float32


def test_moe_of_bfloat16_routes_in_float32():
    x = jnp.asarray(X[None], jnp.bfloat16)
    y = moe(x, ROUTER, EXPERTS, K)
    assert y.dtype == jnp.bfloat16
    weights, chosen = route(x.astype(jnp.float32), ROUTER, K)
    want = dense(x[0].astype(jnp.float32), weights[0], chosen[0], EXPERTS)
    assert np.abs(y[0] - want).max() < 0.03 * np.abs(want).max()


def test_permute_and_its_gradient():
    order = np.array([3, 0, 5, 1, 4, 2])
    y, pull = jax.vjp(lambda x: permute(x, order, np.argsort(order)), X)
    np.testing.assert_array_equal(y, X[order])
    np.testing.assert_array_equal(pull(y)[0], X)
