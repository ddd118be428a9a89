"""Hugging Face folders against transformers: theirs read here, ours read there, and back again."""

import jax
import numpy as np
import pytest

from min_llm import models
from min_llm.formats import huggingface
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime

pytestmark = pytest.mark.peers

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 48, "vocab_size": 61, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10_000.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 64}
PLAIN = {"rope_type": "default"}
TIED = {"tie_word_embeddings": True}
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 61, "n_positions": 64}
MODELS = {
    "llama 1, multi-head": ("Llama", SIZES | {"num_key_value_heads": 4}),
    "llama 3, grouped": ("Llama", SIZES),
    "llama 3.1, factor 8": ("Llama", SIZES | {"head_dim": 16, "rope_parameters": LLAMA3 | {"factor": 8.0}}),
    "llama 3.2, tied": ("Llama", SIZES | TIED | {"head_dim": 16, "rope_parameters": LLAMA3 | {"factor": 32.0}}),
    "position interpolation": ("Llama", SIZES | {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "yarn": ("Llama", SIZES | {"head_dim": 16, "rope_parameters": YARN}),
    "qwen2.5 with yarn": ("Qwen2", SIZES | {"rope_parameters": YARN | {"beta_fast": 16.0, "beta_slow": 2.0}}),
    "smollm2": ("Llama", SIZES | TIED | {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "mistral, window": ("Mistral", SIZES | {"sliding_window": 5}),
    "mistral, no window": ("Mistral", SIZES | {"sliding_window": None}),
    "qwen2, biases": ("Qwen2", SIZES),
    "qwen2.5, tied": ("Qwen2", SIZES | TIED | {"rope_parameters": PLAIN | {"rope_theta": 1e6}}),
    "qwen3, norms of heads": ("Qwen3", SIZES | {"head_dim": 16}),
    "gpt2": ("GPT2", GPT2),
    "gpt2, another hidden size": ("GPT2", GPT2 | {"n_inner": 80, "layer_norm_epsilon": 1e-6}),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 16)).astype(np.int32)


def logits(cfg, params):
    return np.asarray(models.logits(params, cfg, Batch(TOKENS), Runtime("float32"))[0])


@pytest.mark.parametrize("name", MODELS)
def test_their_folder_here_and_ours_there(peer, tmp_path, name):
    """Logits within 1e-4 in float32, and bit for bit the same parameters after a journey out and in again."""
    architecture, config = MODELS[name]
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    peer.call("make_folder", architecture=architecture, config=config, folder=str(theirs))
    want = peer.call("folder_logits", folder=str(theirs), tokens=TOKENS)["logits"]
    cfg, params = huggingface.read(theirs)
    assert np.abs(logits(cfg, params) - want).max() < 1e-4
    huggingface.write(ours, cfg, params)
    again = peer.call("folder_logits", folder=str(ours), tokens=TOKENS)
    assert np.abs(again["logits"] - want).max() < 1e-6
    assert not (again["missing_keys"] or again["unexpected_keys"] or again["mismatched_keys"])
    cfg_again, params_again = huggingface.read(ours)
    assert cfg_again == cfg
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (np.asarray(a) == np.asarray(b)).all(), params, params_again)
    )


def test_shards_with_an_index_both_ways(peer, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    peer.call("make_folder", architecture="Llama", config=SIZES, folder=str(theirs), shard_size="20KB")
    assert len(list(theirs.glob("*.safetensors"))) > 2
    want = peer.call("folder_logits", folder=str(theirs), tokens=TOKENS)["logits"]
    cfg, params = huggingface.read(theirs)
    assert np.abs(logits(cfg, params) - want).max() < 1e-4
    huggingface.write(ours, cfg, params, shard_bytes=20_000)
    assert len(list(ours.glob("*.safetensors"))) > 2
    assert np.abs(peer.call("folder_logits", folder=str(ours), tokens=TOKENS)["logits"] - want).max() < 1e-6


def test_bfloat16_is_kept_to_the_bit(peer, tmp_path):
    peer.call("make_folder", architecture="Llama", config=SIZES, folder=str(tmp_path / "a"), dtype="bfloat16")
    want = peer.call("folder_logits", folder=str(tmp_path / "a"), tokens=TOKENS)["logits"]
    cfg, params = huggingface.read(tmp_path / "a", "bfloat16")
    huggingface.write(tmp_path / "b", cfg, params, "bfloat16")
    assert (peer.call("folder_logits", folder=str(tmp_path / "b"), tokens=TOKENS)["logits"] == want).all()
