"""Tiny models and batches, awkward on purpose: odd sizes, random weights far from their initial values."""

from __future__ import annotations

import jax
import numpy as np

from min_llm import models
from min_llm import spec as spec_lib
from min_llm.models import gpt2, llama, mixtral
from min_llm.nn.batch import Batch
from min_llm.nn.rope import RopeScaling
from min_llm.reference import batch as oracle_batch
from min_llm.reference import gpt2 as oracle_gpt2
from min_llm.reference import llama as oracle_llama
from min_llm.reference import mixtral as oracle_mixtral
from min_llm.reference.params import random_params, restack

VOCAB = 19
LLAMA = llama.Config(
    n_layers=2,
    dim=15,
    n_heads=4,
    n_kv_heads=2,
    head_dim=6,
    hidden_dim=17,
    vocab_size=VOCAB,
    max_seq_len=64,
    rope_theta=100.0,
)
MIXTRAL = mixtral.Config(**vars(LLAMA), n_experts=5, experts_per_token=2)
GPT2 = gpt2.Config(n_layers=2, dim=15, n_heads=3, hidden_dim=21, vocab_size=VOCAB, max_seq_len=64)
# contexts so short that the three bands of the scaling are all met within the toys' rows
SCALED_8 = RopeScaling(factor=8.0, original_context=64)
SCALED_32 = RopeScaling(factor=32.0, original_context=64)
YARN = RopeScaling(kind="yarn", factor=4.0, original_context=64, beta_fast=4.0)

# the optimizer of LLVM takes half of the time of a small test and changes nothing that is ours
QUICK = {"xla_backend_optimization_level": 0}


def oracle(cfg):
    """The NumPy module of a config's family."""
    return {"llama": oracle_llama, "mixtral": oracle_mixtral, "gpt2": oracle_gpt2}[cfg.family]


def random_weights(cfg, seed=1, std=0.3):
    """Float32 weights in the library's layout: none is zero or one, and every bias counts."""
    plain = random_params(oracle(cfg).shapes(cfg), np.random.default_rng(seed), std)
    tree = restack(plain, like=spec_lib.shapes(models.spec(cfg)))
    return jax.tree.map(np.float32, tree)


def documents(*lengths, seed=2, vocab=VOCAB):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, n).astype(np.int32) for n in lengths]


def packed(seq_len=13, vocab=VOCAB):
    """Two rows: two documents and padding; one document and padding. Weights are uneven, some zero."""
    a, b, c = documents(6, 4, 8, vocab=vocab)
    made = oracle_batch.pack([[a, b], [c]], seq_len)
    weights = made.weights * np.random.default_rng(3).uniform(0.5, 2, made.weights.shape)
    weights[0, 1] = 0
    return Batch(*made._replace(weights=weights.astype(np.float32)))


def rows(shape=(2, 9), vocab=VOCAB, seed=4):
    """Whole rows of one document each: no segments, positions, index or weights."""
    tokens = np.random.default_rng(seed).integers(0, vocab, (shape[0], shape[1] + 1)).astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:])
