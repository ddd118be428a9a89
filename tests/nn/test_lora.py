"""Low-rank adapters as leaves, against the sum in NumPy."""

import dataclasses

import jax
import numpy as np
import pytest

from min_llm import models
from min_llm import spec as spec_lib
from min_llm.config import UserError
from min_llm.infer.prepare import prepared
from min_llm.nn.lora import Lora, adapt, extract, lora, merge
from min_llm.nn.runtime import Runtime
from min_llm.quant.quantize import quantize
from tests import loras, toys

CASES = {"llama": toys.LLAMA, "gpt2": toys.GPT2, "mixtral": toys.MIXTRAL}
BATCH = toys.rows()
RUNTIME = Runtime(dtype="float32")


def logits(params, cfg, runtime=RUNTIME):
    return np.asarray(jax.jit(lambda p: models.logits(p, cfg, BATCH, runtime)[0])(params))


@pytest.mark.parametrize("case", CASES)
def test_an_adapted_model_is_the_model_with_the_sum(case):
    cfg = CASES[case]
    params, adapter = toys.random_weights(cfg), loras.adapter(cfg)
    want = np.asarray(toys.oracle(cfg).logits(loras.merged(params, adapter), cfg, BATCH))
    assert np.abs(want - logits(params, cfg)).max() > 0.1
    adapted = adapt(params, adapter)
    for made in (adapted, merge(adapted)):
        for scan in (False, True):
            found = logits(made, cfg, Runtime(dtype="float32", scan=scan))
            np.testing.assert_allclose(found, want, atol=2e-5 * np.abs(want).max())
    kinds = [type(x) for x in jax.tree.leaves(merge(adapted), is_leaf=lambda x: isinstance(x, Lora))]
    assert Lora not in kinds
    for name, pair in extract(adapted).pairs.items():
        assert all((a == b).all() for a, b in zip(pair, adapter.pairs[name], strict=True))


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_merging_into_a_quantized_base_keeps_the_answer(method):
    """The sum of what the integers stand for, whose rounding is not done again (peft#2105)."""
    cfg = toys.LLAMA
    base = quantize(toys.random_weights(cfg), models.spec(cfg), method, group=8)
    adapted = adapt(base, loras.adapter(cfg, size=0.05))
    want = logits(adapted, cfg)
    assert np.abs(want - logits(base, cfg)).max() > 1e-2
    np.testing.assert_allclose(logits(merge(adapted), cfg), want, atol=1e-4)


def test_it_stands_over_packed_parameters():
    cfg = toys.LLAMA
    params, adapter = toys.random_weights(cfg), loras.adapter(cfg, targets=("wq", "wo", "w_up"))
    want = logits(adapt(params, adapter), cfg)
    packed, head, runtime = prepared(params, cfg, RUNTIME)
    made = dataclasses.replace(adapt(packed, adapter), head=head)
    np.testing.assert_allclose(logits(made, cfg, runtime), want, atol=1e-5 * np.abs(want).max())


def test_a_new_adapter_changes_nothing_and_can_be_trained():
    cfg = toys.LLAMA
    spec = lora(models.spec(cfg), ("wq", "w_down"), rank=4, alpha=8)
    (stack,) = spec.layers
    assert stack.wq.a.shape == (2, 15, 4) and stack.wq.b.shape == (2, 4, 24) and stack.wq.scale == 2
    assert stack.w_down.a.shape == (2, 17, 4) and isinstance(stack.wk, spec_lib.Param)
    added = spec_lib.count(spec) - spec_lib.count(models.spec(cfg))
    assert added == 2 * 4 * (15 + 24 + 17 + 15)
    params = models.init_spec(spec, seed=0)
    plain = dataclasses.replace(
        params,
        layers=tuple(dataclasses.replace(s, wq=s.wq.base, w_down=s.w_down.base) for s in params.layers),
    )
    assert (logits(params, cfg) == logits(plain, cfg)).all()
    a = np.asarray(params.layers[0].wq.a)
    assert 0.5 < a.std() * (3 * 15) ** 0.5 < 1.5
    grads = jax.grad(models.loss_sum)(params, cfg, BATCH, RUNTIME).layers[0].wq
    assert np.abs(grads.b).max() > 0 and np.abs(grads.a).max() == 0  # B is zero at first


def test_what_cannot_be_adapted():
    spec = models.spec(toys.MIXTRAL)
    for targets in (("wx",), ("w_gate",), ("embed",)):
        with pytest.raises(UserError, match="no matrix"):
            lora(spec, targets, rank=2, alpha=2)
    with pytest.raises(UserError, match="at least 1"):
        lora(spec, ("wq",), rank=0, alpha=2)
    with pytest.raises(UserError, match="have no adapter"):
        extract(toys.random_weights(toys.LLAMA))
