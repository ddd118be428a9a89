"""The chunked loss equals the plain one: values and all three gradients, for every size of chunk."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm.nn.cross_entropy import cross_entropy, nll
from min_llm.reference import layers as oracle

B, S, D, V = 2, 4, 6, 13
N = B * S
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, S, D)).astype(np.float32)
HEAD = RNG.normal(size=(D, V)).astype(np.float32)
TARGETS = RNG.integers(0, V, (B, S)).astype(np.int32)
TARGETS[0, :2] = 0, V - 1
WEIGHTS = np.array([[1, 0, 0.5, 2], [0, 0, 0, 1.5]], np.float32)
close = dict(rtol=1e-5, atol=1e-5)


@functools.partial(jax.jit, static_argnums=3, compiler_options={"xla_backend_optimization_level": 0})
def chunked(hidden, head, weights, logits_per_chunk):
    """Loss and gradients (of weights too, where there are any)."""
    of = (0, 1) if weights is None else (0, 1, 2)
    f = lambda h, w, weights: cross_entropy(h, w, TARGETS, weights, logits_per_chunk)
    return jax.value_and_grad(f, argnums=of)(hidden, head, weights)


def plain(hidden, head, weights):
    """The same from the oracle, in float64: the weighted sum is its mean times the total weight."""
    weights = np.ones((B, S)) if weights is None else np.float64(weights)
    hidden, head = np.float64(hidden), np.float64(head)
    logits = oracle.einsum("bsd,dv->bsv", hidden, head)
    total = weights.sum()
    d_logits = total * oracle.cross_entropy_backward(logits, TARGETS, weights)
    shifted = logits - logits.max(-1, keepdims=True)
    nlls = np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, TARGETS[..., None], -1)[..., 0]
    grads = (*oracle.einsum_backward("bsd,dv->bsv", d_logits, hidden, head), nlls)
    return total * oracle.cross_entropy(logits, TARGETS, weights), grads


@pytest.mark.parametrize("rows", [*range(1, N + 1), N + 5])
def test_every_size_of_chunk(rows):
    value, grads = chunked(HIDDEN, HEAD, WEIGHTS, rows * V + V // 2)
    want, want_grads = plain(HIDDEN, HEAD, WEIGHTS)
    np.testing.assert_allclose(value, want, **close)
    for got, exact in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(got, exact, **close)


@pytest.mark.parametrize("rows", [3, N])
def test_no_weights_means_one_everywhere(rows):
    value, grads = chunked(HIDDEN, HEAD, None, rows * V)
    want, want_grads = plain(HIDDEN, HEAD, None)
    np.testing.assert_allclose(value, want, **close)
    for got, exact in zip(grads, want_grads[:2], strict=True):
        np.testing.assert_allclose(got, exact, **close)


def test_a_chunk_smaller_than_the_vocabulary_still_holds_one_position():
    np.testing.assert_allclose(chunked(HIDDEN, HEAD, WEIGHTS, 1)[0], plain(HIDDEN, HEAD, WEIGHTS)[0], **close)


def test_a_place_without_weight_has_a_gradient_of_exactly_zero():
    _, (d_hidden, _, _) = chunked(HIDDEN, HEAD, WEIGHTS, 3 * V)
    assert np.all(np.asarray(d_hidden)[WEIGHTS == 0] == 0)
    assert np.all(np.abs(d_hidden).max(-1)[WEIGHTS > 0] > 0)


def test_no_weight_anywhere_is_a_loss_of_zero():
    value, (d_hidden, d_head, _) = chunked(HIDDEN, HEAD, 0 * WEIGHTS, 3 * V)
    assert value == 0
    assert not np.any(d_hidden)
    assert not np.any(d_head)


def test_the_gradient_is_scaled_by_what_follows():
    """Halving the loss halves every gradient: the backward pass applies the cotangent."""
    f = lambda h, w, weights: 0.5 * cross_entropy(h, w, TARGETS, weights, 3 * V)
    for got, whole in zip(
        jax.grad(f, argnums=(0, 1, 2))(HIDDEN, HEAD, WEIGHTS), plain(HIDDEN, HEAD, WEIGHTS)[1], strict=True
    ):
        np.testing.assert_allclose(got, 0.5 * whole, **close)


def test_huge_logits_do_not_overflow():
    value, (d_hidden, d_head, _) = chunked(1e4 * HIDDEN, HEAD, WEIGHTS, 3 * V)
    want, (want_hidden, _, _) = plain(1e4 * HIDDEN, HEAD, WEIGHTS)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(d_hidden, want_hidden, **close)
    assert np.isfinite(d_head).all()


def test_the_plain_form_is_the_oracle_too():
    value = (WEIGHTS * nll(jnp.asarray(HIDDEN), jnp.asarray(HEAD), jnp.asarray(TARGETS))).sum()
    np.testing.assert_allclose(value, plain(HIDDEN, HEAD, WEIGHTS)[0], **close)


def test_bfloat16_stays_near():
    """Steps are 2⁻⁸ = 0.004 wide; measured 1e-5 of the loss and 0.003 of the largest gradient."""
    hidden = jnp.asarray(HIDDEN, jnp.bfloat16)
    value, grads = chunked(hidden, HEAD, WEIGHTS, 3 * V)
    want, want_grads = plain(np.asarray(hidden, np.float32), HEAD, WEIGHTS)
    assert value.dtype == jnp.float32
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
    assert abs(value - want) < 0.002 * want
    for got, exact in zip(grads, want_grads, strict=True):
        assert np.abs(np.asarray(got, np.float64) - exact).max() < 0.01 * np.abs(exact).max()
