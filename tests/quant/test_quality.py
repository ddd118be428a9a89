"""The numbers of a comparison against their definitions in NumPy."""

import numpy as np
import pytest

from min_llm.quant.quality import compare, summary


def softmax(x):
    e = np.exp(x.astype(np.float64))
    return e / e.sum(-1, keepdims=True)


def test_every_number_is_its_definition():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(500, 11)).astype(np.float32)
    changed = (reference + 0.3 * rng.normal(size=reference.shape)).astype(np.float32)
    targets = rng.integers(0, 11, 500)
    q = summary(compare(reference, changed, targets))
    p, r = softmax(reference), softmax(changed)
    at = np.arange(500), targets
    divergence = (p * np.log(p / r)).sum(-1)
    assert q.reference_perplexity == pytest.approx(np.exp(-np.log(p[at]).mean()), rel=1e-5)
    assert q.perplexity == pytest.approx(np.exp(-np.log(r[at]).mean()), rel=1e-5)
    assert q.ratio == pytest.approx(q.perplexity / q.reference_perplexity)
    assert q.mean_divergence == pytest.approx(divergence.mean(), rel=1e-4)
    assert q.median_divergence == pytest.approx(np.median(divergence), rel=1e-3)
    assert q.divergence_99 == pytest.approx(np.quantile(divergence, 0.99), rel=1e-3)
    assert q.same_top == (p.argmax(-1) == r.argmax(-1)).mean()
    assert q.rms_delta_p == pytest.approx(np.sqrt(((r - p)[at] ** 2).mean()), rel=1e-4)


def test_a_model_loses_nothing_against_itself():
    logits = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    q = summary(compare(logits, logits, np.arange(20) % 7))
    assert (q.ratio, q.ratio_error, q.mean_divergence, q.same_top, q.rms_delta_p) == (1, 0, 0, 1, 0)


def test_the_error_covers_what_chance_makes_of_the_ratio():
    """Two models that are equally good: in 200 samples the ratio is within two errors of 1 about as often as it should
    be."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        logits = rng.normal(size=(300, 2, 5)).astype(np.float32)
        q = summary(compare(logits[:, 0], logits[:, 1], rng.integers(0, 5, 300)))
        inside += abs(q.ratio - 1) < 2 * q.ratio_error
    assert 180 <= inside <= 199
