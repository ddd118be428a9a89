"""AdamW by role, against the NumPy oracle."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from min_llm import models
from min_llm.config import UserError, build
from min_llm.nn.initial import init
from min_llm.reference.adamw import adamw
from min_llm.spec import Param, leaves, map_spec
from min_llm.train.config import OptimConfig, RunConfig
from min_llm.train.optim import optimizer
from min_llm.train.schedules import schedule

SPEC = {
    "wq": Param((3, 4), ("embed", "heads"), 0.5, "matrix"),
    "embed": Param((5, 3), ("vocab", "embed"), 0.5, "embedding"),
    "head": Param((3, 5), ("embed", "vocab"), 0.5, "head"),
    "norm": Param((3,), (None,), None, "norm", fill=1.0),
    "bias": Param((4,), (None,), None, "bias", fill=0.3),
}
ROLES = {name: param.role for name, param in SPEC.items()}


@pytest.mark.parametrize("clip", [0.0, 1.0, 50.0])
def test_ten_steps_equal_the_oracle(clip):
    cfg = OptimConfig(lr=0.05, warmup=3, min_lr=0.1, weight_decay=0.2, clip=clip)
    rate = schedule(cfg, 10)
    ours = optimizer(cfg, SPEC, 10)
    params = init(SPEC, jax.random.key(0))
    state, update = ours.init(params), jax.jit(ours.update)
    expected = {k: np.asarray(v, np.float64) for k, v in params.items()}
    decay = {k: float(role in cfg.decay_roles) for k, role in ROLES.items()}
    moments, random = None, np.random.default_rng(0)
    for step in range(10):
        size = 10.0 ** (step % 3)  # norms below and above every clip
        grads = {k: (size * random.normal(size=p.shape)).astype(np.float32) for k, p in SPEC.items()}
        change, state = update(jax.tree.map(jnp.asarray, grads), state, params)
        params = optax.apply_updates(params, change)
        expected, moments = adamw(
            expected, grads, moments, lr=float(rate(step)), betas=(cfg.beta1, cfg.beta2), eps=cfg.eps,
            weight_decay=cfg.weight_decay, decay=decay, clip=clip or None,
        )  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("roles", [("matrix", "embedding", "head"), ("matrix",), ("norm", "bias"), ()])
def test_weight_decay_touches_the_roles_that_are_named(roles):
    """With a gradient of zero Adam does nothing and the decay alone is left."""
    cfg = OptimConfig(lr=0.1, warmup=0, schedule="constant", weight_decay=0.5, decay_roles=roles)
    ours = optimizer(cfg, SPEC, 10)
    params = init(SPEC, jax.random.key(1))
    change = jax.jit(lambda p: ours.update(jax.tree.map(jnp.zeros_like, p), ours.init(p), p)[0])(params)
    for name, role in ROLES.items():
        factor = -0.1 * 0.5 if role in roles else 0.0
        np.testing.assert_allclose(change[name], factor * params[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("family", list(models.FAMILIES))
def test_norms_and_biases_of_the_models_are_not_decayed(family):
    heads = {} if family == "gpt2" else {"n_kv_heads": 1}
    model = {"family": family, "vocab_size": 11, "n_layers": 2, "dim": 16, "n_heads": 2, **heads}
    spec = models.spec(build(RunConfig, {"model": model}).model)
    ours = optimizer(OptimConfig(lr=1.0, warmup=0, schedule="constant", weight_decay=0.5), spec, 10)
    params = map_spec(lambda p: jnp.ones(p.shape), spec)
    change = jax.jit(lambda p: ours.update(jax.tree.map(jnp.zeros_like, p), ours.init(p), p)[0])(params)
    spared = {name for (name, _), x in zip(leaves(spec), jax.tree.leaves(change), strict=True) if not x.any()}
    assert spared == {name for name, _ in leaves(spec) if re.search(r"norm|\.b(q|k|v|o|_up|_down)$", name)}


def test_moments_are_float32_and_two_a_parameter():
    state = optimizer(OptimConfig(), SPEC, 10).init(init(SPEC, jax.random.key(0)))
    sizes = [x.size for x in jax.tree.leaves(state) if x.dtype == jnp.float32]
    assert sum(sizes) == 2 * sum(p.size for p in SPEC.values())


def test_an_unknown_role_is_a_sentence():
    with pytest.raises(UserError, match=r"optim.decay_roles.*'matrices'"):
        build(RunConfig, {"optim": {"decay_roles": ["matrices"]}})
    with pytest.raises(UserError, match=r"decay_roles.*'matrices'.*has the roles"):
        optimizer(OptimConfig(decay_roles=("matrices",)), SPEC, 10)
