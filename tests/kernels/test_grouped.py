"""Products of groups of rows: XLA's ragged form and ours in blocks equal a product a group, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.kernels import grouped
from min_llm.nn.ragged import ragged_dot

M, A, B, E = 13, 3, 5, 4
FORMS = {
    "XLA": (grouped._multiply, grouped._outer),
    "blocks": (grouped._multiply_blocks, grouped._outer_blocks),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of four rows, so that groups take several and the last one overlaps the one before."""
    monkeypatch.setattr(grouped, "BLOCK", 4)


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def all_three(form, x, w, y, sizes):
    multiply, outer = FORMS[form]
    return multiply(x, w, sizes, False), multiply(y, w, sizes, True), outer(x, y, sizes, jnp.float32)


# sizes whose sum is at most M, by the places where the groups end
SIZES = st.lists(st.integers(0, M), min_size=E, max_size=E).map(lambda ends: np.diff([0, *sorted(ends)]))


@settings(max_examples=40, deadline=None)
@given(SIZES, st.sampled_from(sorted(FORMS)))
def test_a_product_for_every_group(sizes, form):
    """Rows beyond the groups hold NaN and make nothing."""
    n = sizes.sum()
    x, y, w = draw(M, A), draw(M, B), draw(E, A, B)
    x[n:], y[n:] = np.nan, np.nan
    forward, back, dw = all_three(form, x, w, y, np.int32(sizes))
    groups = np.split(np.arange(n), np.cumsum(sizes)[:-1])
    want, want_back = np.zeros((M, B)), np.zeros((M, A))
    for i, rows in enumerate(groups):
        want[rows], want_back[rows] = x[rows] @ w[i], y[rows] @ w[i].T
        np.testing.assert_allclose(dw[i], x[rows].T @ y[rows], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(forward, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back, want_back, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_sums_in_float32(form):
    sizes = np.int32([7, 0, 1, 5])
    x, w, y = (jnp.asarray(a, jnp.bfloat16) for a in (draw(M, A), draw(E, A, B), draw(M, B)))
    forward, back, dw = all_three(form, x, w, y, sizes)
    assert (forward.dtype, back.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    exact = all_three(form, *(np.float32(a) for a in (x, w, y)), sizes)
    for got, want in zip((forward, back, dw), exact, strict=True):
        np.testing.assert_allclose(np.float32(got), want, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("m", [1, 3, 4, 300])
def test_any_number_of_rows(m, monkeypatch):
    monkeypatch.setattr(grouped, "BLOCK", 256)
    sizes = np.int32([m // 3, 0, m - m // 3 - m // 4, 0])
    x, y, w = draw(m, A), draw(m, B), draw(E, A, B)
    for ours, plain in zip(
        *(jax.jit(functools.partial(all_three, f))(x, w, y, sizes) for f in FORMS), strict=True
    ):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-4)


def test_the_gradient_is_that_of_jax():
    sizes, x, w = jnp.int32([2, 0, 6, 3]), draw(M, A), draw(E, A, B)
    _, pull = jax.vjp(lambda x, w: ragged_dot(x, w, sizes), x, w)
    plain, plain_pull = jax.vjp(lambda x, w: jax.lax.ragged_dot(x, w, sizes), x, w)
    dy = jnp.where(jnp.arange(M)[:, None] < sizes.sum(), jnp.cos(plain), 0)
    for got, want in zip(pull(dy), plain_pull(dy), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
