"""Inference arithmetic against the numbers of the two posts, and named hardware."""

import dataclasses
import itertools

import pytest

from min_llm import models, platform
from min_llm.config import UserError
from min_llm.models import llama
from min_llm.plan import hardware
from min_llm.plan.arithmetic import capacity, crossover, decode, prefill, serving_capacity, weights_read
from min_llm.plan.flops import flops_per_token, matmul_parameters
from min_llm.plan.memory import kv_bytes_per_token
from min_llm.spec import count

H100 = hardware.NAMED["h100"]
EIGHT = models.preset("llama3-8b")


def test_throughput_is_all_you_need():
    """Mistral 7B in fp16 on a 24 GB card: 14 GB of weights and 3 GB of overhead leave 7 GiB for chats."""
    mistral = llama.Config(
        vocab_size=32_000,
        n_layers=32,
        dim=4096,
        n_heads=32,
        n_kv_heads=8,
        hidden_dim=14_336,
        max_seq_len=8192,
    )
    per_token = kv_bytes_per_token(mistral, "float16")
    assert per_token == 0.125 * 2**20
    chat = 10 * (150 + 350)
    fit = capacity((24 - 14 - 3) * 2**30, per_token, chat, longest=8192, block=16)
    assert fit.bytes_per_block == 2 * 2**20
    assert fit.blocks == 3584
    assert fit.blocks_per_sequence == 313
    assert fit.paged == 11
    assert fit.reserved == 7
    # the post's latency floor: 14 GB of weights at 1,008 GB/s are 72 tokens a second
    one = decode(mistral, hardware.NAMED["rtx-4090"], 1, 1)
    assert one.tokens_per_second == pytest.approx(72, rel=0.03)
    assert one.bound == "memory"


def test_crossover_batch():
    assert crossover(H100) == pytest.approx(295, abs=0.5)
    assert crossover(hardware.NAMED["a100-40gb"]) == pytest.approx(200, abs=1)
    assert crossover(dataclasses.replace(H100, flops_bfloat16=312e12, bandwidth=1.5e12)) == 208
    assert crossover(H100, "int8") == crossover(H100) / 2  # half the bytes, the same products


def test_decode_changes_its_bound_at_the_crossover():
    small = dataclasses.replace(EIGHT, n_kv_heads=1)  # hardly a cache
    assert decode(small, H100, 250, 1).bound == "memory"
    assert decode(small, H100, 310, 1).bound == "compute"


def test_decode_counts_weights_cache_and_products():
    n = 7_504_658_432  # every parameter but the looked-up embedding and the norms
    floor = decode(EIGHT, H100, 8, 1000)
    assert floor.bytes_read == 2 * n + 8 * 1000 * 131_072
    assert floor.flops == 8 * (2 * n + 4 * 32 * 32 * 128 * 1000)
    assert floor.memory_seconds == floor.bytes_read / 3.35e12
    assert floor.compute_seconds == floor.flops / 989.4e12
    assert floor.seconds == floor.memory_seconds
    assert floor.tokens_per_second == 8 / floor.seconds


def test_a_batch_reads_the_experts_that_its_tokens_choose():
    cfg = models.preset("mixtral-8x7b")
    spec = models.spec(cfg)
    embedding_and_norms = 32_000 * 4096 + (2 * 32 + 1) * 4096
    assert weights_read(spec, 1) == matmul_parameters(spec) == 12_879_925_248 - embedding_and_norms
    experts = 32 * 8 * 3 * 4096 * 14_336
    assert weights_read(spec, 2) - weights_read(spec, 1) == experts * (1 / 4 - 1 / 4**2)  # 1 - (3/4)^2 = 7/16
    assert weights_read(spec, 10**4) == pytest.approx(count(spec) - embedding_and_norms)
    assert decode(cfg, H100, 4, 10).bytes_read == 2 * weights_read(spec, 4) + 4 * 10 * 131_072
    assert prefill(cfg, H100, 1, 4096).flops == 4096 * flops_per_token(cfg, 4096).forward_causal
    assert weights_read(models.spec(EIGHT), 7) == 7_504_658_432


def test_prefill_is_the_causal_forward_pass():
    floor = prefill(EIGHT, H100, 2, 4096)
    assert floor.flops == 2 * 4096 * flops_per_token(EIGHT, 4096).forward_causal
    assert floor.bound == "compute"
    assert prefill(EIGHT, H100, 1, 1).bound == "memory"


def test_a_window_bounds_the_cache_that_is_read():
    windowed = dataclasses.replace(EIGHT, window=512)
    assert decode(windowed, H100, 4, 4096).bytes_read == decode(EIGHT, H100, 4, 512).bytes_read


def test_more_sequences_never_cost_less_and_never_slow_the_whole():
    floors = [decode(EIGHT, H100, 2**i, 2048) for i in range(9)]
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(floors))
    assert all(a.tokens_per_second <= b.tokens_per_second for a, b in itertools.pairwise(floors))


def test_serving_capacity_is_what_the_weights_leave():
    fit = serving_capacity(EIGHT, H100, 2048, reserve=0.1)
    left = 0.9 * 80e9 - 2 * count(models.spec(EIGHT))
    assert fit.cache_bytes == pytest.approx(left)
    assert fit.tokens == int(left // 131_072)
    assert fit.reserved == int(left // (131_072 * 8192))
    assert fit.paged == fit.blocks // 128
    nothing = serving_capacity(models.preset("llama3-70b"), H100, 2048)
    assert (nothing.cache_bytes, nothing.blocks, nothing.paged, nothing.reserved) == (0, 0, 0, 0)


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="batch is 0"):
        decode(EIGHT, H100, 0, 1)
    with pytest.raises(UserError, match="context is -1"):
        prefill(EIGHT, H100, 1, -1)
    with pytest.raises(UserError, match="int3"):
        decode(EIGHT, H100, 1, 1, "int3")
    with pytest.raises(UserError, match="memory of x"):
        serving_capacity(EIGHT, hardware.Hardware("x", 1e12, 1e12, 0), 1)
    with pytest.raises(UserError, match="float32 peak of h100"):
        decode(EIGHT, H100, 1, 1, "float32")


def test_hardware_by_name():
    assert hardware.named("h200").bandwidth == 4.8e12
    with pytest.raises(UserError, match="Did you mean 'tpu-v5e'"):
        hardware.named("tpuv5e")
    assert hardware.datasheet("NVIDIA H100 80GB HBM3") is H100
    assert hardware.datasheet("TPU v6 lite") is hardware.NAMED["tpu-v6e"]
    assert hardware.datasheet("some processor") is None


def test_no_device_kind_is_claimed_twice():
    kinds = [kind for each in hardware.NAMED.values() for kind in each.kinds]
    assert len(kinds) == len(set(kinds))


def test_measured_hardware_is_this_machine(monkeypatch):
    peaks = {"flops_float32": 3e11, "flops_bfloat16": 2e11, "bytes": 1e10}
    monkeypatch.setattr("min_llm.kernels.peaks.measure", lambda: peaks)
    here = hardware.named("measured")
    assert here.name == platform.device_kind()
    assert (here.peak("float32"), here.peak("bfloat16"), here.peak("int8")) == (3e11, 2e11, 3e11)
    assert here.bandwidth == 1e10
    assert here.memory > 2**28
