"""Probes watch and never touch: identity outside and inside, true statistics, scan equal to unrolled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm import models
from min_llm.kernels.mask import Mask
from min_llm.models.llama import Config
from min_llm.nn.batch import Batch
from min_llm.nn.probe import ENTROPY_QUERIES, collecting, enabled, probe, probe_entropy, statistics
from min_llm.nn.runtime import Runtime
from min_llm.reference.attention import build_mask, probabilities

CFG = Config(n_layers=3, dim=8, n_heads=4, n_kv_heads=2, hidden_dim=12, vocab_size=11)
QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time
BATCH = Batch(np.arange(14, dtype=np.int32).reshape(2, 7) % 11)


def test_without_collecting_a_probe_adds_nothing_to_the_program():
    x = jnp.arange(3.0)
    assert not enabled()
    assert probe("x", x) is x
    assert str(jax.make_jaxpr(lambda x: probe("x", x))(x)) == str(jax.make_jaxpr(lambda x: x)(x))


def test_collecting_ends_with_its_block_and_can_be_off():
    with collecting() as stats:
        assert enabled()
        probe("x", jnp.ones(2))
        with collecting(False) as inner:
            probe("hidden", jnp.ones(2))
    assert not enabled()
    assert set(stats) == {f"x/{key}" for key in ("mean", "std", "rms", "max", "kurtosis")}
    assert not inner


def test_statistics_are_what_they_say():
    x = np.random.default_rng(0).normal(1.0, 3.0, size=(40, 50)).astype(np.float32)
    x[0, 0] = -50
    got = statistics(jnp.asarray(x))
    centred = np.float64(x) - np.float64(x).mean()
    expected = {
        "mean": x.mean(),
        "std": x.std(),
        "rms": np.sqrt(np.mean(np.float64(x) ** 2)),
        "max": 50.0,
        "kurtosis": np.mean(centred**4) / np.mean(centred**2) ** 2 - 3,
    }
    assert set(got) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-4, err_msg=key)
    constant = statistics(jnp.full(7, 2.0))
    assert np.isfinite(list(constant.values())).all()


@pytest.mark.parametrize("s", [5, ENTROPY_QUERIES + 9])
def test_entropy_of_the_attention_weights(s):
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, s, 4, 6)).astype(np.float32), rng.normal(size=(2, s, 2, 6)).astype(np.float32)
    ids = np.ones((2, s), np.int32)
    ids[1, s // 2 :] = 2
    with collecting() as stats:
        probe_entropy("entropy", jnp.asarray(q), jnp.asarray(k), Mask(q_segments=ids, kv_segments=ids))
    mask = build_mask(np.broadcast_to(np.arange(s), (2, s)), ids)
    p = probabilities(np.float64(q), np.float64(k), mask)[..., -ENTROPY_QUERIES:, :]  # [B,G,R,S,T]
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    np.testing.assert_allclose(stats["entropy/mean"], entropy.mean(), rtol=1e-5)
    np.testing.assert_allclose(stats["entropy/min"], entropy.mean((0, 3)).min(), rtol=1e-5)


def probed(params, runtime):
    def run(params):
        with collecting() as stats:
            logits, _ = models.logits(params, CFG, BATCH, runtime)
        return logits, stats

    return jax.jit(run, compiler_options=QUICK)(params)


def test_a_probed_model_gives_the_same_logits_and_one_row_a_layer_scanned_or_not():
    params, runtime = models.init(CFG, 0), Runtime()
    plain = jax.jit(lambda p: models.logits(p, CFG, BATCH, runtime)[0], compiler_options=QUICK)(params)
    unrolled, stats = probed(params, runtime)
    scanned, scan_stats = probed(params, dataclasses.replace(runtime, scan=True, remat="full"))
    for logits in (unrolled, scanned):
        np.testing.assert_allclose(logits, plain, atol=1e-6)
    assert stats.keys() == scan_stats.keys()
    assert {key.split("/")[0] for key in stats} >= {"attention", "mlp", "residual", "attention_entropy"}
    for key, rows in stats.items():
        assert rows.shape == (CFG.n_layers,), key
        np.testing.assert_allclose(rows, scan_stats[key], rtol=1e-4, atol=1e-6, err_msg=key)
    assert len(np.unique(stats["residual/std"])) == CFG.n_layers  # each layer its own
