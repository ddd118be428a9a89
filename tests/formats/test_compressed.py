"""Quantized folders: bit for bit there and back, the bytes that compressed-tensors defines, and what cannot be read."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from min_llm import models
from min_llm.cli.main import app
from min_llm.config import UserError
from min_llm.formats import gguf_model, huggingface
from min_llm.formats import model as any_model
from min_llm.infer.load import load
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.quant.leaves import METHODS
from min_llm.quant.quantize import quantize
from tests.toys import GPT2, LLAMA, random_weights, rows

TOYS = {
    "llama": dataclasses.replace(LLAMA, n_layers=4),
    "tied": dataclasses.replace(LLAMA, n_layers=4, tie_embeddings=True),
    "qwen2": dataclasses.replace(LLAMA, n_layers=3, qkv_bias=True),
}


def made(toy, method, **options):
    cfg = TOYS[toy]
    return cfg, quantize(jax.tree.map(jnp.asarray, random_weights(cfg)), models.spec(cfg), method, **options)


def logits(params, cfg):
    return np.asarray(models.logits(params, cfg, Batch(rows().tokens), Runtime("float32"))[0])


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("method", METHODS)
def test_a_quantized_model_comes_back_bit_for_bit(toy, method, tmp_path):
    cfg, params = made(toy, method)
    huggingface.write(tmp_path / "x", cfg, params, shard_bytes=2000)
    again, found = huggingface.read(tmp_path / "x")
    assert again.tie_embeddings == (cfg.tie_embeddings and params.head is None)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype and (np.asarray(a).tobytes() == np.asarray(b).tobytes())
    assert (logits(found, again) == logits(params, cfg)).all()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))


def test_values_are_packed_as_compressed_tensors_does(tmp_path):
    """Element i of a row in bits 4i to 4i + 3 of its words (or 8i to 8i + 7), plus half the range."""
    for method, bits in (("int4", 4), ("int8", 8)):
        cfg, params = made("llama", method)
        huggingface.write(tmp_path / method, cfg, params)
        tensors = load_file(tmp_path / method / "model.safetensors")
        name = "model.layers.1.mlp.down_proj.weight"
        out, k = tensors[name + "_shape"].tolist()
        assert (out, k) == (cfg.dim, cfg.hidden_dim)
        words = tensors[name + "_packed"].view(np.uint32)
        assert words.shape == (out, -(-k * bits // 32))
        per = 32 // bits
        values = np.stack([words[:, i // per] >> (bits * (i % per)) & (2**bits - 1) for i in range(k)], 1)
        values = values.astype(np.int64) - 2 ** (bits - 1)
        scales = np.repeat(tensors[name + "_scale"], 32 if bits == 4 else k, 1)[:, :k]
        given = random_weights(cfg).layers[0].w_down[1].T
        most = 0.501 if method == "int8" else 1.2  # units; that of int4 leaves the largest of a group outside
        assert (np.abs(values * scales - given) <= most * np.abs(scales)).all()


def test_config_says_what_is_quantized_and_what_is_not(tmp_path):
    cfg, params = made("tied", "fp8")
    huggingface.write(tmp_path / "x", cfg, params)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    entry = config["quantization_config"]
    assert (
        entry["format"] == "float-quantized"
        and entry["config_groups"]["group_0"]["weights"]["type"] == "float"
    )
    ignored = set(entry["ignore"])
    assert "lm_head" in ignored and len(ignored) == 1 + 4 * 4 + 2 * 3
    assert {"model.layers.0.mlp.up_proj", "model.layers.3.mlp.up_proj"} < ignored
    assert "model.layers.1.mlp.up_proj" not in ignored
    assert "quantization_config" not in json.loads(_plain(tmp_path).read_text())


def _plain(folder):
    huggingface.write(folder / "plain", TOYS["llama"], random_weights(TOYS["llama"]))
    return folder / "plain" / "config.json"


def _edited(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config["quantization_config"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_what_cannot_be_read_is_said(tmp_path):
    cfg, params = made("llama", "w8a8")
    folder = huggingface.write(tmp_path / "x", cfg, params)
    cases = [
        (lambda c: c.update(quant_method="gptq"), "quantized by 'gptq'"),
        (lambda c: c.update(config_groups={}), "in several ways"),
        (lambda c: c.update(format="marlin-24"), "marlin-24"),
        (lambda c: c["config_groups"]["group_0"]["weights"].update(symmetric=False), "cannot be read"),
        (
            lambda c: c["config_groups"]["group_0"]["input_activations"].update(dynamic=False),
            "cannot be read",
        ),
        (lambda c: c["config_groups"]["group_0"].update(weights=None), "cannot be read"),
    ]
    for i, (change, sentence) in enumerate(cases):
        with pytest.raises(UserError, match=sentence):
            huggingface.read(_edited(folder, tmp_path / str(i), change))


def test_tensors_that_do_not_fit_are_named(tmp_path):
    for method in METHODS:
        cfg, params = made("llama", method)
        folder = huggingface.write(tmp_path / method, cfg, params)
        if method == "fp8":
            continue  # safetensors writes no e4m3fn that it has read
        tensors = load_file(folder / "model.safetensors")
        name = "model.layers.1.mlp.up_proj.weight_scale"
        save_file(tensors | {name: tensors[name][:-1]}, folder / "model.safetensors")
        with pytest.raises(UserError, match="layers.1.mlp.up_proj.weight is int.*scales"):
            huggingface.read(folder)
        save_file({k: v for k, v in tensors.items() if k != name}, folder / "model.safetensors")
        with pytest.raises(UserError, match=r"mlp.up_proj.weight"):
            huggingface.read(folder)


def test_what_cannot_be_written_is_said(tmp_path):
    params = quantize(random_weights(GPT2), models.spec(GPT2), "int8")
    with pytest.raises(UserError, match="A quantized gpt2 cannot be written"):
        huggingface.write(tmp_path / "x", GPT2, params)
    with pytest.raises(UserError, match="as a folder, not as GGUF"):
        gguf_model.write(tmp_path / "x.gguf", *made("llama", "int8"))


def test_the_command_writes_what_load_and_sample_read(tmp_path, capsys):
    def cli(*arguments):
        app([str(a) for a in arguments], standalone_mode=False)

    (tmp_path / "text.txt").write_text("to be or not to be " * 200)
    model = [
        f"model.{k}={v}" for k, v in dict(n_layers=3, dim=32, n_heads=4, n_kv_heads=2, hidden_dim=64).items()
    ]
    train = ["model.max_seq_len=64", "train.steps=2", "train.batch_size=2", "train.seq_len=16", "train.eval_every=0",
             "data.tokenizer=bpe:260", f"data.source={tmp_path / 'text.txt'}", f"out={tmp_path}", "name=run",
             "sample.every=0", "sample.max_tokens=8", "log.tensorboard=false", "runtime.dtype=float32"]  # fmt: skip
    cli("train", *model, *train)
    cli("quantize", tmp_path / "run", tmp_path / "q", "--method", "fp8", "--dtype", "float32")
    ours = load(tmp_path / "run")
    wanted = quantize(ours.params, models.spec(ours.cfg), "fp8")
    found = load(tmp_path / "q")
    assert all(
        (np.asarray(a) == np.asarray(b)).all()
        for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted), strict=True)
    )
    capsys.readouterr()
    cli("sample", tmp_path / "q", "--prompt", "to be", "--max-tokens", 3, "--temperature", 0)
    assert capsys.readouterr().out.startswith("to be")
    with pytest.raises(UserError, match="is there already"):
        cli("quantize", tmp_path / "run", tmp_path / "q", "--method", "int8")
    with pytest.raises(UserError, match="no method 'int3'"):
        cli("quantize", tmp_path / "run", tmp_path / "r", "--method", "int3")
    with pytest.raises(UserError, match="is quantized and cannot be trained"):
        cli("train", *model, *train, f"init_from={tmp_path / 'q'}", "name=other")
    assert any_model.found(tmp_path / "q") == tmp_path / "q"
