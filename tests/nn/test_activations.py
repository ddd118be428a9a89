"""SwiGLU against the oracle, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np

from min_llm.nn.activations import swiglu
from min_llm.reference.layers import silu, silu_backward

RNG = np.random.default_rng(0)
GATE, UP, DY = (3 * RNG.normal(size=(3, 2, 5, 7))).astype(np.float32)


def test_values_and_gradients():
    y, pull = jax.vjp(swiglu, GATE, UP)
    gate, up, dy = np.float64(GATE), np.float64(UP), np.float64(DY)
    np.testing.assert_allclose(y, silu(gate) * up, rtol=1e-5, atol=1e-5)
    for got, want in zip(pull(DY), (silu_backward(dy * up, gate), dy * silu(gate)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_rounded_once():
    gate, up = jnp.asarray(GATE, jnp.bfloat16), jnp.asarray(UP, jnp.bfloat16)
    y, pull = jax.vjp(swiglu, gate, up)
    exact = swiglu(gate.astype(jnp.float32), up.astype(jnp.float32))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
    assert [g.dtype for g in pull(y)] == [jnp.bfloat16, jnp.bfloat16]


def test_extreme_gates_stay_finite():
    gate = jnp.array([-1e30, -200.0, 0.0, 200.0, 1e30])
    y, pull = jax.vjp(swiglu, gate, jnp.ones(5))
    np.testing.assert_allclose(y, [0, 0, 0, 200, 1e30], atol=1e-6)
    for grad in pull(jnp.ones(5)):
        assert np.isfinite(grad).all()
