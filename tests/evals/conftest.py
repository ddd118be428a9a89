import dataclasses

import jax
import numpy as np
import pytest

from min_llm import models, reporting
from min_llm.infer.engine import Engine
from min_llm.infer.load import Loaded
from min_llm.infer.options import EngineConfig
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from tests.toy_tokenizers import toy
from tests.toys import LLAMA, random_weights


@pytest.fixture(autouse=True)
def fresh_reporter(monkeypatch):
    """A reporter of the test's own: one made under captured output would write to a closed stream later."""
    monkeypatch.setattr(reporting, "_reporter", None)


@pytest.fixture(scope="session")
def loaded():
    """A toy Llama with random weights and a small BPE, whose texts begin with the token that ends them."""
    tokenizer = toy("bpe")
    cfg = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size)
    opening = (tokenizer.eos,)
    return Loaded("toy", cfg, random_weights(cfg), Runtime("float32"), tokenizer, opening, opening)


@pytest.fixture(scope="session")
def engine(loaded):
    """Room for 32 tokens, the one that it makes included."""
    return Engine(loaded, EngineConfig(max_sequences=4, chunk=32, page_size=4, model_len=32, warm=False))


@pytest.fixture(scope="session")
def logprobs(loaded):
    """Of every next token after each of these, without engine, cache or chunks: [n, vocab]."""

    def compute(tokens):
        padded = np.zeros((1, loaded.cfg.max_seq_len), np.int32)  # one shape, compiled once
        padded[0, : len(tokens)] = tokens
        logits = models.logits(loaded.params, loaded.cfg, Batch(padded), loaded.runtime)[0]
        return np.asarray(jax.nn.log_softmax(logits[0], axis=-1), np.float64)[: len(tokens)]

    return compute
