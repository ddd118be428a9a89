"""Hugging Face folders: what we write we read, and what cannot be read is said in a sentence (peers: tests/parity)."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from min_llm import models
from min_llm.config import UserError
from min_llm.formats import configs, huggingface, tables
from min_llm.models import gpt2, llama, mixtral
from min_llm.nn.rope import RopeScaling

pytestmark = pytest.mark.newest  # nothing here depends on the version of JAX
LLAMA = llama.Config(
    n_layers=2, dim=16, n_heads=4, n_kv_heads=2, hidden_dim=24, vocab_size=20, max_seq_len=32
)
GPT2 = gpt2.Config(n_layers=2, dim=16, n_heads=4, vocab_size=20, max_seq_len=32)
MODELS = {
    "llama": LLAMA,
    "tied": dataclasses.replace(LLAMA, tie_embeddings=True),
    "scaled": dataclasses.replace(LLAMA, rope_scaling=RopeScaling(32.0), head_dim=8),
    "linear": dataclasses.replace(LLAMA, rope_scaling=RopeScaling(4.0, kind="linear")),
    "yarn": dataclasses.replace(
        LLAMA, rope_scaling=RopeScaling(2.5, kind="yarn", original_context=64, beta_slow=0.5)
    ),
    "mistral": dataclasses.replace(LLAMA, window=7),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, head_dim=8),
    "gpt2": GPT2,
}


@pytest.fixture
def folder(tmp_path):
    return huggingface.write(tmp_path / "model", LLAMA, models.init(LLAMA, 0))


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and (x == y).all(), a, b))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read(tmp_path, name):
    cfg = MODELS[name]
    params = models.init(cfg, 0)
    for shard in (10**9, 3000):
        out = huggingface.write(tmp_path / str(shard), cfg, params, shard_bytes=shard)
        found, again = huggingface.read(out)
        assert (found, equal(again, params)) == (cfg, True)
    sizes = [file.stat().st_size for file in out.glob("*.safetensors")]
    assert len(sizes) > 2 and (out / huggingface.INDEX).is_file()


def test_a_gpt_without_biases_is_written_with_zeros(tmp_path):
    """transformers' GPT-2 has them always."""
    cfg = dataclasses.replace(GPT2, bias=False)
    params = models.init(cfg, 0)
    found, again = huggingface.read(huggingface.write(tmp_path / "out", cfg, params))
    assert found == GPT2
    assert equal(again.layers[0].wq, params.layers[0].wq)
    assert not again.layers[0].bq.any() and not again.final_norm_bias.any()


def test_each_tensor_is_read_once_and_one_leaf_is_held_at_a_time(folder):
    cfg = huggingface.read_config(folder)
    tensors, asked = load_file(folder / huggingface.ONE), []

    def tensor(name):
        asked.append(name)
        return tensors[name]

    tables.read(cfg, list(tensors), tensor, folder)
    assert sorted(asked) == sorted(tensors)
    leaf = [name.split(".", 3)[-1] for name in asked if ".layers." in name]
    assert all(
        leaf[i] == leaf[i + 1] for i in range(0, len(leaf), 2)
    )  # a leaf's two layers, then the next leaf


def test_missing_left_over_and_misshapen_tensors_are_listed(folder):
    path = folder / huggingface.ONE
    tensors = load_file(path)
    changed = dict(tensors)
    del changed["model.layers.1.mlp.up_proj.weight"]
    changed["model.layers.2.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    save_file(changed, path)
    with pytest.raises(
        UserError, match=r"Missing: model\.layers\.1\.mlp\.up_proj\.weight.*Left over: model\.layers\.2"
    ):
        huggingface.read(folder)
    changed = tensors | {
        "model.norm.weight": np.zeros(3, np.float32),
        "lm_head.weight": np.zeros((16, 20), np.float32),
    }
    save_file(changed, path)
    with pytest.raises(
        UserError, match=r"Misshapen: lm_head.weight \[16, 20\], not \[20, 16\], model.norm.weight"
    ):
        huggingface.read(folder)


def test_buffers_and_a_repeated_tied_head_are_no_surplus(tmp_path):
    cfg = MODELS["tied"]
    out = huggingface.write(tmp_path / "out", cfg, models.init(cfg, 0))
    tensors = load_file(out / huggingface.ONE)
    extra = {"lm_head.weight": tensors["model.embed_tokens.weight"],
             "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32)}  # fmt: skip
    save_file(tensors | extra, out / huggingface.ONE)
    assert huggingface.read(out)[0] == cfg


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_file_that_was_cut_is_refused(folder, keep):
    path = folder / huggingface.ONE
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(UserError, match="no whole safetensors file"):
        huggingface.read(folder)


def test_a_folder_without_its_shard_or_with_pickles_is_refused(tmp_path, folder):
    out = huggingface.write(tmp_path / "sharded", LLAMA, models.init(LLAMA, 0), shard_bytes=3000)
    gone = sorted(out.glob("model-*"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=f"lacks {gone.name}"):
        huggingface.read(out)
    (folder / huggingface.ONE).rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not read"):
        huggingface.read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Gemma3ForCausalLM"]}, "'Gemma3ForCausalLM'; these can be read"),
        ({"architectures": None, "model_type": "bert"}, "architecture None"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"attention_bias": True}, "attention_bias: True"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "'dynamic'.*llama3, linear, yarn"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' and lacks 'factor'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0}}, "mscale: 1.0"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}},
            "attention_factor: 1.5",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": "x"}}, "no number"),
        ({"num_attention_heads": None}, "'num_attention_heads' must be a number"),
        ({"num_key_value_heads": 3}, "multiple"),
    ],
)
def test_what_would_change_the_numbers_is_refused(folder, change, message):
    path = folder / huggingface.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        huggingface.read(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "\ud800".encode("utf-8", "surrogatepass")])
def test_a_configuration_that_is_no_json(folder, text):
    (folder / huggingface.CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"config\.json"):
        huggingface.read(folder)


def test_a_setting_that_is_missing_is_named(folder):
    path = folder / huggingface.CONFIG
    given = json.loads(path.read_text())
    del given["intermediate_size"]
    path.write_text(json.dumps(given))
    with pytest.raises(UserError, match="lacks the setting 'intermediate_size'"):
        huggingface.read(folder)


def test_writing_leaves_nothing_half_done_and_overwrites_nothing(tmp_path, folder, monkeypatch):
    params = models.init(LLAMA, 0)
    with pytest.raises(UserError, match="is there already"):
        huggingface.write(folder, LLAMA, params)

    def full(*arguments, **options):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(huggingface, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        huggingface.write(tmp_path / "new", LLAMA, params)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_families_that_others_do_not_have_are_refused(tmp_path):
    cfg = mixtral.Config(n_layers=1, dim=16, n_heads=4, n_kv_heads=2, vocab_size=20)
    with pytest.raises(UserError, match="mixtral"):
        configs.to_json(cfg, "float32")


@pytest.mark.parametrize(
    "changes", [{"gated": False}, {"qk_norm": True, "window": 7}, {"qk_norm": True, "qkv_bias": True}]
)
def test_a_llama_that_others_do_not_have_is_refused(changes):
    with pytest.raises(UserError, match="no architecture of others"):
        configs.to_json(dataclasses.replace(LLAMA, **changes), "float32")
