"""The tokens that filters leave are those that sorting in float64 gives."""

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from min_llm.infer import choose
from min_llm.infer.request import Sampling

V = 11
UNDERFLOW = -80  # exp of it is near the least float32; no test comes near it
processed = jax.jit(choose.processed)


def left(logits, sampling):
    """Indices of the tokens that may be drawn."""
    one = choose.rows([sampling], [0], [0], 1)
    return set(np.flatnonzero(np.exp(processed(np.float32(logits)[None], one)[0])).tolist())


def nearest(distance, weights, target):
    """By sorting; the tests assume that roundings decide nothing."""
    order = np.argsort(distance, kind="stable")
    reached = np.cumsum(weights[order])
    assume(np.all(np.abs(reached - target) > 1e-4 * reached[-1]) or target == round(target))
    if reached[-1] < target:
        return distance < np.inf
    limit = distance[order[np.argmax(reached >= target)]]
    assume(not np.any((distance != limit) & np.isclose(distance, limit, rtol=1e-4, atol=1e-4)))
    return distance <= limit


def oracle(logits, s):
    x = np.float64(logits)
    x = (x - x.max()) / s.temperature
    keep = x > -np.inf
    assume(not s.min_p or not np.any((x < 0) & np.isclose(np.exp(x), s.min_p, rtol=1e-4, atol=0)))
    keep &= np.exp(x) >= s.min_p
    probabilities = lambda: np.where(keep, np.exp(x), 0) / np.exp(x)[keep].sum()
    if s.typical_p < 1:
        p = probabilities()
        surprise = -np.log(np.where(p > 0, p, 1))
        distance = np.abs(surprise - (p * surprise).sum())
        # equal logits have equal distances; other ties are for the roundings to decide
        for i, j in zip(*np.nonzero(np.isclose(distance[:, None], distance, atol=1e-4)), strict=True):
            assume(logits[i] == logits[j] or not (p[i] > 0 and p[j] > 0))
        keep &= nearest(np.where(p > 0, distance, np.inf), p, s.typical_p)
    if s.top_k:
        keep &= nearest(np.where(keep, -x, np.inf), np.ones(V), s.top_k)
    if s.top_p < 1:
        keep &= nearest(np.where(keep, -x, np.inf), probabilities(), s.top_p)
    return set(np.flatnonzero(keep & (x > UNDERFLOW)).tolist())


# eighths, so that many are equal; forbidden tokens; the ends of float32
LOGIT = st.integers(-40, 40).map(lambda n: n / 8) | st.sampled_from([-np.inf, -3e38, 3e38, 1e38])
LOGITS = st.lists(LOGIT, min_size=V, max_size=V).filter(lambda xs: max(xs) > -np.inf)
PART = st.floats(0.02, 0.999) | st.sampled_from([1e-30, 1.0])
MIN_P = st.floats(1e-6, 1) | st.just(0.0)
K = st.sampled_from([0, 1, 2, 3, 5, V, 50, 2**31 - 1])
TEMPERATURE = st.sampled_from([0.3, 1.0, 7.0])


@settings(max_examples=200, deadline=None)
@given(LOGITS, st.data())
def test_each_filter_leaves_what_sorting_leaves(logits, data):
    name, values = data.draw(
        st.sampled_from(
            [("top_k", K), ("top_p", PART), ("typical_p", PART), ("min_p", MIN_P)],
        )
    )
    sampling = Sampling(data.draw(TEMPERATURE), **{name: data.draw(values)})
    assert left(logits, sampling) == oracle(logits, sampling)


@settings(max_examples=200, deadline=None)
@given(LOGITS, TEMPERATURE, K, PART, MIN_P, PART)
def test_filters_work_on_what_those_before_left(logits, temperature, k, top_p, min_p, typical_p):
    sampling = Sampling(temperature, k, top_p, min_p, typical_p)
    assert left(logits, sampling) == oracle(logits, sampling)


@pytest.mark.parametrize(
    ("sampling", "want"),
    [
        (Sampling(top_k=2), {0, 1, 2}),  # the second and third are equal
        (Sampling(top_p=0.45), {0, 1, 2}),  # 0.4 is too little: the next ones cross
        (Sampling(top_p=0.35), {0}),
        (Sampling(min_p=0.3), {0, 1, 2}),  # at least 0.12
        (Sampling(typical_p=0.1), {1, 2}),  # the entropy is 1.54, their surprise 1.61
        (Sampling(typical_p=0.5), {0, 1, 2}),  # then the likeliest, 0.92
        (Sampling(top_k=2, min_p=0.9), {0}),
        # top_p after top_k: of 0.4, 0.2 and 0.2 the first has half
        (Sampling(top_k=2, top_p=0.49), {0}),
        (Sampling(temperature=0, top_k=3, min_p=0.1), {0}),
        (Sampling(), {0, 1, 2, 3, 4, 5}),
    ],
)
def test_kept_by_hand(sampling, want):
    p = np.array([0.4, 0.2, 0.2, 0.1, 0.06, 0.04, *[0] * (V - 6)])
    with np.errstate(divide="ignore"):
        assert left(np.log(p), sampling) == want


def test_a_threshold_is_exact_among_neighbouring_floats():
    """Distances that are a hundred consecutive floats, in random order: top_k cuts between two of them."""
    floats = np.float32(3).view(np.int32) + np.random.default_rng(0).permutation(100).astype(np.int32)
    logits = np.append(-floats.view(np.float32), np.float32(0))
    for k in (2, 37, 99):
        want = set(np.argsort(-logits)[:k].tolist())
        assert left(logits, Sampling(top_k=k)) == want
