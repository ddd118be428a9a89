"""RMSNorm and LayerNorm against the oracle, forward and backward, and their precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm.nn.norm import layer_norm, rms_norm
from min_llm.reference import layers as oracle

RNG = np.random.default_rng(0)
X = RNG.normal(1.0, 2.0, size=(2, 3, 7)).astype(np.float32)
SCALE, BIAS = RNG.normal(1.0, 0.3, size=(2, 7)).astype(np.float32)
DY = RNG.normal(size=X.shape).astype(np.float32)
close = dict(rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_rms_norm(eps):
    y, pull = jax.vjp(lambda x, s: rms_norm(x, s, eps), X, SCALE)
    np.testing.assert_allclose(y, oracle.rms_norm(np.float64(X), SCALE, eps), **close)
    for got, want in zip(pull(DY), oracle.rms_norm_backward(np.float64(DY), X, SCALE, eps), strict=True):
        np.testing.assert_allclose(got, want, **close)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("bias", [BIAS, None])
def test_layer_norm(bias, eps):
    given = (X, SCALE) if bias is None else (X, SCALE, bias)
    y, pull = jax.vjp(lambda x, s, b=None: layer_norm(x, s, b, eps), *given)
    np.testing.assert_allclose(y, oracle.layer_norm(np.float64(X), SCALE, bias, eps), **close)
    for got, want in zip(pull(DY), oracle.layer_norm_backward(np.float64(DY), X, SCALE, eps), strict=False):
        np.testing.assert_allclose(got, want, **close)


@pytest.mark.parametrize(
    "norm", [lambda x, s: rms_norm(x, s, 1e-5), lambda x, s: layer_norm(x, s, None, 1e-5)]
)
def test_bfloat16_goes_in_and_out_and_float32_lies_between(norm):
    """Equal to the float32 result rounded once; gradients keep the dtype of what they belong to."""
    x = jnp.asarray(X, jnp.bfloat16)
    y, pull = jax.vjp(norm, x, jnp.asarray(SCALE))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, norm(x.astype(jnp.float32), SCALE).astype(jnp.bfloat16))
    dx, dscale = pull(jnp.asarray(DY, jnp.bfloat16))
    assert (dx.dtype, dscale.dtype) == (jnp.bfloat16, jnp.float32)


def test_a_constant_row_is_finite():
    zero = jnp.zeros((1, 7))
    for y, pull in (
        jax.vjp(lambda x: rms_norm(x, SCALE, 1e-5), zero),
        jax.vjp(lambda x: layer_norm(x, SCALE, BIAS, 1e-5), zero + 3),
    ):
        assert np.isfinite(y).all()
        assert np.isfinite(pull(jnp.ones_like(y))[0]).all()
