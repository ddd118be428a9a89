"""Attention over pages: three implementations agree, and the kernel's bits depend on the token and its keys alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.kernels import cpu
from min_llm.kernels.attention import paged

here = pytest.mark.skipif(not cpu.available(), reason=f"no kernels: {cpu.unavailable()}")
LAYERS, ROWS = 2, 3
# page, pages of a sequence, H, G, D: usual; odd pages and heads; a head wider than two panels; one key-value head
SHAPES = [(16, 13, 6, 2, 64), (7, 11, 3, 3, 20), (32, 3, 4, 2, 128), (5, 9, 4, 1, 16)]
# of the queries, whether the pools are int8
KINDS = [("float32", False), ("bfloat16", False), ("float32", True), ("bfloat16", True)]
# shape, window, (singles, blocks), kind
CASES = [
    (SHAPES[0], None, (3, 1), KINDS[0]),
    (SHAPES[0], 70, (0, 2), KINDS[1]),
    (SHAPES[0], None, (9, 1), KINDS[3]),
    (SHAPES[1], 1, (4, 0), KINDS[0]),
    (SHAPES[1], 23, (3, 1), KINDS[2]),
    (SHAPES[2], None, (0, 2), KINDS[0]),
    (SHAPES[2], 23, (9, 0), KINDS[1]),
    (SHAPES[3], None, (3, 1), KINDS[1]),
    (SHAPES[3], 23, (0, 2), KINDS[3]),
]


class Pool:
    """Random sequences in pools of which everything that no token sees is NaN, or an int8 times NaN."""

    def __init__(self, shape, kind, seed=0):
        self.page, self.pages, self.heads, self.groups, self.depth = shape
        self.dtype, self.rounded = kind
        self.random = np.random.default_rng(seed)
        self.keys, self.values = self.random.normal(
            size=(2, LAYERS, ROWS, self.length, self.groups, self.depth)
        )

    @property
    def length(self):
        return self.page * self.pages

    def queries(self, n):
        return jnp.asarray(self.random.normal(size=(n, self.heads, self.depth)), self.dtype)

    def call(self, implementation, q, row, index, window, singles, layer=1):
        """With fresh places for the pages."""
        order = self.random.permutation(ROWS * self.pages + 2)
        tables = order[: ROWS * self.pages].reshape(ROWS, self.pages)
        seen = np.zeros((ROWS, self.length), bool)
        for r, last in zip(row, index, strict=True):
            seen[r, max(0, last + 1 - (window or self.length)) : last + 1] = True
        pools = []
        for content in (self.keys, self.values):
            pool = np.full((LAYERS, len(order), self.page, self.groups, self.depth), np.nan)
            hidden = np.where(seen[None, :, :, None, None], content, np.nan)
            pool[:, tables] = hidden.reshape(LAYERS, ROWS, self.pages, self.page, self.groups, self.depth)
            pools.append(int8(pool) if self.rounded else jnp.asarray(pool, self.dtype))
        integers = (jnp.asarray(x, jnp.int32) for x in (tables, row, index))
        out = run(implementation, singles)(q, *pools, jnp.int32(layer), *integers, window)
        assert out.dtype == q.dtype
        return np.asarray(out, np.float32)


def int8(pool):
    scales = np.abs(pool).max(-1) / 127
    values = np.nan_to_num(np.round(pool / scales[..., None]), nan=77).astype(np.int8)
    return paged.Int8(jnp.asarray(values), jnp.asarray(scales, jnp.float32))


@functools.cache
def run(implementation, singles):
    """Jitted, with layer and window traced."""
    return jax.jit(functools.partial(implementation, singles=singles))


def tokens(draw, pool, singles, blocks):
    """row and index of any tokens: padding anywhere, blocks of any places of one sequence."""
    rows, places = st.integers(0, ROWS - 1), st.integers(-1, pool.length - 1)
    row = [draw(rows) for _ in range(singles)]
    index = [draw(places) for _ in range(singles)]
    for _ in range(blocks):
        row += [draw(rows)] * paged.BLOCK
        start, n = draw(places), draw(st.integers(0, paged.BLOCK))
        index += [min(start + i, pool.length - 1) if i < n else -1 for i in range(paged.BLOCK)]
    return np.array(row), np.array(index)


@pytest.mark.parametrize("implementation", [paged.xla, pytest.param(paged.cpu, marks=here)])
@given(st.data(), st.sampled_from(CASES))
@settings(max_examples=40, deadline=None)
def test_equals_the_reference_and_reads_nothing_unseen(implementation, data, case):
    shape, window, sizes, kind = case
    pool = Pool(shape, kind)
    row, index = tokens(data.draw, pool, *sizes)
    q = pool.queries(len(row))
    want = pool.call(paged.reference, q, row, index, window, sizes[0])
    got = pool.call(implementation, q, row, index, window, sizes[0])
    assert np.isfinite(want).all()
    tolerance = 1e-5 if pool.dtype == "float32" else 2**-7
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    assert not got[index < 0].any()


def test_the_reference_is_attention_over_the_keys_that_a_token_sees():
    pool = Pool(SHAPES[1], KINDS[0])
    q, row, index = pool.queries(2), np.array([2, 0]), np.array([40, 3])
    got = pool.call(paged.reference, q, row, index, 5, 2)
    for t in range(2):
        seen = slice(max(0, index[t] - 4), index[t] + 1)
        k, v = (x[1, row[t], seen] for x in (pool.keys, pool.values))
        scores = np.einsum("hd,phd->hp", np.asarray(q[t], np.float64), k) / 20**0.5
        p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        np.testing.assert_allclose(got[t], np.einsum("hp,phd->hd", p, v), rtol=1e-5, atol=1e-5)


@here
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "window"), [(SHAPES[0], None), (SHAPES[1], 23), (SHAPES[2], 23), (SHAPES[3], None)]
)
def test_the_bits_are_the_same_alone_in_a_batch_and_anywhere_in_a_block(shape, window, kind):
    pool = Pool(shape, kind)
    n = pool.length // paged.BLOCK * paged.BLOCK
    q, places = pool.queries(n), np.arange(n)
    alone = np.concatenate([pool.call(paged.cpu, q[i : i + 1], [1], [i], window, 1) for i in range(0, n, 7)])
    batch = pool.call(paged.cpu, q, np.ones(n, int), places, window, n)
    np.testing.assert_array_equal(batch[::7], alone)
    whole = pool.call(paged.cpu, q, np.ones(n, int), places, window, 0)
    np.testing.assert_array_equal(whole, batch)
    for shift in (1, 6, 15):  # other borders between blocks, padding before them, other sequences beside
        count = (n - shift) // paged.BLOCK * paged.BLOCK
        row = np.concatenate([[0, 2], np.full(paged.BLOCK, 2), np.ones(count, int)])
        index = np.concatenate(
            [[-1, 5], np.full(paged.BLOCK, pool.length - 1), places[shift : shift + count]]
        )
        mixed = jnp.concatenate([pool.queries(2 + paged.BLOCK), q[shift : shift + count]])
        got = pool.call(paged.cpu, mixed, row, index, window, 2)
        np.testing.assert_array_equal(got[2 + paged.BLOCK :], batch[shift : shift + count])


@pytest.mark.parametrize("implementation", [paged.xla, pytest.param(paged.cpu, marks=here)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_no_program_copies_a_layer_of_the_pool(implementation, dtype):
    pool = jax.ShapeDtypeStruct((4, 4096, 16, 2, 64), dtype)  # at least 8 MiB a layer
    if dtype == jnp.int8:
        pool = paged.Int8(pool, jax.ShapeDtypeStruct(pool.shape[:-1], jnp.float32))
    integer = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    q = jax.ShapeDtypeStruct((20, 4, 64), jnp.float32)
    step = run(implementation, 4)
    compiled = step.lower(q, pool, pool, integer(), integer(3, 8), integer(20), integer(20), None).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20


def test_best_is_the_kernel_where_it_runs(monkeypatch):
    for there, implementation in ((True, paged.cpu), (False, paged.xla)):
        monkeypatch.setattr(cpu, "available", lambda there=there: there)
        assert paged.best() is implementation


@here
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_queries_of_either_kind_read_pools_in_float32_and_none_hides_a_nan(dtype):
    pool = Pool(SHAPES[1], KINDS[0])
    q, row, index = (
        pool.queries(3).astype(dtype).at[1].set(jnp.nan),
        np.array([2, 0, 1]),
        np.array([40, 3, 70]),
    )
    got = pool.call(paged.cpu, q, row, index, None, 3)
    want = pool.call(paged.reference, q, row, index, None, 3)
    np.testing.assert_allclose(got[::2], want[::2], rtol=2**-8, atol=2**-8)
    assert np.isnan(got[1]).all()


@here
def test_other_dtypes_are_refused():
    pool = Pool(SHAPES[1], KINDS[0])
    with pytest.raises(ValueError, match="float32 or bfloat16, not float16"):
        pool.call(paged.cpu, pool.queries(1).astype("float16"), np.zeros(1, int), np.zeros(1, int), None, 1)


def test_tokens_that_are_no_whole_blocks_are_refused():
    pool = Pool(SHAPES[0], KINDS[0])
    with pytest.raises(ValueError, match="20 tokens are not 3 and blocks of 16"):
        pool.call(paged.cpu, pool.queries(20), np.zeros(20, int), np.zeros(20, int), None, 3)
