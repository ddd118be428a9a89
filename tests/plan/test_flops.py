"""Parameters and FLOPs from the spec: published counts, XLA's own count, the conventions of other projects."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from min_llm import models
from min_llm.config import UserError
from min_llm.models import gpt2, llama
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.plan.flops import flops_per_token, matmul_parameters, mfu, training_seconds
from min_llm.spec import count, shapes

PARAMETERS = {
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


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_equal_the_published_ones_without_allocating(name):
    before = len(jax.live_arrays())
    assert count(models.spec(models.preset(name))) == PARAMETERS[name]
    assert len(jax.live_arrays()) == before


def test_matmul_parameters_leave_out_lookups_norms_and_biases():
    eight = models.preset("llama3-8b")
    spec = models.spec(eight)
    assert matmul_parameters(spec) == PARAMETERS["llama3-8b"] - count(spec, "norm") - 128_256 * 4096
    one = models.spec(models.preset("llama3.2-1b"))  # tied: the embedding is the head
    assert matmul_parameters(one) == PARAMETERS["llama3.2-1b"] - count(one, "norm")
    gpt = models.spec(models.preset("gpt2"))
    assert matmul_parameters(gpt) == PARAMETERS["gpt2"] - count(gpt, "norm", "bias") - 1024 * 768


@pytest.mark.parametrize(
    ("name", "active"), [("mixtral-8x7b", 12_879_925_248), ("mixtral-8x22b", 39_152_031_744)]
)
def test_a_token_pays_for_its_two_experts_of_eight(name, active):
    """46.7B and 12.9B (the paper's 47B and 13B), 141B and 39B."""
    cfg = models.preset(name)
    spec, d = models.spec(cfg), cfg.dim
    assert count(spec, active=True) == active
    attention = 2 * d * cfg.head_dim * (cfg.n_heads + cfg.n_kv_heads)
    layer = attention + d * 8 + 2 * 3 * d * cfg.hidden_dim  # the router multiplies every token
    n = cfg.n_layers * layer + d * cfg.vocab_size
    assert matmul_parameters(spec) == n
    flops = flops_per_token(cfg, 4096)
    width = cfg.n_layers * cfg.n_heads * cfg.head_dim
    assert flops.training == 6 * n + 12 * width * 4096
    assert flops.training_lingua == 6 * (active - d * cfg.vocab_size) + 7 * width * 4096


def test_conventions_of_other_projects():
    cfg = models.preset("llama3-8b")
    flops = flops_per_token(cfg, 8192)
    attention = 32 * 32 * 128 * 8192
    assert flops.n == 7_504_658_432
    assert flops.training == 6 * flops.n + 12 * attention
    assert flops.training_causal == 6 * flops.n + 6 * attention
    outside = PARAMETERS["llama3-8b"] - 128_256 * 4096
    assert flops.training_lingua == 6 * outside + 7 * attention
    assert flops.forward == flops.training / 3
    assert flops.of("full") == flops.training
    assert flops.formula == "6N + 12·L·H·K·S"


def test_a_window_shortens_what_queries_see():
    cfg = llama.Config(vocab_size=64, n_layers=2, dim=32, n_heads=4, window=3, max_seq_len=64)
    flops = flops_per_token(cfg, 10)
    seen = sum(min(i + 1, 3) for i in range(10)) / 10  # causal and windowed, the diagonal included
    width = cfg.n_layers * cfg.n_heads * cfg.head_dim
    assert flops.training == 6 * flops.n + 12 * width * 3
    # a query sees itself in full, where the convention counts the triangle's half of it
    assert abs((flops.training_causal - 6 * flops.n) / (12 * width) - seen) <= 0.5
    assert flops.formula == "6N + 12·L·H·K·W"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_forward_flops_are_what_xla_counts(family, tied):
    if family == "llama":
        cfg = llama.Config(
            vocab_size=1000,
            n_layers=3,
            dim=512,
            n_heads=8,
            n_kv_heads=2,
            max_seq_len=256,
            tie_embeddings=tied,
        )
    else:
        cfg = gpt2.Config(vocab_size=1000, n_layers=3, dim=512, n_heads=8, max_seq_len=256, bias=tied)
    b, s = 2, 256
    batch = Batch(jax.ShapeDtypeStruct((b, s), jnp.int32))
    runtime = Runtime(attention="reference")  # every query against every key, as the full convention says
    forward = jax.jit(lambda params, batch: models.logits(params, cfg, batch, runtime)[0])
    counted = forward.lower(shapes(models.spec(cfg)), batch).cost_analysis()["flops"]
    assert flops_per_token(cfg, s).forward * b * s == pytest.approx(counted, rel=0.05)


def test_training_flops_are_what_xla_counts():
    cfg = llama.Config(vocab_size=1000, n_layers=3, dim=512, n_heads=8, n_kv_heads=2, max_seq_len=256)
    tokens = jax.ShapeDtypeStruct((2, 256), jnp.int32)
    runtime = Runtime(attention="reference")
    gradient = jax.jit(jax.value_and_grad(lambda p, batch: models.loss_sum(p, cfg, batch, runtime)))
    counted = gradient.lower(shapes(models.spec(cfg)), Batch(tokens, tokens)).cost_analysis()["flops"]
    assert flops_per_token(cfg, 256).training * 512 == pytest.approx(counted, rel=0.05)


def test_mfu_and_time_are_each_other_reversed():
    flops = flops_per_token(models.preset("llama3-8b"), 8192)
    # a token costs 57.9 GFLOP, so all of an H100 would be 17,084 tokens/s
    assert mfu(17_084, flops, 989.4e12) == pytest.approx(1, abs=1e-4)
    assert mfu(1000, flops, 989.4e12, "causal") < mfu(1000, flops, 989.4e12)
    seconds = training_seconds(1e9, flops, 989.4e12, 0.4)
    assert mfu(1e9 / seconds, flops, 989.4e12) == pytest.approx(0.4)


@pytest.mark.parametrize("seq_len", [0, -1])
def test_bad_lengths_are_refused(seq_len):
    with pytest.raises(UserError, match="at least one token"):
        flops_per_token(models.preset("gpt2"), seq_len)


def test_peak_and_vocabulary_must_be_known():
    with pytest.raises(UserError, match="positive"):
        mfu(1, flops_per_token(models.preset("gpt2"), 8), 0.0)
    with pytest.raises(UserError, match="vocab_size"):
        flops_per_token(dataclasses.replace(models.preset("gpt2"), vocab_size=0), 8)
