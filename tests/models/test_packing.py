"""Documents packed into a row do not know of each other: logits as if alone, gradients of exactly zero."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm import models
from min_llm.kernels import attention
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.reference.batch import pack
from tests.toys import GPT2, LLAMA, QUICK, documents, random_weights

FAMILIES = pytest.mark.parametrize("cfg", [LLAMA, GPT2], ids=["llama", "gpt2"])


@functools.partial(jax.jit, static_argnums=(1, 2), compiler_options=QUICK)
def run(params, cfg, runtime, batch):
    return models.logits(params, cfg, batch, runtime)[0]


@FAMILIES
@pytest.mark.parametrize("name", attention.IMPLEMENTATIONS)
def test_each_document_has_the_logits_it_has_alone(cfg, name):
    """Three documents of 7 places in one row with padding, then in rows of their own without any mask."""
    params, texts, runtime = random_weights(cfg), documents(8, 8, 8), Runtime(attention=name)
    together = run(params, cfg, runtime, Batch(*pack([texts], 24)))[0]
    alone = run(params, cfg, runtime, Batch(np.stack(texts)[:, :-1]))
    np.testing.assert_allclose(together[:21].reshape(alone.shape), alone, rtol=1e-5, atol=1e-5)


@FAMILIES
@pytest.mark.parametrize("scan", [False, True])
def test_padding_changes_nothing(cfg, scan):
    params, runtime = random_weights(cfg), Runtime(scan=scan)
    padded = Batch(*pack([documents(8)], 24))
    logits = run(params, cfg, runtime, padded)
    assert np.isfinite(logits).all()
    others = dataclasses.replace(padded, tokens=np.where(padded.segment_ids == 0, 7, padded.tokens))
    np.testing.assert_array_equal(run(params, cfg, runtime, others)[:, :7], logits[:, :7])


@FAMILIES
@pytest.mark.parametrize("name", attention.IMPLEMENTATIONS)
def test_no_gradient_crosses_documents(cfg, name):
    """Rows of the embedding that only one document uses get exactly nothing from the other's hidden states. (Not
    from its loss: a tied head reaches every row of the embedding, and rightly.)"""
    params, runtime = random_weights(cfg), Runtime(attention=name)
    first, second = np.arange(1, 8, dtype=np.int32), np.arange(9, 16, dtype=np.int32)
    batch = Batch(*pack([[first, second]], 13))
    direction = np.random.default_rng(0).normal(size=(1, 13, cfg.dim)).astype(np.float32)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def gradient(embed, seen):
        def value(embed):
            changed = dataclasses.replace(params, embed=embed)
            hidden, _ = models.forward(changed, cfg, batch, runtime)
            return (hidden * jnp.where(seen[..., None], direction, 0)).sum()

        return jax.grad(value)(embed)

    for document, mine, other in ((1, first, second), (2, second, first)):
        grad = np.asarray(gradient(params.embed, batch.segment_ids == document))
        assert np.all(grad[other[:-1]] == 0)
        assert np.all(np.abs(grad[mine[:-1]]).max(-1) > 0)


def test_llama_sees_distances_alone():
    """Positions that count through the row, instead of restarting, give the same logits."""
    batch = Batch(*pack([documents(8, 8)], 14))
    params = random_weights(LLAMA)
    through = dataclasses.replace(batch, positions=batch.index)
    np.testing.assert_allclose(
        run(params, LLAMA, Runtime(), through), run(params, LLAMA, Runtime(), batch), rtol=1e-5, atol=1e-5
    )
