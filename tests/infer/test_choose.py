"""Draws follow the distribution and nothing but their own row; log-probabilities are those of float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm import platform
from min_llm.infer import choose
from min_llm.infer.request import Sampling
from min_llm.kernels import cpu

V = 1000  # no multiple of the 256 columns
GREEDY = Sampling(temperature=0)
KINDS = [
    GREEDY,
    Sampling(),
    Sampling(0.7, top_p=0.9),
    Sampling(1.5, top_k=20),
    Sampling(typical_p=0.8),
    Sampling(0.9, min_p=0.02),
    Sampling(1.2, 50, 0.95, 0.01, 0.9),
    Sampling(1e-6),
]


def scored(logits, rows):
    """Tokens, their log-probabilities by the logits, and by what they were drawn from."""
    tokens = choose.choose(logits, rows)
    shown = (logits, choose.processed(logits, rows))
    return tokens, *(choose.logprobs(x, tokens[:, None])[:, 0] for x in shown)


run = jax.jit(scored)
tops = jax.jit(choose.tops, static_argnums=1)
logprobs = jax.jit(choose.logprobs)
processed = jax.jit(choose.processed)
picked = jax.jit(choose.pick)


@pytest.fixture
def at_once(monkeypatch):
    """`choose` as it is compiled for accelerators: not row by row."""
    monkeypatch.setattr(platform, "backend", lambda: "gpu")
    monkeypatch.setattr(cpu, "available", lambda: False)
    return jax.jit(lambda logits, rows: scored(logits, rows))


@pytest.fixture
def plain(monkeypatch):
    """`choose` without kernels, row by row."""
    monkeypatch.setattr(cpu, "available", lambda: False)
    return jax.jit(lambda logits, rows: scored(logits, rows))


def some_logits(n, v=V, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (n, v)).astype(np.float32)


def log_softmax(x):
    x = np.float64(x) - np.max(x, -1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def chi_square(tokens, p):
    """(χ² − its degrees of freedom) in standard deviations."""
    expected = p * len(tokens)
    assert expected.min() > 5
    x = ((np.bincount(tokens, minlength=len(p)) - expected) ** 2 / expected).sum()
    return (x - (len(p) - 1)) / np.sqrt(2 * (len(p) - 1))


@pytest.mark.parametrize("vary", ["seed", "position"])
@pytest.mark.parametrize(("v", "temperature"), [(5, 1.0), (5, 0.5), (700, 1.0)])
def test_draws_follow_the_softmax(vary, v, temperature):
    n = 20_000
    logits = np.random.default_rng(1).uniform(-1, 1, v).astype(np.float32)
    changing, fixed = range(n), [3] * n
    seeds, positions = (changing, fixed) if vary == "seed" else (fixed, changing)
    rows = choose.rows([Sampling(temperature)] * n, seeds, positions, n)
    tokens = np.asarray(run(np.broadcast_to(logits, (n, v)), rows)[0])
    p = np.exp(log_softmax(logits / temperature))
    assert abs(chi_square(tokens, p)) < 4.5
    flatter = np.exp(log_softmax(logits / temperature / 1.5))
    assert chi_square(tokens, flatter) > 8  # the statistic does see a wrong temperature


def test_filtered_draws_follow_what_is_left():
    n = 8_000
    logits = np.log(np.array([0.3, 0.02, 0.25, 0.2, 0.15, 0.08], np.float32))
    rows = choose.rows([Sampling(top_p=0.7)] * n, range(n), [0] * n, n)
    tokens, _, drawn = map(np.asarray, run(np.broadcast_to(logits, (n, 6)), rows))
    left = [0, 2, 3]
    assert set(tokens.tolist()) == set(left)
    p = np.array([0.3, 0.25, 0.2]) / 0.75
    assert abs(chi_square(np.searchsorted(left, tokens), p)) < 4.5
    np.testing.assert_allclose(drawn, np.log(p)[np.searchsorted(left, tokens)], rtol=1e-5)


@functools.cache
def mixed_batch():
    """Every kind of sampling, alone in a batch of 8, with its tokens."""
    logits = some_logits(len(KINDS))
    rows = choose.rows(KINDS, range(100, 108), range(8), 8)
    return logits, rows, [np.asarray(a) for a in run(logits, rows)]


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(16)), st.integers(0, 2**31))
def test_neighbours_their_number_and_the_place_do_not_matter(places, seed):
    """Bit for bit, log-probabilities too."""
    logits, rows, want = mixed_batch()
    places = places[:8]
    others = some_logits(16, seed=seed)
    others[places] = logits
    kinds = np.random.default_rng(seed).choice(len(KINDS), 16)
    around = choose.rows([KINDS[i] for i in kinds], range(16), range(16), 16)
    around.reals[places], around.words[places] = rows.reals, rows.words
    for got, alone in zip(run(others, around), want, strict=True):
        np.testing.assert_array_equal(np.asarray(got)[places], alone)


@pytest.mark.parametrize("i", range(len(KINDS)))
def test_a_row_of_its_own_gives_the_same(i):
    logits, rows, want = mixed_batch()
    one = dataclasses.replace(rows, reals=rows.reals[i : i + 1], words=rows.words[i : i + 1])
    for got, all_rows in zip(run(logits[i : i + 1], one), want, strict=True):
        np.testing.assert_array_equal(np.asarray(got), all_rows[i : i + 1])


@pytest.mark.parametrize("form", ["at_once", "plain"])
def test_every_form_draws_the_same(form, request):
    logits, rows, want = mixed_batch()
    got = request.getfixturevalue(form)(logits, rows)
    np.testing.assert_array_equal(got[0], want[0])
    for a, b in zip(got[1:], want[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_log_probabilities_are_those_of_float64():
    logits, rows, (tokens, raw, drawn) = mixed_batch()
    at = np.arange(len(tokens)), tokens
    np.testing.assert_allclose(raw, log_softmax(logits)[at], atol=3e-6)
    for i, sampling in enumerate(KINDS):
        if sampling.temperature < 1e-5:
            assert (tokens[i], drawn[i]) == (logits[i].argmax(), 0)
            continue
        scaled = np.float64(logits[i]) / sampling.temperature
        left = np.asarray(processed(logits, rows))[i] > -np.inf
        assert left[tokens[i]]
        scaled[~left] = -np.inf
        np.testing.assert_allclose(drawn[i], log_softmax(scaled)[tokens[i]], atol=3e-6)


@pytest.mark.parametrize("v", [19, V, 1024])
def test_a_token_has_one_log_probability(v):
    """The same float from choose, from tops and from logprobs, each compiled apart, raw and processed."""
    logits = some_logits(8, v)
    rows = choose.rows(KINDS, range(8), range(8), 8)
    tokens, raw, drawn = run(logits, rows)
    for values, chosen in ((logits, raw), (processed(logits, rows), drawn)):
        np.testing.assert_array_equal(logprobs(values, tokens[:, None])[:, 0], chosen)
        ids, likeliest = tops(values, v)
        place = np.argmax(np.asarray(ids) == np.asarray(tokens)[:, None], -1)
        np.testing.assert_array_equal(np.asarray(likeliest)[np.arange(8), place], chosen)


def test_tops_are_the_likeliest_in_order():
    logits = some_logits(3)
    ids, values = map(np.asarray, tops(logits, 20))
    want = np.argsort(-logits, -1)[:, :20]
    np.testing.assert_array_equal(ids, want)
    np.testing.assert_allclose(values, np.take_along_axis(log_softmax(logits), want, -1), atol=3e-6)
    assert tops(logits, 0)[0].shape == (3, 0)
    assert tops(logits[:, :7], 20)[0].shape == (3, 7)


@pytest.mark.parametrize("sampling", KINDS)
def test_a_row_with_nothing_to_draw_says_so(sampling):
    """No NaN, and its neighbour is drawn as ever."""
    logits = some_logits(4)
    logits[0] = -np.inf
    logits[1, 5] = np.nan
    logits[2, 5] = np.inf
    tokens, raw, drawn = map(np.asarray, run(logits, choose.rows([sampling] * 4, [1] * 4, [0] * 4, 4)))
    assert tokens[:3].tolist() == [-1] * 3
    assert np.all(raw[:3] == -np.inf) and np.all(drawn[:3] == -np.inf)
    assert tokens[3] >= 0 and np.isfinite(raw[3]) and np.isfinite(drawn[3])


@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_the_first_of_equal_logits_is_the_greedy_token(scale):
    logits = np.float32([[1, 3, 3, 2], [-np.inf, -5, -5, -5]]) * np.float32(scale)
    assert run(logits, choose.rows([GREEDY] * 2, [0, 1], [0, 0], 2))[0].tolist() == [1, 1]


def tree(weights, axis):
    """Running sums in the order of a parallel scan, where adding a zero can change a sum."""
    return jax.lax.associative_scan(jnp.add, weights, axis=axis)


@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("running", [jnp.cumsum, tree])
def test_no_token_of_weight_0_is_picked(running, density, monkeypatch):
    """Uniforms at both ends and around every edge between columns, where roundings could reach a column of zeros."""
    monkeypatch.setattr(jnp, "cumsum", running)
    pick = jax.jit(lambda weights, uniforms: choose.pick(weights, uniforms))
    rng = np.random.default_rng(0)
    for _ in range(20):
        weights = np.where(rng.random((2, 256)) < density, rng.lognormal(0, 3, (2, 256)), 0).astype(
            np.float32
        )
        sums = np.asarray(running(jnp.asarray(weights.sum(0)), 0))
        bits = (sums / sums.max()).view(np.int32)[:, None] + np.arange(-3, 4, dtype=np.int32)
        edges = np.clip(bits.view(np.float32).ravel(), None, np.float32(1 - 2**-24))
        edges = np.concatenate([edges[edges >= 0], np.float32([0, 1 - 2**-24])])
        edges = np.resize(edges, 256 * 7 + 2)  # one shape
        uniforms = np.stack([edges, np.full_like(edges, 0.5)], 1)
        tokens = pick(np.broadcast_to(weights.reshape(-1), (len(edges), 512)), uniforms)
        assert np.all(weights.reshape(-1)[tokens] > 0)


def test_a_pick_is_the_inverse_of_the_distribution():
    """Whole numbers, whose sums have no rounding: columns of 256, and then the tokens in one."""
    rng = np.random.default_rng(0)
    n = 500
    weights = rng.integers(0, 4, (n, 1024)).astype(np.float32)
    uniforms = np.float32(rng.integers(0, 2**23, (n, 2)) / 2**23)
    uniforms[0], uniforms[1] = 0, 1 - 2**-24
    columns = weights.reshape(n, 4, 256)
    first = lambda w, u: np.argmax(np.cumsum(w) > np.float32(u * w.sum()))
    want = []
    for w, (u, v) in zip(columns, uniforms, strict=True):
        column = first(w.sum(0), u)
        want.append(first(w[:, column], v) * 256 + column)
    np.testing.assert_array_equal(picked(weights, uniforms), want)


def test_seed_and_position_make_the_draw():
    """All 64 bits of the seed count, and nothing else does."""
    logits = np.zeros((1, 997), np.float32)
    draw = lambda seed, position: int(run(logits, choose.rows([Sampling()], [seed], [position], 1))[0][0])
    assert draw(7, 3) == draw(7, 3) == draw(7 - 2**64, 3)
    others = [draw(8, 3), draw(7, 4), draw(7 + 2**32, 3), draw(7 + 2**63, 3), draw(-7, 3)]
    assert len({draw(7, 3), *others}) == 6


def test_rows_are_packed_and_filled_with_greedy_ones():
    rows = choose.rows([KINDS[6], Sampling(0, 5, 0.5)], [2**64 - 1, 2**32 + 6], [9, 8], 4)
    np.testing.assert_allclose(rows.temperature, [1.2, 0, 0, 0])
    np.testing.assert_allclose(rows.top_p, [0.95, 1, 1, 1])
    np.testing.assert_allclose(rows.min_p, [0.01, 0, 0, 0])
    np.testing.assert_allclose(rows.typical_p, [0.9, 1, 1, 1])
    np.testing.assert_allclose(rows.repetition_penalty, [1, 1, 1, 1])
    assert rows.top_k.tolist() == [50, 0, 0, 0]
    assert rows.seed.tolist() == [[2**32 - 1] * 2, [1, 6], [0, 0], [0, 0]]
    assert rows.position.tolist() == [9, 8, 0, 0]
    moved = rows.at(jnp.arange(4))
    assert moved.position.tolist() == [0, 1, 2, 3]
    assert moved.seed.tolist() == rows.seed.tolist()


def test_other_arguments_compile_nothing():
    fresh = jax.jit(lambda logits, rows: scored(logits, rows))
    for i, sampling in enumerate(KINDS):
        fresh(some_logits(2), choose.rows([sampling], [i], [i], 2))
    assert fresh._cache_size() == 1


def test_mixed_seeds_are_those_of_splitmix64():
    """0xE220… is the first output of Vigna's splitmix64.c for the state 0."""
    assert choose.mixed(0, 1) == 0xE220A8397B1DCDAF
    assert choose.mixed(5, 0) == 5
    assert len({choose.mixed(seed, i) for seed in range(50) for i in range(50)}) == 2500


def test_penalties_and_sums():
    logits = np.float32([[2, -2, 2, -2, -np.inf], [1, 2, 3, 4, 5]])
    seen = np.array([[1, 1, 0, 0, 1], [1, 1, 1, 1, 1]], np.uint8)
    bias = np.float32([[0, 0, 0.5, -np.inf, 7], [0, 0, 0, 0, -1]])
    got = jax.jit(choose.edit)(logits, seen, np.float32([4, 1]), bias)
    assert got.tolist() == [[0.5, -8, 2.5, -np.inf, -np.inf], [1, 2, 3, 4, 4]]


def test_the_bias_of_an_answer():
    counts = np.array([0, 1, 3, 0, 0, 0])
    sampling = Sampling(
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={2: 4.0, 3: -np.inf, 0: 1e300},
        min_tokens=5,
        stop_ids=[4],
    )
    forbidden = choose.bias_of(sampling, counts, [5], produced=4)
    assert forbidden.dtype == np.float32
    assert forbidden[1:].tolist() == [-0.75, 2.75, -np.inf, -np.inf, -np.inf]
    assert np.isfinite(forbidden[0]) and forbidden[0] > 1e29
    assert choose.bias_of(sampling, counts, [5], produced=5)[4:].tolist() == [0, 0]
    # an end that is ignored may come at any time
    ignoring = dataclasses.replace(sampling, ignore_end=True)
    assert choose.bias_of(ignoring, counts, [5], produced=0)[4:].tolist() == [-np.inf, 0]
    assert not choose.bias_of(Sampling(), counts, [5], produced=0).any()


def test_best_is_what_choose_gives_greedy_rows(at_once):
    logits = some_logits(6)
    logits[0], logits[1, 5], logits[2, 7], logits[3, :2] = -np.inf, np.nan, np.inf, 50
    rows = choose.rows([GREEDY] * 6, range(6), range(6), 6)
    np.testing.assert_array_equal(jax.jit(choose.best)(logits), run(logits, rows)[0])


@pytest.mark.skipif(not cpu.available(), reason=f"no kernels: {cpu.unavailable()}")
@pytest.mark.parametrize("v", [19, V, 32_001])
def test_kernels_leave_and_draw_what_the_plain_form_does(v, monkeypatch):
    """For 40 rows of every kind of sampling; sums may differ in their last bits, which no border here is near to."""
    n = 40
    logits = some_logits(n, v, seed=v)
    logits[3, v // 2 :] = -np.inf
    rows = choose.rows([KINDS[i % len(KINDS)] for i in range(n)], range(n), range(n), n)
    tokens, kept = np.asarray(run(logits, rows)[0]), np.asarray(processed(logits, rows))
    monkeypatch.setattr(cpu, "available", lambda: False)
    np.testing.assert_array_equal(jax.jit(lambda *a: choose.choose(*a))(logits, rows), tokens)
    np.testing.assert_allclose(
        jax.jit(lambda *a: choose.processed(*a))(logits, rows), kept, rtol=1e-6, atol=1e-6
    )
