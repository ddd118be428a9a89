"""Rounding to 8 and 4 bits: half a unit at most, whatever the numbers; and what a scale a row is for."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.quant import rounding

MATRICES = st.tuples(st.integers(1, 5), st.sampled_from([1, 15, 32, 70]), st.integers(0, 2**32 - 1))


def matrix(n, k, seed):
    """Rows of very different size, some of zeros."""
    rng = np.random.default_rng(seed)
    rows = 10.0 ** rng.uniform(-8, 8, (n, 1)) * rng.integers(0, 4, (n, 1)).clip(max=1)
    return (rng.normal(size=(n, k)) * rows).astype(np.float32)


@given(MATRICES)
@settings(max_examples=15, deadline=None)
def test_int8_is_within_half_a_unit_and_uses_the_whole_range(size):
    x = matrix(*size)
    values, scales = map(np.asarray, rounding.int8_rows(x))
    assert (np.abs(values * scales - x) <= scales * 0.501).all()
    assert (np.abs(values).max(-1) == np.where(x.any(-1), 127, 0)).all()


@given(MATRICES, st.sampled_from([8, 32]))
@settings(max_examples=15, deadline=None)
def test_int4_comes_back_from_its_bytes_and_nearer_than_units_of_the_maximum_bring_it(size, group):
    x = matrix(*size)
    packed, scales = map(np.asarray, rounding.int4_groups(x, group))
    values = np.asarray(rounding.unpacked(packed))
    assert packed.dtype == np.uint8 and packed.shape[1] * 2 == values.shape[1] == scales.shape[1] * group
    assert (values[:, x.shape[1] :] == 0).all()
    assert (np.asarray(rounding.packed(values)) == packed).all()
    given = np.pad(x, [(0, 0), (0, values.shape[1] - x.shape[1])]).reshape(*scales.shape, group).astype(float)
    found = values.reshape(given.shape) * scales[..., None].astype(float)
    unit = np.abs(given).max(-1, keepdims=True) / 7.5 + 1e-300
    plain = np.clip(np.round(given / unit), -8, 7) * unit
    assert (((found - given) ** 2).sum(-1) <= ((plain - given) ** 2).sum(-1) * (1 + 1e-5)).all()
    assert (np.abs(found - given) <= 1.2 * np.abs(scales[..., None])).all()  # and none is far away


@pytest.mark.parametrize("bits, most", [(4, 0.107), (3, 0.194), (2, 0.345)])
def test_groups_of_normal_numbers_lose_what_their_bits_say(bits, most):
    """At most what the best evenly spaced grid for all numbers together loses (Max, "Quantizing for Minimum
    Distortion", 1960, table II), since each group of 32 has the best for itself; but not much less."""
    x = np.random.default_rng(0).normal(size=(512, 256)).astype(np.float32)
    packed, scales = rounding.int4_groups(x, 32, bits)
    values = np.asarray(rounding.unpacked(packed))
    assert values.min() == -(2 ** (bits - 1)) and values.max() == 2 ** (bits - 1) - 1
    found = values.reshape(512, 8, 32) * np.asarray(scales)[..., None]
    assert 0.7 * most < np.linalg.norm(found.reshape(x.shape) - x) / np.linalg.norm(x) < most


def test_packed_bytes_hold_the_first_value_in_the_lower_half():
    assert np.asarray(rounding.packed(jnp.array([[-8, 7, 0, 1]], jnp.int8))).tolist() == [[0xF0, 0x98]]


@given(MATRICES)
@settings(max_examples=15, deadline=None)
def test_fp8_rounds_as_ml_dtypes_does(size):
    x = matrix(*size)
    values, scales = map(np.asarray, rounding.fp8_rows(x))
    expected = (x / scales).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert (values.astype(np.float32) == expected.astype(np.float32)).all()
    big = np.abs(x) >= scales / 2**6  # beyond the subnormals: 3 bits after the point, so 1/16 at most
    assert (np.abs(values.astype(np.float32) * scales - x)[big] <= np.abs(x)[big] / 15.9).all()


def test_an_outlier_spoils_its_own_row_and_no_other():
    """e4m3 keeps seventeen powers of two, so it takes one a million times the rest to push a row to zero; with a scale
    for the whole tensor it pushes all rows there."""
    x = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    x[3, 5] = 1e6
    values, _ = rounding.fp8_rows(x)
    lost = (np.asarray(values).astype(np.float32) == 0).sum(-1)
    assert lost[3] > 50 and np.delete(lost, 3).sum() == 0
    of_the_tensor = (x * (448 / 1e6)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert (of_the_tensor == 0).sum() > 8 * 50


def test_the_bound_saves_the_rest_of_a_row_and_cuts_the_outlier():
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    x[0, 5] = 1e6
    values, scales = map(np.asarray, rounding.fp8_rows(x, 1200.0))
    restored = values.astype(np.float32) * scales
    assert restored[0, 5] == pytest.approx(1200)
    others = np.delete(np.arange(64), 5)
    assert (values[0, others].astype(np.float32) != 0).mean() > 0.95
    assert np.abs(restored[0, others] - x[0, others]).max() < 0.1
    assert (values[1] == np.asarray(rounding.fp8_rows(x)[0])[1]).all()  # below the bound it changes nothing


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("way", [rounding.int8_rows, rounding.fp8_rows, lambda x: rounding.int4_groups(x, 8)])
def test_what_is_not_finite_does_not_look_finite(way, bad):
    values, scales = way(np.array([[1, bad, 2]], np.float32))
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(np.asarray(values).astype(np.float32) * np.asarray(scales)).all()
