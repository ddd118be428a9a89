"""Llama, Mixtral and GPT-2 equal the NumPy oracles, in logits, loss and every gradient."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from min_llm import models
from min_llm.nn.runtime import Runtime
from tests.toys import (
    GPT2,
    LLAMA,
    MIXTRAL,
    QUICK,
    SCALED_8,
    SCALED_32,
    YARN,
    oracle,
    packed,
    random_weights,
    rows,
)

UNROLLED = Runtime(logits_per_chunk=5 * LLAMA.vocab_size)  # the loss takes several chunks
SCANNED = dataclasses.replace(UNROLLED, scan=True, attention="reference", remat="selective")
BLOCKWISE = dataclasses.replace(UNROLLED, attention="blockwise", remat="full")


def llama(**changes):
    return dataclasses.replace(LLAMA, **changes)


CASES = {
    "llama, GQA": (LLAMA, UNROLLED, packed()),
    "llama, MQA, tied, scaling 8": (
        llama(n_heads=3, n_kv_heads=1, tie_embeddings=True, rope_scaling=SCALED_8),
        SCANNED,
        packed(),
    ),
    "llama, MHA, scaling 32": (llama(n_kv_heads=4, rope_scaling=SCALED_32), BLOCKWISE, rows()),
    "llama, window, three layers, yarn": (
        llama(n_layers=3, window=3, norm_eps=0.1, rope_scaling=YARN),
        UNROLLED,
        packed(),
    ),
    "llama, biases as in qwen2": (llama(qkv_bias=True), SCANNED, packed()),
    "llama, norms of heads as in qwen3": (llama(qk_norm=True), SCANNED, packed()),
    "llama, no gate": (llama(gated=False), UNROLLED, rows()),
    "mixtral": (MIXTRAL, UNROLLED, packed()),
    "mixtral, three of five, tied": (
        dataclasses.replace(MIXTRAL, experts_per_token=3, tie_embeddings=True),
        SCANNED,
        rows(),
    ),
    "gpt2": (GPT2, UNROLLED, packed()),
    "gpt2, no biases": (dataclasses.replace(GPT2, bias=False), SCANNED, rows()),
}


@functools.partial(jax.jit, static_argnums=(1, 2), compiler_options=QUICK)
def run(params, cfg, runtime, batch):
    """Logits, and the loss with its gradients."""
    return (
        models.logits(params, cfg, batch, runtime)[0],
        jax.value_and_grad(models.loss_sum)(params, cfg, batch, runtime),
    )


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients_equal_the_oracle(case):
    cfg, runtime, batch = CASES[case]
    params = random_weights(cfg)
    logits, (loss, grads) = run(params, cfg, runtime, batch)
    np.testing.assert_allclose(logits, oracle(cfg).logits(params, cfg, batch), rtol=1e-5, atol=1e-5)
    want, want_grads = oracle(cfg).loss_and_grads(params, cfg, batch)
    total = batch.tokens.size if batch.weights is None else batch.weights.sum()
    np.testing.assert_allclose(loss / total, want, rtol=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    for (path, grad), exact in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(want_grads), strict=True
    ):
        assert grad.dtype == np.float32
        np.testing.assert_allclose(
            grad / total, exact, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize("cfg", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_bfloat16_stays_near_and_keeps_gradients_in_float32(cfg):
    """The largest error over the largest logit: measured 0.01 and 0.02 (steps are 0.004 wide); of the loss 0.001."""
    params, batch = random_weights(cfg), packed()
    logits, (loss, grads) = run(params, cfg, dataclasses.replace(UNROLLED, dtype="bfloat16"), batch)
    exact, want = oracle(cfg).logits(params, cfg, batch), oracle(cfg).loss(params, cfg, batch)
    assert logits.dtype == loss.dtype == np.float32
    assert {grad.dtype for grad in jax.tree.leaves(grads)} == {np.dtype(np.float32)}
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
    assert abs(loss / batch.weights.sum() - want) < 0.01 * want
