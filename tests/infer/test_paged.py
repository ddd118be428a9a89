"""Keys and values that are kept in int8: what is written, and attention over it."""

import jax.numpy as jnp
import numpy as np
import pytest

from min_llm.infer import paged
from min_llm.kernels.mask import Mask
from min_llm.nn.runtime import Runtime
from tests.toys import LLAMA

SIZE, PAGES = 4, 6


def rounded(x):
    """To int8 and back, a scale for each head of each token."""
    scales = np.abs(x).max(-1, keepdims=True) / 127
    return np.round(x / scales) * scales, scales


def attention(q, k, v):
    """Of tokens 0 … n - 1, each over those up to itself."""
    n, h, d = q.shape
    k, v = (np.repeat(x, h // x.shape[1], 1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / d**0.5
    scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", p / p.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("native", ["0", "1"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attends_to_what_was_written_in_int8(monkeypatch, dtype, native):
    """Sixteen tokens in a block, then four more singly, beside padding."""
    if native == "0":
        monkeypatch.setattr(paged.paged, "best", lambda: paged.paged.xla)
    cfg, rng = LLAMA, np.random.default_rng(0)
    shape = (20, cfg.n_kv_heads, cfg.head_dim)
    k, v = rng.normal(size=(2, *shape)) * np.exp(rng.normal(size=(2, *shape[:2], 1)))
    q = rng.normal(size=(20, cfg.n_heads, cfg.head_dim))
    q, k, v = (np.asarray(jnp.asarray(x, dtype), np.float64) for x in (q, k, v))
    keys, values = paged.pool(cfg, PAGES, SIZE, "int8")
    tables = np.array([[0] * 5, [3, 1, 6, 2, 5]])
    got = []
    for index, singles in ((np.arange(16), 0), (np.array([16, 17, 18, 19, -1, -1]), 6)):
        cache = paged.PagedCache(
            keys, values, *map(jnp.asarray, (tables, np.ones_like(index), index)), singles
        )
        given = (jnp.asarray(x[index], dtype)[None] for x in (q, k, v))
        out, cache = cache.attend(1, *given, Mask(), Runtime(dtype))
        keys, values = cache.keys, cache.values
        got.append(np.asarray(out, np.float64)[0, index >= 0])
    (k8, k_scales), (v8, _) = rounded(k), rounded(v)
    want = attention(q, k8, v8)
    tolerance = 1e-5 if dtype == "float32" else 2**-7
    np.testing.assert_allclose(np.concatenate(got), want, rtol=tolerance, atol=tolerance * np.abs(v).max())
    assert 0 < np.abs(want - attention(q, k, v)).max() < 0.05 * np.abs(v).max()
    at = tables[1][np.arange(20) // SIZE], np.arange(20) % SIZE
    np.testing.assert_allclose(keys.scales[1][at], k_scales[..., 0], rtol=1e-6)
    assert (np.abs(keys.values[1][at] * k_scales - k) <= 0.5001 * k_scales).all()
    assert not np.asarray(keys.values[0]).any()  # another layer


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1), ("bfloat16", 1 / 2), ("int8", (6 + 4) / 24)])
def test_a_page_takes_what_its_arrays_take(dtype, share):
    keys, _ = paged.pool(LLAMA, PAGES, SIZE, dtype)
    one = [keys.values, keys.scales] if dtype == "int8" else [keys]
    bytes = 2 * sum(x.nbytes for x in one) // (1 + PAGES)
    assert paged.page_bytes(LLAMA, SIZE, dtype) == bytes
    assert bytes == pytest.approx(share * paged.page_bytes(LLAMA, SIZE, "float32"))
