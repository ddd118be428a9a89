"""Bytes: the key-value cache, and the memory of a training step against XLA's own analysis."""

import jax
import jax.numpy as jnp
import optax
import pytest

from min_llm import models, platform
from min_llm.config import UserError
from min_llm.models import gpt2, llama, mixtral
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.plan import memory
from min_llm.spec import count, shapes
from min_llm.train.step import State, jit_step, language_model_loss, make_step

WIDE = dict(n_layers=3, dim=256, n_heads=8, vocab_size=1024)
LONG = dict(n_layers=3, dim=128, n_heads=4, vocab_size=512, max_seq_len=512)
# Where the processor or XLA has no bf16 products (jaxlib 0.10 has none on CPU), float32 copies of everything appear,
# and the library does not choose bf16 there.
NATIVE = platform.jaxlib_version() >= (0, 12) and "bf16" in platform.cpu_features()
SHORT = "bfloat16" if NATIVE else "float32"
VOCABULARY = dict(n_layers=2, dim=256, n_heads=4, vocab_size=16_000)
CASES = [
    # model, rows, tokens a row, runtime, micro-batches
    (llama.Config(**LONG), 4, 512, Runtime(SHORT), 1),  # unrolled
    (llama.Config(**WIDE), 4, 256, Runtime(SHORT, remat="selective", scan=True), 1),
    (llama.Config(**LONG), 4, 512, Runtime(remat="full", scan=True), 1),
    (llama.Config(**VOCABULARY), 4, 128, Runtime(SHORT, scan=True), 1),
    (llama.Config(**WIDE, qk_norm=True), 8, 256, Runtime(attention="blockwise", scan=True), 4),
    (gpt2.Config(**WIDE), 4, 256, Runtime(scan=True), 1),
    (mixtral.Config(**WIDE, hidden_dim=352, n_experts=4), 8, 256, Runtime(remat="selective", scan=True), 1),
]


def case_name(case):
    cfg, rows, seq_len, runtime, micro = case
    how = "scan" if runtime.scan else "unrolled"
    shape = f"{cfg.family}-{rows}x{seq_len}-v{cfg.vocab_size}"
    return f"{shape}-{runtime.dtype}-{runtime.remat}-{runtime.attention}-{how}-{micro}"


def compiled_bytes(cfg, rows, seq_len, runtime, micro_batches):
    """Peak bytes of a step as XLA plans them; compiled, never run. Without AdamW, whose moments are plain arrays and
    whose arithmetic takes longer to compile than the model."""
    params = shapes(models.spec(cfg))
    state = State(jax.ShapeDtypeStruct((), jnp.int32), params, optax.EmptyState())
    tokens = jax.ShapeDtypeStruct((rows, seq_len), jnp.int32)
    step = jit_step(make_step(language_model_loss(cfg, runtime), optax.identity(), micro_batches))
    found = step.lower(state, Batch(tokens, tokens)).compile().memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held + found.temp_size_in_bytes


# Of 60 steps compiled for CPU with jaxlib 0.12 (two families, three shapes, ten ways to run), 54 were within 10 % of
# the plan and the others within 18 %: GPT-2 with remat or unrolled. jaxlib 0.10 plans these six within
# 14 %. Since attention has one backward pass over its query blocks, the unrolled case is 13 % above the plan.
@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_training_memory_is_what_xla_plans(case):
    planned = memory.training(*case)
    assert planned.total - planned.optimizer == pytest.approx(
        compiled_bytes(*case), rel=0.10 if NATIVE and case[3].scan else 0.15
    )


@pytest.mark.parametrize(
    ("name", "expected"), [("llama3-8b", 131_072), ("llama3-70b", 327_680), ("llama3-405b", 516_096)]
)
def test_kv_bytes_per_token(name, expected):
    cfg = models.preset(name)
    assert memory.kv_bytes_per_token(cfg) == expected
    assert memory.kv_bytes_per_token(cfg, "float32") == 2 * expected
    assert memory.kv_bytes_per_token(cfg, "int4") == expected / 4


def test_the_dense_cache_takes_the_planned_bytes():
    from min_llm.infer.cache import empty

    cfg = llama.Config(vocab_size=64, n_layers=3, dim=32, n_heads=4, n_kv_heads=2, max_seq_len=64)
    cache = jax.eval_shape(lambda: empty(cfg, 2, 64, jnp.bfloat16))
    held = sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(cache) if jnp.issubdtype(x.dtype, jnp.floating)
    )
    assert held == 2 * 64 * memory.kv_bytes_per_token(cfg)


def test_state_is_four_floats_a_parameter():
    need = memory.training(llama.Config(**WIDE), 1, 1, Runtime())
    n = count(models.spec(llama.Config(**WIDE)))
    assert (need.parameters, need.gradients, need.optimizer) == (4 * n, 4 * n, 8 * n)


def test_rematerialisation_and_micro_batches_shrink_activations():
    cfg = models.preset("llama3.2-1b")

    def activations(remat, micro_batches=1):
        return memory.training(cfg, 8, 4096, Runtime("bfloat16", remat=remat), micro_batches).activations

    assert activations("none") > activations("selective") > activations("full") == activations("offload")
    assert activations("none", 4) == activations("none") / 4


def test_logits_come_in_chunks():
    assert memory.chunk_logits(1000, 100, 2**24) == 100 * 1000
    # 130 rows fit 2^24, so 64 chunks of 128 rows each
    assert memory.chunk_logits(128_256, 8192, 2**24) == 128 * 128_256
    assert memory.chunk_logits(128_256, 8192, 1) == 128_256  # one row at least


def test_unknown_dtype_is_refused():
    with pytest.raises(UserError, match="bfloat16"):
        memory.bytes_of(1, "bfloat61")
