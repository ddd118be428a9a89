"""Each backward function against central differences; what each layer is known for."""

import cmath
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.reference import layers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 8))
SCALE, BIAS = RNG.normal(1, 0.3, 8), RNG.normal(size=8)
ANGLES = RNG.normal(size=(2, 3, 2))
HEADS = RNG.normal(size=(2, 3, 5, 4))
LEFT, RIGHT = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(4, 5, 6))
LOGITS, TARGETS, WEIGHTS = RNG.normal(size=(2, 3, 7)), RNG.integers(0, 7, (2, 3)), RNG.uniform(0, 1, (2, 3))
EQUATION = "bsd,dhk->bshk"

# name: (forward, its differentiable inputs, backward of the output gradient)
PAIRS = {
    "rms_norm": (
        lambda x, scale: layers.rms_norm(x, scale, 1e-5),
        (X, SCALE),
        lambda dy: layers.rms_norm_backward(dy, X, SCALE, 1e-5),
    ),
    "layer_norm": (
        lambda x, scale, bias: layers.layer_norm(x, scale, bias, 1e-5),
        (X, SCALE, BIAS),
        lambda dy: layers.layer_norm_backward(dy, X, SCALE, 1e-5),
    ),
    "silu": (layers.silu, (3 * X,), lambda dy: (layers.silu_backward(dy, 3 * X),)),
    "gelu": (layers.gelu, (3 * X,), lambda dy: (layers.gelu_backward(dy, 3 * X),)),
    "softmax": (layers.softmax, (X,), lambda dy: (layers.softmax_backward(dy, layers.softmax(X)),)),
    "rope": (lambda x: layers.rope(x, ANGLES), (HEADS,), lambda dy: (layers.rope(dy, -ANGLES),)),
    "einsum": (
        lambda a, b: layers.einsum(EQUATION, a, b),
        (LEFT, RIGHT),
        lambda dy: layers.einsum_backward(EQUATION, dy, LEFT, RIGHT),
    ),
    "cross_entropy": (
        lambda z: layers.cross_entropy(z, TARGETS, WEIGHTS),
        (LOGITS,),
        lambda dy: (dy * layers.cross_entropy_backward(LOGITS, TARGETS, WEIGHTS),),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_backward_equals_central_differences(name):
    forward, inputs, backward = PAIRS[name]
    dy = RNG.normal(size=np.shape(forward(*inputs)))
    for i, gradient in enumerate(backward(dy)):
        assert gradient.shape == inputs[i].shape
        for _ in range(3):
            step = 1e-5 * RNG.normal(size=inputs[i].shape)
            ahead, behind = (forward(*inputs[:i], inputs[i] + s * step, *inputs[i + 1 :]) for s in (1, -1))
            measured = np.sum(dy * (ahead - behind)) / 2
            np.testing.assert_allclose(np.sum(gradient * step), measured, rtol=1e-6, atol=1e-13)


@given(st.floats(1e-3, 1e6), st.integers(0, 2**32 - 1))
def test_rms_norm_forgets_the_size_of_its_input(size, seed):
    x = np.random.default_rng(seed).normal(size=(2, 16))
    np.testing.assert_allclose(
        layers.rms_norm(size * x, np.ones(16), 0.0), layers.rms_norm(x, np.ones(16), 0.0), rtol=1e-12
    )


def test_rms_norm_gives_unit_root_mean_square_and_layer_norm_zero_mean_too():
    one = np.ones(8)
    np.testing.assert_allclose(np.mean(layers.rms_norm(X, one, 0.0) ** 2, -1), 1)
    y = layers.layer_norm(X + 100, one, None, 0.0)
    np.testing.assert_allclose(np.mean(y, -1), 0, atol=1e-12)
    np.testing.assert_allclose(np.var(y, -1), 1)


def test_gelu_is_within_a_thousandth_of_the_exact_one():
    x = np.linspace(-6, 6, 241)
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(layers.gelu(x), exact, atol=1e-3)


def test_silu_and_softmax_do_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(layers.silu(np.array([-1e4, 0.0, 1e4])), [0, 0, 1e4])
        np.testing.assert_allclose(layers.softmax(np.array([-1e4, 0.0, 1e4])), [0, 0, 1])


def test_cross_entropy_of_uniform_logits_is_log_of_the_vocabulary_and_ignores_weight_zero():
    logits = np.zeros((1, 2, 50))
    logits[0, 1, 3] = 1000.0
    targets = np.array([[7, 8]])
    assert layers.cross_entropy(logits, targets, np.array([[2.0, 0.0]])) == pytest.approx(math.log(50))
    assert layers.cross_entropy(logits, targets, np.array([[1.0, 1.0]])) == pytest.approx(
        (math.log(50) + 1000) / 2
    )
    with pytest.raises(ValueError, match="every loss weight is 0"):
        layers.cross_entropy(logits, targets, np.zeros((1, 2)))


# RoPE -----------------------------------------------------------------------------------------------------


def rotated(x, position, theta=10_000.0, scaling=None):
    angles = np.full((1, 1, 1), position) * layers.rope_frequencies(len(x), theta, scaling)
    return layers.rope(x[None, None, None], angles)[0, 0, 0]


@settings(max_examples=50)
@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 2**32 - 1))
def test_rope_scores_depend_on_the_distance_alone(i, j, shift, seed):
    q, k = np.random.default_rng(seed).normal(size=(2, 16))
    here = rotated(q, i) @ rotated(k, j)
    there = rotated(q, i + shift) @ rotated(k, j + shift)
    assert here == pytest.approx(there, abs=1e-9)


@settings(max_examples=50)
@given(st.integers(0, 5000), st.sampled_from([2, 6, 16]), st.integers(0, 2**32 - 1))
def test_rope_multiplies_complex_numbers(position, width, seed):
    x = np.random.default_rng(seed).normal(size=width)
    half = width // 2
    z = [
        complex(x[i], x[i + half]) * cmath.exp(1j * position * 500_000.0 ** (-2 * i / width))
        for i in range(half)
    ]
    expected = [v.real for v in z] + [v.imag for v in z]
    np.testing.assert_allclose(rotated(x, position, 500_000.0), expected, atol=1e-9)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaled_frequencies_equal_the_released_formula_in_each_band(factor):
    """Wavelengths of head_dim 128, theta 500,000; Meta's code branches where ours clips."""
    low, high, context = 1.0, 4.0, 8192
    scaling = SimpleNamespace(
        kind="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high, original_context=context
    )
    plain = layers.rope_frequencies(128, 500_000.0)
    bands = set()
    for before, after in zip(plain, layers.rope_frequencies(128, 500_000.0, scaling), strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < context / high:
            bands.add("short")
            expected = before
        elif wavelength > context / low:
            bands.add("long")
            expected = before / factor
        else:
            bands.add("between")
            smooth = (context / wavelength - low) / (high - low)
            expected = (1 - smooth) * before / factor + smooth * before
        assert after == pytest.approx(expected, rel=1e-12)
    assert bands == {"short", "between", "long"}


def test_scaled_frequency_at_a_chosen_wavelength():
    # This theta gives plane 1 of head_dim 4 the wavelength 16: 2 turns in an original context of 32, a third
    # of the way from 1 to 4: a third of the frequency is kept and two thirds are divided by 8. Together 5/12.
    theta = (16 / (2 * math.pi)) ** 2
    scaling = SimpleNamespace(
        kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32
    )
    plain, scaled = layers.rope_frequencies(4, theta), layers.rope_frequencies(4, theta, scaling)
    assert plain[1] == pytest.approx(2 * math.pi / 16)
    np.testing.assert_allclose(scaled / plain, [1, 5 / 12])
