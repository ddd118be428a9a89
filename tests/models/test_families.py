"""Families and presets: published parameter counts, configurations that cannot be, initial weights."""

import dataclasses

import jax
import numpy as np
import pytest

from min_llm import models
from min_llm import spec as spec_lib
from min_llm.config import UserError, build, dump
from min_llm.models import ModelConfig, gpt2, llama
from min_llm.nn.batch import Batch
from min_llm.nn.rope import RopeScaling
from min_llm.nn.runtime import Runtime
from tests.toys import GPT2, LLAMA, MIXTRAL, oracle, random_weights

PUBLISHED = {
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name, monkeypatch):
    def no_arrays(*args, **kwargs):
        raise AssertionError("counting must not compute")

    monkeypatch.setattr(jax, "jit", no_arrays)
    before = len(jax.live_arrays())
    assert spec_lib.count(models.spec(models.preset(name))) == PUBLISHED[name]
    assert len(jax.live_arrays()) == before


def test_every_published_preset_is_here_and_minis_are_as_small_as_they_say():
    assert {n for n in models.presets() if not n.startswith("mini")} == set(PUBLISHED)
    minis = {"mini-1m": 1e6, "mini-10m": 1e7, "mini-30m": 3e7, "mini-100m": 1e8, "mini-mixtral-3m": 3e6}
    assert minis.keys() == {n for n in models.presets() if n.startswith("mini")}
    for name, size in minis.items():
        cfg = dataclasses.replace(models.preset(name), vocab_size=4096)
        assert 0.5 < spec_lib.count(models.spec(cfg)) / size < 2, name


def test_the_mini_mixtral_multiplies_as_many_parameters_a_token_as_the_mini_llama():
    minis = [dataclasses.replace(models.preset(n), vocab_size=4096) for n in ("mini-mixtral-3m", "mini-1m")]
    routers = 4 * 128 * 8
    moe, dense = (spec_lib.count(models.spec(cfg), active=True) for cfg in minis)
    assert moe - routers == dense


@pytest.mark.parametrize(
    "cfg",
    [
        LLAMA,
        dataclasses.replace(LLAMA, tie_embeddings=True),
        dataclasses.replace(LLAMA, qk_norm=True, gated=False),
        MIXTRAL,
        GPT2,
        dataclasses.replace(GPT2, bias=False),
    ],
    ids=[
        "llama",
        "llama tied",
        "llama with norms of heads, no gate",
        "mixtral",
        "gpt2",
        "gpt2 without biases",
    ],
)
def test_the_spec_has_the_oracle_s_shapes(cfg):
    expected = oracle(cfg).shapes(cfg)
    layer = expected.pop("layers")[0]
    expected |= {f"layers.0.{name}": (cfg.n_layers, *shape) for name, shape in layer.items()}
    assert {name: p.shape for name, p in spec_lib.leaves(models.spec(cfg))} == expected


def test_the_context_of_llama_3_2_is_extended_32_fold():
    assert models.preset("llama3.2-1b").rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
    assert models.preset("llama3-8b").rope_scaling is None
    assert models.preset("llama3-405b").rope_theta == 500_000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"n_heads": 6, "n_kv_heads": 4},
            r"'model.n_heads' \(6\) must be a multiple of 'model.n_kv_heads' \(4\)",
        ),
        ({"dim": 12, "n_heads": 4}, "'model.head_dim' is 3; rotary embedding needs an even one"),
        ({"n_layers": 0}, "n_layers, dim, n_heads and n_kv_heads of at least 1"),
        ({"n_heads": 0}, "of at least 1"),
        (
            {"family": "gpt2", "dim": 10, "n_heads": 3},
            r"'model.dim' \(10\) must be a multiple of 'model.n_heads' \(3\)",
        ),
        ({"family": "gpt2", "n_heads": 0}, "of at least 1"),
        (
            {"family": "mixtral", "experts_per_token": 9},
            r"'model.experts_per_token' is 9; it must be between 1 and 'model.n_experts' \(8\)",
        ),
        ({"family": "mixtral", "experts_per_token": 0}, "between 1 and"),
        ({"family": "mixtral", "n_heads": 6}, "must be a multiple of"),
        ({"family": "mixtral", "gated": False}, "experts are SwiGLU networks"),
        ({"n_experts": 8}, "Unknown configuration key 'model.n_experts'"),
        ({"family": "lama"}, "no model family 'lama'. Did you mean 'llama'"),
        ({"family": 3}, "no model family 3"),
        ({"preset": "llama3-8B"}, "no preset 'llama3-8B'. Did you mean 'llama3-8b'"),
        ({"preset": "gpt2", "family": "llama"}, "Preset 'gpt2' is a gpt2, but 'model.family' says 'llama'"),
        ({"n_head": 4}, "Unknown configuration key 'model.n_head'. Did you mean 'n_heads'"),
        ({"family": "gpt2", "rope_theta": 1.0}, "Unknown configuration key 'model.rope_theta'"),
        ({"preset": "gpt2", "n_heads": 7}, "must be a multiple"),
        ({"dim": "wide"}, "'model.dim' is 'wide'"),
        ({"rope_scaling": {"fctor": 8.0}}, "'model.rope_scaling.fctor'. Did you mean 'factor'"),
    ],
)
def test_a_model_that_cannot_be_is_refused_with_a_sentence(given, message):
    with pytest.raises(UserError, match=message):
        build(ModelConfig, given, "model")


def test_a_preset_can_be_changed_and_comes_back_from_its_dump():
    cfg = build(ModelConfig, {"preset": "llama3.2-1b", "n_layers": 2, "max_seq_len": 4096}, "model")
    assert cfg == dataclasses.replace(models.preset("llama3.2-1b"), n_layers=2, max_seq_len=4096)
    assert isinstance(build(ModelConfig, {"preset": "gpt2"}, "model"), gpt2.Config)
    assert isinstance(build(ModelConfig, {}, "model"), llama.Config)
    for cfg in models.presets().values():
        assert build(ModelConfig, dump(cfg), "model") == cfg


def test_a_model_without_vocabulary_says_so():
    with pytest.raises(UserError, match="vocab_size is not set"):
        models.spec(dataclasses.replace(LLAMA, vocab_size=0))


def test_more_tokens_than_learned_positions_are_refused():
    cfg = dataclasses.replace(GPT2, max_seq_len=8)
    with pytest.raises(UserError, match="9 tokens do not fit this GPT-2, which has learned 8 positions"):
        models.logits(random_weights(cfg), cfg, Batch(np.zeros((1, 9), np.int32)), Runtime())


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_initial_weights(name):
    """Matrices have the spec's standard deviation, the rest its constant; what writes
    into the residual stream is smaller by the square root of twice the depth."""
    cfg = build(ModelConfig, {"family": name, "dim": 64, "n_layers": 8, "vocab_size": 300}, "model")
    spec, params = models.spec(cfg), models.init(cfg, 7)
    for (leaf, p), x in zip(spec_lib.leaves(spec), jax.tree.leaves(params), strict=True):
        assert x.shape == p.shape
        assert x.dtype == np.float32
        if p.std is None:
            assert np.all(np.asarray(x) == p.fill), leaf
        else:
            out = leaf.endswith((".wo", ".w_down"))
            assert p.std == pytest.approx(0.02 / (4 if out else 1))
            np.testing.assert_allclose(x.std(), p.std, rtol=6 / np.sqrt(2 * x.size), err_msg=leaf)
            assert abs(x.mean()) < 6 * p.std / np.sqrt(x.size)
    drawn = [np.asarray(x).ravel()[:8] for x in jax.tree.leaves(params) if x.std() > 0]
    assert len({tuple(np.round(x / x.std(), 4)) for x in drawn}) == len(drawn)  # no two alike
