"""The one projection: values, gradients and dtypes of dot, embed and unembed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm.nn.leaves import dot, embed, unembed
from min_llm.reference.layers import einsum, einsum_backward

SIZES = dict(b=2, s=5, d=7, h=3, k=4, g=1, f=9, v=11)
RNG = np.random.default_rng(0)
close = dict(rtol=1e-5, atol=1e-5)


def normal(letters):
    return RNG.normal(size=[SIZES[c] for c in letters]).astype(np.float32)


@pytest.mark.parametrize(
    "eq", ["bsd,dhk->bshk", "bsd,dgk->bsgk", "bshk,hkd->bsd", "bsd,df->bsf", "bsf,fd->bsd"]
)
def test_dot_and_its_gradients(eq):
    left, right = eq.split("->")[0].split(",")
    x, w, dy = normal(left), normal(right), normal(eq.split("->")[1])
    y, pull = jax.vjp(lambda x, w: dot(eq, x, w), x, w)
    np.testing.assert_allclose(y, einsum(eq, np.float64(x), w), **close)
    for got, want in zip(pull(dy), einsum_backward(eq, np.float64(dy), x, w), strict=True):
        np.testing.assert_allclose(got, want, **close)


def test_dot_computes_in_the_dtype_of_the_activations_and_returns_float32_gradients_of_weights():
    x, w = jnp.asarray(normal("bsd"), jnp.bfloat16), jnp.asarray(normal("df"))
    y, pull = jax.vjp(lambda x, w: dot("bsd,df->bsf", x, w), x, w)
    assert y.dtype == jnp.bfloat16
    assert [g.dtype for g in pull(y)] == [jnp.bfloat16, jnp.float32]
    exact = einsum("bsd,df->bsf", np.asarray(x, np.float64), np.asarray(w.astype(jnp.bfloat16), np.float64))
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-7, atol=2**-7)


def test_embed_takes_rows_and_adds_the_gradients_of_repeated_tokens():
    tokens, table, dy = np.array([[3, 0, 3, 10, 3]]), normal("vd"), normal("bsd")[:1]
    x, pull = jax.vjp(lambda t: embed(jnp.asarray(tokens), t, jnp.float32), table)
    np.testing.assert_array_equal(x, table[tokens])
    want = np.zeros_like(table, np.float64)
    np.add.at(want, tokens, dy)
    np.testing.assert_allclose(pull(dy)[0], want, **close)
    assert embed(jnp.asarray(tokens), jnp.asarray(table), jnp.dtype("bfloat16")).dtype == jnp.bfloat16


def test_embed_accumulates_its_gradient_in_float32():
    """256 gradients of 1 add up to 256 (exact in bfloat16), 257 to 257 (not)."""
    tokens = jnp.zeros((1, 257), int)
    grad = jax.grad(lambda t: embed(tokens, t, jnp.dtype("bfloat16")).astype(jnp.float32).sum())(
        jnp.ones((2, 1))
    )
    assert grad[0, 0] == 257


def test_unembed_and_its_gradients():
    x, head, dy = normal("bsd"), normal("dv"), normal("bsv")
    logits, pull = jax.vjp(unembed, x, head)
    np.testing.assert_allclose(logits, einsum("bsd,dv->bsv", np.float64(x), head), **close)
    for got, want in zip(pull(dy), einsum_backward("bsd,dv->bsv", np.float64(dy), x, head), strict=True):
        np.testing.assert_allclose(got, want, **close)


def test_logits_are_float32_whatever_the_model_computes_in():
    assert unembed(jnp.asarray(normal("bsd"), jnp.bfloat16), jnp.asarray(normal("dv"))).dtype == jnp.float32
