"""Toy models and batches for the oracles' own tests."""

from types import SimpleNamespace

import numpy as np
import pytest

from min_llm.reference import batch, gpt2, llama, mixtral
from min_llm.reference.params import random_params

SCALING = SimpleNamespace(
    kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64
)

LLAMA = {
    "n_layers": 2,
    "dim": 12,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 6,
    "hidden_dim": 15,
    "vocab_size": 17,
    "rope_theta": 100.0,
    "rope_scaling": None,
    "norm_eps": 1e-5,
    "tie_embeddings": False,
    "window": None,
}
MIXTRAL = {**LLAMA, "n_experts": 4, "experts_per_token": 2}
GPT2 = {
    "n_layers": 2,
    "dim": 12,
    "n_heads": 3,
    "head_dim": 4,
    "hidden_dim": 20,
    "vocab_size": 17,
    "max_seq_len": 16,
    "norm_eps": 1e-5,
    "bias": True,
}


def make(module, defaults, **changes):
    cfg = SimpleNamespace(**{**defaults, **changes})
    return cfg, random_params(module.shapes(cfg), np.random.default_rng(1), std=0.3)


@pytest.fixture
def make_llama():
    """cfg, params of a small Llama with random weights; keyword arguments change the configuration."""
    return lambda **changes: make(llama, LLAMA, **changes)


@pytest.fixture
def make_mixtral():
    return lambda **changes: make(mixtral, MIXTRAL, **changes)


@pytest.fixture
def make_gpt2():
    return lambda **changes: make(gpt2, GPT2, **changes)


@pytest.fixture
def scaling():
    return SCALING


@pytest.fixture
def documents():
    """Three documents of random tokens, 6, 4 and 5 long."""
    rng = np.random.default_rng(2)
    return [rng.integers(0, LLAMA["vocab_size"], n) for n in (6, 4, 5)]


@pytest.fixture
def packed(documents):
    """Two rows: two documents and padding; one document and padding. Weights are uneven."""
    made = batch.pack([documents[:2], documents[2:]], seq_len=10)
    rng = np.random.default_rng(3)
    return made._replace(weights=made.weights * rng.uniform(0.5, 2, made.weights.shape))
