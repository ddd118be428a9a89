"""Packed parameters in a whole model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm import models
from min_llm.kernels import cpu
from min_llm.nn.batch import Batch
from min_llm.nn.leaves import Leaf
from min_llm.nn.packed import pack
from min_llm.nn.runtime import Runtime

LAYERS = 3
CFG = models.ModelConfig.from_mapping(
    {"family": "llama", "n_layers": LAYERS, "dim": 96, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 70},
    "model",
)


def packed(params, dtype):
    (stack,) = params.layers
    contracted = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}
    leaves = {name: pack(getattr(stack, name), dtype, c) for name, c in contracted.items()}
    head = pack(params.head[None], dtype)
    return dataclasses.replace(params, layers=(dataclasses.replace(stack, **leaves),), head=head)


def logits(params, dtype="float32", scan=False):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 70, (2, 9)), jnp.int32)
    return jax.jit(lambda p: models.logits(p, CFG, Batch(tokens), Runtime(dtype, scan=scan))[0])(params)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.03)])
def test_a_model_of_packed_parameters_gives_the_same_logits(dtype, tolerance):
    params = models.init(CFG, 0)
    want = logits(params)
    whole = packed(params, dtype)
    assert isinstance(whole.head, Leaf) and whole.head.shape == (96, 70)
    assert whole.layers[0].wo.shape == (6, 16, 96)
    for scan in (False, True):
        assert np.abs(logits(whole, dtype, scan) - want).max() < tolerance * np.abs(want).max()


@pytest.mark.skipif(not cpu.available(), reason=f"no kernels: {cpu.unavailable()}")
def test_layers_are_read_where_they_lie():
    """The temporary memory of a program that scans three layers holds no copy of a matrix."""
    x = jnp.ones((1, 256))
    stack = pack(jnp.ones((3, 256, 256)), "float32")

    def run(stack, x):
        return jax.lax.scan(lambda x, i: (stack.of_layer(i).product(x), None), x, jnp.arange(3))[0]

    compiled = jax.jit(run).lower(stack, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 256
