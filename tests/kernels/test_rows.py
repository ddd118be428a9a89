"""Products with a packed matrix: against NumPy, and bitwise the same whatever else is in the call."""

import hashlib
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.kernels import cpu, rows

here = pytest.mark.skipif(not cpu.available(), reason=f"no kernels: {cpu.unavailable()}")
DTYPES = ("float32", "bfloat16")
# k, m: less than a tile; ragged; more k than a pass of either kind; whole tiles; k a multiple of 4 KiB
SHAPES = [(5, 3), (77, 45), (1500, 33), (576, 192), (1024, 70)]
NUMBERS = (1, 2, 3, 7, 8, 16, 17, 33, 64, 200, 512)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def bits(x):
    return np.asarray(x).view(np.uint8)


@given(st.integers(1, 100), st.integers(1, 100), st.sampled_from(DTYPES))
@settings(max_examples=20, deadline=None)
def test_unpacked_is_what_was_packed(k, m, dtype):
    w = normal(k, m)
    packed = rows.pack(w, dtype)
    assert packed.dtype == dtype
    np.testing.assert_array_equal(rows.unpack(packed, k, m), w.astype(dtype))


@given(st.integers(1, 200), st.integers(1, 100))
@settings(max_examples=20, deadline=None)
def test_fours_of_int8_lie_side_by_side(k, m):
    w = np.random.default_rng(k).integers(-127, 128, (k, m)).astype(np.int8)
    packed = np.asarray(rows.pack(w, "int8"))
    assert packed.shape == (-(-m // 32), -(-k // 64), 2048)
    for i, j in ((0, 0), (k - 1, m - 1), (k // 2, m // 2)):
        tiles = packed[j // 32, i // 64].reshape(2, 16, 16, 4)
        assert tiles[j // 16 % 2, i % 64 // 4, j % 16, i % 4] == w[i, j]
    np.testing.assert_array_equal(rows.unpack(packed, k, m), w)


@pytest.mark.parametrize("native", [pytest.param(True, marks=here), False])
@pytest.mark.parametrize("k, m", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_products_equal_numpys_in_the_dtype_of_x(native, k, m, dtype, x_dtype, monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda: native)
    x, w = normal(200, k).astype(x_dtype), normal(k, m)
    packed = rows.pack(w, dtype)
    exact = np.asarray(x.astype(dtype), np.float64) @ np.asarray(w.astype(dtype), np.float64)
    for n in (1, 8, 40, 200):
        got = rows.multiply(x[:n], [packed[None]], 0, [m])[0]
        assert got.dtype == x_dtype
        tolerance = 1e-5 if x_dtype == "float32" else 2**-8
        np.testing.assert_allclose(
            np.asarray(got, np.float64), exact[:n], rtol=tolerance, atol=tolerance * k**0.5
        )


@here
@pytest.mark.parametrize("k, m", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_a_row_has_the_same_bits_whatever_the_others_are_and_wherever_it_stands(k, m, dtype, x_dtype):
    packed = rows.pack(normal(k, m, seed=1), dtype)[None]
    x = np.asarray(normal(512, k).astype(x_dtype))
    others = np.asarray((normal(512, k, seed=2) * 100).astype(x_dtype))
    whole = bits(rows.multiply(x, [packed], 0, [m])[0])
    for n in NUMBERS:
        for start in {0, 1, 512 - n} - {513 - n}:
            some = rows.multiply(x[start : start + n], [packed], 0, [m])[0]
            np.testing.assert_array_equal(bits(some), whole[start : start + n])
        mixed = np.concatenate([others[: n - 1], x[:1]])
        np.testing.assert_array_equal(bits(rows.multiply(mixed, [packed], 0, [m])[0])[n - 1], whole[0])


@here
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_products_of_one_x_are_each_by_itself(dtype):
    """For few rows, whose panels are shared out together, and for many."""
    columns = (70, 33, 200)
    packed = [jnp.stack([rows.pack(normal(96, m, seed=i), dtype) for i in (m, m + 1)]) for m in columns]
    for n in (1, 16, 40, 300):
        x = normal(n, 96)
        for m, w, y in zip(columns, packed, rows.multiply(x, packed, 1, columns), strict=True):
            np.testing.assert_array_equal(bits(y), bits(rows.multiply(x, [w], 1, [m])[0]))


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("native", [pytest.param(True, marks=here), False])
@pytest.mark.parametrize("d, f", [(5, 3), (77, 45), (576, 1536), (1024, 1100)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_a_gated_network_equals_numpys(native, d, f, dtype, x_dtype, monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda: native)
    x, up_scale, down_scale = normal(200, d).astype(x_dtype), d**-0.5, f**-0.5
    gate, up, down = (
        normal(d, f, seed=1) * up_scale,
        normal(d, f, seed=2) * up_scale,
        normal(f, d) * down_scale,
    )
    packed = [jnp.stack([jnp.zeros_like(p), p]) for p in (rows.pack(w, dtype) for w in (gate, up, down))]
    wide = [np.asarray(w.astype(dtype), np.float64) for w in (gate, up, down)]
    exact = np.asarray(x.astype(dtype), np.float64)
    exact = (silu(exact @ wide[0]) * (exact @ wide[1])) @ wide[2]
    tolerance = 1e-5 if dtype == x_dtype == "float32" else 2**-7
    for n in (1, 8, 40, 200):
        got = rows.gated(x[:n], *packed, 1, f)
        assert got.dtype == x_dtype
        np.testing.assert_allclose(np.asarray(got, np.float64), exact[:n], rtol=tolerance, atol=2 * tolerance)


def int8_parts(d, f):
    """Packed matrices and scales of gate, up and down."""
    rng = np.random.default_rng(4)
    matrices = [rng.integers(-127, 128, shape).astype(np.int8) for shape in ((d, f), (d, f), (f, d))]
    scales = [np.zeros((1, -(-w.shape[1] // 32) * 32), np.float32) for w in matrices]
    for w, s in zip(matrices, scales, strict=True):
        s[0, : w.shape[1]] = rng.random(w.shape[1]) * 0.02 / w.shape[0] ** 0.5
    return [rows.pack(w, "int8")[None] for w in matrices], [s.reshape(1, -1, 32) for s in scales]


@here
@pytest.mark.parametrize("d, f", [(77, 45), (576, 1536)])
@pytest.mark.parametrize("dtype", [*DTYPES, "int8"])
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_a_row_of_a_gated_network_has_the_same_bits_wherever_it_stands(d, f, dtype, x_dtype):
    if dtype == "int8":
        matrices, scales = int8_parts(d, f)
        network = lambda x: rows.gated_quantized(x, matrices, scales, 0, f)
    else:
        matrices = [
            rows.pack(normal(*shape, seed=i) / 8, dtype)[None]
            for i, shape in enumerate([(d, f)] * 2 + [(f, d)])
        ]
        network = lambda x: rows.gated(x, *matrices, 0, f)
    x = np.asarray(normal(300, d).astype(x_dtype))
    whole = bits(network(x))
    for n in (1, 7, 16, 17, 64, 150):
        for start in {0, 1, 300 - n}:
            np.testing.assert_array_equal(bits(network(x[start : start + n])), whole[start : start + n])


def int4_parts(k, m):
    """A packed stack and its scales, and the matrix that they stand for in bfloat16."""
    rng = np.random.default_rng(k)
    values = rng.integers(-8, 8, (k, m)).astype(np.int8)
    scales = rng.normal(size=(-(-k // 32), m)).astype(np.float32)
    packed, panels = rows.pack_int4(values, scales)
    matrix = values * np.repeat(scales, 32, axis=0)[:k]
    return packed[None], panels[None], jnp.asarray(matrix).astype("bfloat16")


@here
@pytest.mark.parametrize("k, m", SHAPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_products_with_four_bits_are_those_of_their_matrix(k, m, x_dtype):
    """Bit for bit those of the matrix packed in bfloat16, for every number of rows."""
    packed, scales, matrix = int4_parts(k, m)
    plain = rows.pack(matrix, "bfloat16")[None]
    x = normal(300, k).astype(x_dtype)
    for n in (1, 16, 40, 300):
        got = rows.multiply_quantized(x[:n], [packed], [scales], 0, [m])[0]
        np.testing.assert_array_equal(bits(got), bits(rows.multiply(x[:n], [plain], 0, [m])[0]))


@here
@pytest.mark.parametrize("d, f", [(77, 45), (576, 200)])
def test_a_gated_network_of_four_bits_is_that_of_its_matrices(d, f):
    parts = [int4_parts(*shape) for shape in ((d, f), (d, f), (f, d))]
    plain = [rows.pack(matrix, "bfloat16")[None] for *_, matrix in parts]
    x = normal(200, d).astype("bfloat16")
    for n in (1, 16, 200):
        got = rows.gated_quantized(x[:n], [p[0] for p in parts], [p[1] for p in parts], 0, f)
        np.testing.assert_array_equal(bits(got), bits(rows.gated(x[:n], *plain, 0, f)))


@here
def test_a_gated_network_of_int8_is_its_products(monkeypatch):
    """With gate and up rounded to float32 alone, as the kernel has them, and the activations in between."""
    d, f = 77, 45
    matrices, scales = int8_parts(d, f)
    x = normal(40, d)
    g, u = rows.multiply_quantized(x, matrices[:2], scales[:2], 0, [f, f])
    want = rows.multiply_quantized(g / (1 + jnp.exp(-g)) * u, matrices[2:], scales[2:], 0, [d])[0]
    np.testing.assert_allclose(
        rows.gated_quantized(x, matrices, scales, 0, f), want, atol=2e-3 * np.abs(want).max()
    )


ON_ONE_PROCESSOR = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from tests.kernels.test_rows import digest
print(digest())
"""


def digest():
    """Of products large enough for several threads."""
    found = hashlib.sha256()
    for dtype in DTYPES:
        packed = rows.pack(normal(600, 900), dtype)[None]
        for n in (1, 7, 64, 300):
            found.update(bits(rows.multiply(normal(n, 600, seed=n), [packed], 0, [900])[0]).tobytes())
    packed = rows.pack((normal(600, 900) * 30).astype("int8"), "int8")[None]
    for n in (1, 7, 64, 300):
        y = rows.multiply_quantized(normal(n, 600, seed=n), [packed], [jnp.ones((1, 29, 32))], 0, [900])[0]
        found.update(bits(y).tobytes())
    return found.hexdigest()


@here
@pytest.mark.skipif(os.cpu_count() == 1, reason="one processor only")
def test_one_thread_gives_the_bits_of_several():
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_PROCESSOR], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == digest()


def test_other_dtypes_are_refused():
    with pytest.raises(UserError, match="float32, bfloat16 or int8, not in float16"):
        rows.pack(normal(4, 4), "float16")


@here
def test_other_activations_are_refused_and_a_layer_that_is_not_there_is_the_nearest():
    packed = jnp.stack([rows.pack(normal(5, 3, seed=seed), "float32") for seed in (0, 1)])
    with pytest.raises(ValueError, match="float32 or bfloat16, not float16"):
        rows.multiply(normal(2, 5).astype("float16"), [packed], 0, [3])
    for layer, nearest in ((-1, 0), (2, 1)):
        got, want = (rows.multiply(normal(2, 5), [packed], i, [3])[0] for i in (layer, nearest))
        np.testing.assert_array_equal(got, want)
