"""Masks by hand; attention against a loop, its gradient against differences, its blocks against the whole."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.reference.attention import attend, attend_backward, attend_blockwise, build_mask, probabilities

INDEX = np.arange(5)[None]


def qkv(heads=4, kv_heads=2, queries=5, keys=5, width=6, rows=1, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(rows, queries, heads, width)),
        rng.normal(size=(rows, keys, kv_heads, width)),
        rng.normal(size=(rows, keys, kv_heads, width)),
    )


@pytest.mark.parametrize(
    "rules, picture",
    [
        ({}, ["#....", "##...", "###..", "####.", "#####"]),
        ({"causal": False}, ["#####", "#####", "#####", "#####", "#####"]),
        ({"window": 2}, ["#....", "##...", ".##..", "..##.", "...##"]),
        ({"prefix": 3}, ["###..", "###..", "###..", "####.", "#####"]),
        ({"segment_ids": np.array([[1, 1, 2, 2, 0]])}, ["#....", "##...", "..#..", "..##.", "....#"]),
        ({"segment_ids": np.array([[1, 1, 1, 0, 0]])}, ["#....", "##...", "###..", "...#.", "...##"]),
        (
            {"segment_ids": np.array([[1, 1, 1, 2, 2]]), "prefix": np.array([2]), "window": 2},
            ["##...", "##...", ".##..", "...#.", "...##"],
        ),
    ],
)
def test_mask_pictures(rules, picture):
    mask = build_mask(INDEX, **rules)[0]
    assert ["".join(".#"[int(cell)] for cell in row) for row in mask] == picture


def test_one_query_sees_the_cached_keys_of_its_window():
    mask = build_mask(np.array([[4]]), key_index=np.arange(7)[None], window=3)
    assert mask[0, 0].tolist() == [False, False, True, True, True, False, False]


def test_attention_equals_a_loop_over_everything():
    q, k, v = qkv(rows=2)
    mask = build_mask(np.repeat(INDEX, 2, 0), np.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]]), window=3)
    out = attend(q, k, v, mask)
    for b, s, h in np.ndindex(2, 5, 4):
        keys = np.flatnonzero(mask[b, s])
        scores = [q[b, s, h] @ k[b, t, h // 2] / math.sqrt(6) for t in keys]
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(
            out[b, s, h], sum(w * v[b, t, h // 2] for w, t in zip(weights, keys, strict=True))
        )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_queries_equal_all_heads_with_tiled_keys_and_values(kv_heads):
    q, k, v = qkv(kv_heads=kv_heads)
    mask = build_mask(INDEX)
    tiled = [np.repeat(a, 4 // kv_heads, axis=2) for a in (k, v)]
    np.testing.assert_allclose(attend(q, k, v, mask), attend(q, *tiled, mask), rtol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_gradient_equals_central_differences(kv_heads):
    inputs = qkv(kv_heads=kv_heads, queries=3, seed=1)
    mask = build_mask(np.array([[1, 3, 4]]), key_index=INDEX, window=4)
    rng = np.random.default_rng(2)
    do = rng.normal(size=inputs[0].shape)
    for i, gradient in enumerate(attend_backward(do, *inputs, mask)):
        assert gradient.shape == inputs[i].shape
        for _ in range(3):
            step = 1e-5 * rng.normal(size=inputs[i].shape)
            moved = [[a + s * step if j == i else a for j, a in enumerate(inputs)] for s in (1, -1)]
            measured = np.sum(do * (attend(*moved[0], mask) - attend(*moved[1], mask))) / 2
            np.testing.assert_allclose(np.sum(gradient * step), measured, rtol=1e-6, atol=1e-13)


def test_invisible_keys_have_no_weight_and_no_gradient():
    q, k, v = qkv()
    mask = build_mask(INDEX, np.array([[1, 1, 2, 2, 2]]))
    p = probabilities(q, k, mask)
    assert np.all(p[~np.broadcast_to(mask[:, None, None], p.shape)] == 0)
    do = np.zeros_like(q)
    do[:, 2:] = 1.0  # only the second document asks
    dq, dk, dv = attend_backward(do, q, k, v, mask)
    assert np.any(dk[:, 2:] != 0)
    assert all(np.all(d[:, :2] == 0) for d in (dq, dk, dv))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 2**32 - 1), st.sampled_from([None, 1, 3]))
def test_blocks_equal_the_whole(places, block, seed, window):
    rng = np.random.default_rng(seed)
    q, k, v = qkv(queries=places, keys=places, seed=seed)
    segments = np.sort(rng.integers(0, 3, (1, places)))[:, ::-1]
    mask = build_mask(np.arange(places)[None], segments, window=window)
    q *= rng.choice([1.0, 100.0])  # large scores: the running maximum has work to do
    np.testing.assert_allclose(
        attend_blockwise(q, k, v, mask, block), attend(q, k, v, mask), rtol=1e-10, atol=1e-12
    )


def test_a_query_without_keys_is_an_error():
    q, k, v = qkv()
    with pytest.raises(ValueError, match="without a single key"):
        attend(q, k, v, np.zeros((1, 5, 5), bool))
