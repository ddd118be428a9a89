"""Dropout keeps the mean, drops the asked fraction, and is nothing at all without a key or a rate."""

import jax
import jax.numpy as jnp
import numpy as np

from min_llm.nn.dropout import dropout, split


def test_without_key_or_rate_nothing_happens():
    x = jnp.ones(5)
    assert dropout(x, 0.3, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert split(None, 3) == [None] * 3


def test_what_is_kept_is_scaled_up():
    y = np.asarray(dropout(jnp.ones(20_000, jnp.bfloat16), 0.25, jax.random.key(0)), np.float32)
    assert set(np.unique(y)) == {0.0, np.float32(jnp.bfloat16(4 / 3))}
    assert abs((y == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 20_000)


def test_keys_differ():
    a, b = split(jax.random.key(0), 2)
    x = jnp.ones(100)
    assert not np.array_equal(dropout(x, 0.5, a), dropout(x, 0.5, b))
    np.testing.assert_array_equal(dropout(x, 0.5, a), dropout(x, 0.5, a))
