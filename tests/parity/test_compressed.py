"""Quantized folders against compressed-tensors: what it makes of ours, and what we make of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm import models
from min_llm.formats import compressed, huggingface, tables
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.quant.leaves import METHODS, Quantized
from min_llm.quant.quantize import quantize
from tests.toys import LLAMA, random_weights

pytestmark = pytest.mark.peers

CFG = dataclasses.replace(LLAMA, n_layers=3, dim=40, hidden_dim=56, vocab_size=61, tie_embeddings=True)
SIZES = {"num_hidden_layers": 3, "hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "intermediate_size": 56, "vocab_size": 61, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 16)).astype(np.int32)
GROUP = 8  # of int4
SCHEMES = {
    "w8a8": {"weights": {"type": "int", "num_bits": 8, "strategy": "channel"},
             "input_activations": {"type": "int", "num_bits": 8, "strategy": "token", "dynamic": True}},
    "fp8": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"},
            "input_activations": {"type": "float", "num_bits": 8, "strategy": "token", "dynamic": True}},
    "int8": {"weights": {"type": "int", "num_bits": 8, "strategy": "channel"}},
    "int4": {"weights": {"type": "int", "num_bits": 4, "strategy": "group", "group_size": GROUP}},
}  # fmt: skip
MOST = {"w8a8": 0.1, "fp8": 1e-5, "int8": 1e-5, "int4": 1e-5}
"""How far logits may be apart, of their norm. Activations of w8a8 are rounded to units of 1/127 of the largest here and
of 1/127.5 there, which is other noise of the same size."""


def here(cfg, params):
    """What the peer's read_compressed tells, of a model of ours."""
    weights = {
        name: np.asarray(leaf.matrix())[:, : shape[1]]
        for name, shape, make in tables.write(cfg, params)
        if isinstance(leaf := make(), Quantized)
    }
    logits = models.logits(params, cfg, Batch(TOKENS), Runtime("float32"))[0]
    return {"weights": weights, "logits": np.asarray(logits)}


def assert_same(found, wanted, method):
    """Weights but for the last bit of a product."""
    assert found["weights"].keys() == wanted["weights"].keys() and found["weights"]
    for name, matrix in wanted["weights"].items():
        np.testing.assert_allclose(found["weights"][name], matrix, rtol=2e-7, err_msg=name)
    apart = np.linalg.norm(found["logits"] - wanted["logits"]) / np.linalg.norm(wanted["logits"])
    assert apart < MOST[method]


@pytest.mark.parametrize("method", METHODS)
def test_it_reads_what_we_write(peer, tmp_path, method):
    """The head is tied to the embedding; of int8 and w8a8 it has become a matrix of its own."""
    params = quantize(jax.tree.map(jnp.asarray, random_weights(CFG)), models.spec(CFG), method, GROUP)
    huggingface.write(tmp_path / "ours", CFG, params)
    theirs = peer.call("read_compressed", folder=str(tmp_path / "ours"), tokens=TOKENS)
    assert not (theirs["missing_keys"] or theirs["unexpected_keys"] or theirs["mismatched_keys"])
    assert_same(theirs, here(compressed.untied(CFG, params), params), method)


@pytest.mark.parametrize("method", METHODS)
def test_we_read_what_it_writes(peer, tmp_path, method):
    """Its scales are its own, and so is what it writes around them."""
    group = {"targets": ["Linear"], **SCHEMES[method]}
    peer.call(
        "make_compressed", folder=str(tmp_path / "theirs"), config=SIZES, group=group, ignore=["lm_head"]
    )
    cfg, params = huggingface.read(tmp_path / "theirs")
    theirs = peer.call("read_compressed", folder=str(tmp_path / "theirs"), tokens=TOKENS)
    assert_same(here(cfg, params), theirs, method)
