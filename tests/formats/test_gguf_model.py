"""Models in GGUF files: what we write we read; the real SmolLM2; what cannot be read is said in a sentence."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from min_llm import models
from min_llm.config import UserError
from min_llm.formats import gguf, gguf_model, named
from min_llm.models import gpt2, llama, mixtral
from min_llm.nn.batch import Batch
from min_llm.nn.rope import RopeScaling, angles, rotate
from min_llm.nn.runtime import Runtime

pytestmark = pytest.mark.newest  # nothing here depends on the version of JAX
LLAMA = llama.Config(
    n_layers=2, dim=32, n_heads=4, n_kv_heads=2, hidden_dim=64, vocab_size=20, max_seq_len=32
)
MODELS = {
    "llama": LLAMA,
    "tied": dataclasses.replace(LLAMA, tie_embeddings=True),
    "3.1": dataclasses.replace(LLAMA, rope_scaling=RopeScaling(8.0), head_dim=16),
    "3.2": dataclasses.replace(LLAMA, rope_scaling=RopeScaling(32.0), head_dim=16),
    "linear": dataclasses.replace(LLAMA, rope_scaling=RopeScaling(4.0, kind="linear")),
    "yarn": dataclasses.replace(
        LLAMA, rope_scaling=RopeScaling(2.5, kind="yarn", original_context=64, beta_fast=8.1)
    ),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True, norm_eps=1e-6, rope_theta=1e6),
    "gpt2": gpt2.Config(n_layers=2, dim=32, n_heads=4, vocab_size=20, max_seq_len=32),
}


def largest_difference(a, b):
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in
               zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read(tmp_path, name):
    cfg = MODELS[name]
    params = models.init(cfg, 0)
    for kind, error in (("F32", 0), ("F16", 1e-3), ("BF16", 4e-3), ("Q8_0", 2e-3), ("Q4_0", 3e-2)):
        path = tmp_path / f"{kind}.gguf"
        gguf_model.write(path, cfg, params, kind)
        found, again, metadata = gguf_model.read(path)
        assert found == cfg
        assert largest_difference(params, again) <= error
        assert metadata["general.file_type"] == gguf_model.FILE_TYPES[kind]


def test_permuted_queries_rotated_in_pairs_are_ours_rotated_in_halves():
    """llama.cpp rotates (2i, 2i + 1), we (i, i + k/2): scores do not differ, and permuting twice changes nothing."""
    random = np.random.default_rng(0)
    rows, x = random.normal(size=(3 * 8, 5)).astype(np.float32), random.normal(size=(6, 5)).astype(np.float32)
    theirs = gguf_model.permuted(rows, 3)
    assert (gguf_model.unpermuted(theirs, 3) == rows).all() and not (theirs == rows).all()
    cos, sin = angles(np.arange(6)[None], 8, 1e4)
    ours = np.asarray(rotate((x @ rows.T).reshape(1, 6, 3, 8), cos, sin))
    pairs = (x @ theirs.T).reshape(6, 3, 4, 2)
    c, s = (np.asarray(a)[0][:, None] for a in (cos, sin))
    turned = np.stack([pairs[..., 0] * c - pairs[..., 1] * s, pairs[..., 1] * c + pairs[..., 0] * s], -1)
    np.testing.assert_allclose(turned.swapaxes(2, 3).reshape(6, 3, 8), ours[0], atol=1e-5)


@functools.cache
def smollm2():
    try:
        return named.fetched("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(f"SmolLM2 could not be fetched: {error}")


def test_smollm2_answers_paris_and_is_dequantised_as_the_gguf_package_does():
    path = smollm2()
    cfg, params, metadata = gguf_model.read(path)
    assert (cfg.n_layers, cfg.dim, cfg.n_heads, cfg.n_kv_heads, cfg.vocab_size) == (30, 576, 9, 3, 49_152)
    assert cfg.tie_embeddings and cfg.norm_eps == 1e-5 and cfg.rope_theta == 100_000
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    prompt = np.array([[ids[piece] for piece in ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")]], np.int32)
    logits = models.logits(params, cfg, Batch(prompt), Runtime("float32"))[0]
    assert int(logits[0, -1].argmax()) == ids["ĠParis"]
    package = pytest.importorskip("gguf")
    theirs = {t.name: t for t in package.GGUFReader(path).tensors}
    for name in ("token_embd.weight", "blk.7.ffn_down.weight", "blk.29.attn_norm.weight"):
        want = package.dequantize(theirs[name].data, theirs[name].tensor_type)
        assert (gguf.read(path).tensors[name].array() == want).all()
    up = package.dequantize(theirs["blk.3.ffn_up.weight"].data, theirs["blk.3.ffn_up.weight"].tensor_type)
    assert (np.asarray(params.layers[0].w_up[3]) == up.T).all()


def changed(tmp_path, **metadata):
    """A small model's file with other metadata, or (None) without."""
    path = tmp_path / "whole.gguf"
    gguf_model.write(path, LLAMA, models.init(LLAMA, 0), "F32")
    file = gguf.read(path)
    kept = {
        k: v
        for k, v in (file.typed | {k.replace("__", "."): v for k, v in metadata.items()}).items()
        if v is not None
    }
    tensors = {name: (tensor.shape, tensor.kind) for name, tensor in file.tensors.items()}
    return gguf.write(tmp_path / "changed.gguf", kept, tensors, lambda name: file.tensors[name].array())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general__architecture": "mamba"}, "'mamba' model; these can be read: llama, qwen2, gpt2"),
        ({"llama__block_count": None}, "lacks llama.block_count"),
        ({"llama__block_count": 3}, "Missing: model.layers.2"),
        ({"llama__block_count": 1}, "Left over: model.layers.1|Left over: blk.1"),
        ({"llama__attention__head_count_kv": 4}, "Misshapen"),
        ({"llama__rope__dimension_count": 4}, "a part of each head"),
        ({"llama__rope__scaling__type": "longrope"}, "'longrope', which"),
        ({"llama__rope__scaling__type": "linear"}, "lacks llama.rope.scaling.factor"),
        ({"llama__rope__scaling__attn_factor": np.float32(1.5)}, "factors of its own"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, metadata, message):
    with pytest.raises(UserError, match=message):
        gguf_model.read(changed(tmp_path, **metadata))


def test_stretched_frequencies_that_are_not_known_are_refused(tmp_path):
    cfg = dataclasses.replace(LLAMA, rope_scaling=RopeScaling(5.0))
    path = tmp_path / "x.gguf"
    gguf_model.write(path, cfg, models.init(cfg, 0), "F32")
    with pytest.raises(UserError, match="neither Llama 3.1 nor 3.2"):
        gguf_model.read(path)


def test_what_gguf_cannot_say_is_refused(tmp_path):
    for cfg, message in (
        (dataclasses.replace(LLAMA, window=7), "with window or qk_norm"),
        (dataclasses.replace(LLAMA, qk_norm=True), "with window or qk_norm"),
        (dataclasses.replace(LLAMA, gated=False), "without a gate"),
        (mixtral.Config(n_layers=1, dim=16, n_heads=4, n_kv_heads=2, vocab_size=20), "mixtral"),
    ):
        with pytest.raises(UserError, match=message):
            gguf_model.write(tmp_path / "x.gguf", cfg, models.init(cfg, 0))
    with pytest.raises(UserError, match="not 'Q5_1'"):
        gguf_model.write(tmp_path / "x.gguf", LLAMA, models.init(LLAMA, 0), "Q5_1")
    assert not list(tmp_path.iterdir())
