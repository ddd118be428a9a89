"""Rotary embedding: the formula, what it promises, the three scalings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm.config import UserError, build, dump
from min_llm.nn.rope import RopeScaling, angles, frequencies, rotate
from min_llm.reference import layers as oracle

RNG = np.random.default_rng(0)
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 40], [5, 6, 7, 8, 9, 10, 11]], np.int32)
X = RNG.normal(size=(2, 7, 3, 6)).astype(np.float32)


def turned(x, positions, theta=100.0, scaling=None):
    return rotate(jnp.asarray(x), *angles(jnp.asarray(positions), x.shape[-1], theta, scaling))


SCALINGS = [
    None,
    RopeScaling(factor=8.0, original_context=64),
    RopeScaling(kind="linear", factor=3.0),
    RopeScaling(kind="yarn", factor=4.0, original_context=64, beta_fast=8.0),
]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_values_and_gradients_equal_the_oracle(scaling):
    angle = POSITIONS[..., None] * oracle.rope_frequencies(6, 100.0, scaling)
    got, pull = jax.vjp(lambda x: turned(x, POSITIONS, scaling=scaling), X)
    growth = oracle.rope_growth(scaling)
    np.testing.assert_allclose(got, oracle.rope(np.float64(X), angle, growth), atol=1e-5)
    dy = RNG.normal(size=X.shape).astype(np.float32)
    np.testing.assert_allclose(pull(dy)[0], oracle.rope(np.float64(dy), -angle, growth), atol=1e-5)


def test_one_pair_turns_as_the_paper_says():
    """(x₁, x₂) at position m and frequency 1 turns by m radians; the second pair has frequency 100^(-2/4)."""
    x = np.zeros((1, 1, 1, 4), np.float32)
    x[..., 0] = x[..., 1] = 1  # the first halves of both pairs
    expected = [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]
    np.testing.assert_allclose(turned(x, np.array([[3]]))[0, 0, 0], expected, atol=1e-6)


def test_products_depend_on_the_distance_alone():
    q, k = X[:, :, 0:1], X[:, :, 1:2]

    def scores(shift):
        return jnp.einsum("bshk,bthk->bst", turned(q, POSITIONS + shift), turned(k, POSITIONS + shift))

    np.testing.assert_allclose(scores(0), scores(1000), atol=2e-4)
    assert np.abs(scores(0) - jnp.einsum("bshk,bthk->bst", q, k)).max() > 0.1  # it does something


def test_lengths_are_kept_and_position_zero_is_the_identity():
    np.testing.assert_allclose(
        jnp.linalg.norm(turned(X, POSITIONS), axis=-1), np.linalg.norm(X, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(turned(X, 0 * POSITIONS), X)


def test_bfloat16_is_rotated_in_float32():
    """One rounding, at the end: the angle itself never passes through bfloat16."""
    x = jnp.asarray(X, jnp.bfloat16)
    got = turned(x, POSITIONS + 1000)
    assert got.dtype == jnp.bfloat16
    exact = turned(x.astype(jnp.float32), POSITIONS + 1000)
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaling_equals_the_published_rule(factor):
    """`apply_scaling` of llama-models, as it is written there: one frequency after the other, three bands."""
    scaling = RopeScaling(factor=factor)
    plain, scaled = frequencies(128, 500_000.0), frequencies(128, 500_000.0, scaling)
    expected, bands = [], set()
    for freq in plain:
        wavelength = 2 * math.pi / freq
        if wavelength < 8192 / 4:
            bands.add("kept")
            expected.append(freq)
        elif wavelength > 8192 / 1:
            bands.add("stretched")
            expected.append(freq / factor)
        else:
            bands.add("blended")
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * freq / factor + smooth * freq)
    assert bands == {"kept", "blended", "stretched"}
    np.testing.assert_allclose(scaled, expected, rtol=1e-12)
    assert np.all(np.diff(scaled) < 0)  # the order of the frequencies survives


def test_frequencies_are_powers_of_theta():
    np.testing.assert_allclose(frequencies(4, 100.0), [1.0, 0.1], rtol=1e-15)


def test_position_interpolation_squeezes_positions():
    """Position m with factor 4 is what position m / 4 was: Chen et al. 2023, equation 4."""
    scaling = RopeScaling(kind="linear", factor=4.0)
    np.testing.assert_allclose(
        frequencies(6, 100.0, scaling), np.array([1, 100 ** (-1 / 3), 100 ** (-2 / 3)]) / 4
    )
    np.testing.assert_allclose(turned(X, 4 * POSITIONS, scaling=scaling), turned(X, POSITIONS), atol=1e-5)


def test_yarn_keeps_blends_and_stretches_by_the_number_of_the_pair():
    """theta 2^16 and head_dim 32 give pair i the frequency 2^-i. Over 2^9 · 2 pi tokens it turns 2^(9 - i) times:
    32 times at pair 4, once at pair 9. The line between them takes a fifth a pair."""
    context = round(2**9 * 2 * math.pi)
    scaling = RopeScaling(kind="yarn", factor=8.0, original_context=context)
    ratio = frequencies(32, 2.0**16, scaling) / frequencies(32, 2.0**16)
    bounds = [
        math.log2(context / (2 * math.pi * turns)) for turns in (32, 1)
    ]  # 4 and 9, but for the rounding
    first, last = math.floor(bounds[0]), math.ceil(bounds[1])
    stretched = np.clip((np.arange(16) - first) / (last - first), 0, 1)
    np.testing.assert_allclose(ratio, 1 - stretched + stretched / 8, rtol=1e-12)
    assert ratio[first] == 1 and ratio[last] == 1 / 8 and first in (3, 4) and last in (9, 10)


def test_yarn_makes_attention_sharper():
    scaling = RopeScaling(kind="yarn", factor=16.0, original_context=64)
    assert scaling.attention_factor == pytest.approx(1 + 0.1 * math.log(16))
    norms = jnp.linalg.norm(turned(X, POSITIONS, scaling=scaling), axis=-1)
    np.testing.assert_allclose(norms, scaling.attention_factor * np.linalg.norm(X, axis=-1), rtol=1e-5)
    assert RopeScaling(kind="linear").attention_factor == RopeScaling().attention_factor == 1


@pytest.mark.parametrize("scaling", SCALINGS[1:])
def test_configurations_carry_every_kind(scaling):
    assert build(RopeScaling, dump(scaling)) == scaling


def test_a_file_from_before_the_kinds_is_llama_3_1():
    old = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192}
    assert build(RopeScaling, old) == RopeScaling(32.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "ntk"}, "must be one of: llama3, linear, yarn"),
        ({"kind": "linear", "original_context": 64}, "linear has no original_context"),
        ({"kind": "yarn", "high_freq_factor": 2.0}, "yarn has no high_freq_factor"),
        ({"beta_fast": 16.0}, "llama3 has no beta_fast"),
        ({"factor": 0.5}, "factor 0.5"),
        ({"kind": "yarn", "beta_slow": 40.0}, "beta_slow below beta_fast"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        build(RopeScaling, given)
