"""Muon, Lion and Adafactor on stacked layers, against the NumPy oracles for one matrix."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from min_llm import models
from min_llm.config import build
from min_llm.nn.initial import init
from min_llm.plan.memory import optimizer_bytes
from min_llm.reference import optimizers as oracle
from min_llm.spec import Param, count, leaves, shapes
from min_llm.train.checkpoints import Checkpoints, describe
from min_llm.train.config import OptimConfig, RunConfig
from min_llm.train.monitor import Watch
from min_llm.train.optim import direction, optimizer
from min_llm.train.step import State, init_state

# Two layers with their heads apart, three experts, a table, a norm: all that a model's tree has.
SPEC = {
    "wq": Param((2, 6, 2, 4), ("layers", "embed", "heads", "head_dim"), 0.5, "matrix"),
    "wo": Param((2, 2, 4, 6), ("layers", "heads", "head_dim", "embed"), 0.5, "matrix"),
    "w_up": Param((2, 3, 6, 5), ("layers", "experts", "embed", "hidden"), 0.5, "matrix"),
    "w_down": Param((2, 3, 5, 6), ("layers", "experts", "hidden", "embed"), 0.5, "matrix"),
    "embed": Param((7, 6), ("vocab", "embed"), 0.5, "embedding"),
    "norm": Param((2, 6), ("layers", None), None, "norm", fill=1.0),
}
# How many matrices of which sizes an array holds.
MATRICES = {"wq": (2, 6, 8), "wo": (2, 8, 6), "w_up": (6, 6, 5), "w_down": (6, 5, 6), "embed": (1, 7, 6)}


def three_steps(cfg):
    """Gradients and directions of three steps: [(gradients, directions)], and the last state."""
    ours, random = direction(cfg, SPEC), np.random.default_rng(0)
    params, steps = init(SPEC, jax.random.key(0)), []
    state, update = ours.init(params), jax.jit(ours.update)
    for _ in range(3):
        grads = {k: random.normal(size=p.shape).astype(np.float32) for k, p in SPEC.items()}
        made, state = update(jax.tree.map(jnp.asarray, grads), state, params)
        steps.append((grads, made))
    return steps, state


def agree(steps, function, names, **tolerance):
    """Every matrix of every array by itself, through the oracle."""
    for name in names:
        n, *sides = MATRICES[name]
        states = [None] * n
        for grads, made in steps:
            g, u = (np.asarray(x[name], np.float64).reshape(n, *sides) for x in (grads, made))
            for i in range(n):
                expected, states[i] = function(g[i], states[i])
                np.testing.assert_allclose(u[i], expected, err_msg=f"{name} {i}", **tolerance)


def test_muon_equals_the_oracle_layer_by_layer():
    cfg = OptimConfig(name="muon")
    steps, _ = three_steps(cfg)
    agree(steps, oracle.muon, ("wq", "wo", "w_up", "w_down"), rtol=2e-3, atol=1e-4)
    adam = optax.scale_by_adam(b1=cfg.beta1, b2=cfg.beta2, eps=cfg.eps)
    for name in ("embed", "norm"):
        state = adam.init(jnp.zeros(SPEC[name].shape))
        for grads, made in steps:
            expected, state = adam.update(jnp.asarray(grads[name]), state)
            np.testing.assert_allclose(made[name], expected, rtol=1e-5)


def test_muon_makes_singular_values_equal():
    made = three_steps(OptimConfig(name="muon"))[0][-1][1]["wq"]
    for layer in np.asarray(made).reshape(2, 6, 8):
        values = np.linalg.svd(layer, compute_uv=False) / (0.2 * np.sqrt(8))
        assert (values > 0.6).all() and (values < 1.3).all()
        assert np.sqrt((layer**2).mean()) == pytest.approx(0.2, rel=0.25)


def test_lion_equals_the_oracle():
    steps, _ = three_steps(OptimConfig(name="lion"))
    agree(steps, oracle.lion, MATRICES, rtol=0, atol=0)


def test_adafactor_equals_the_oracle_layer_by_layer():
    steps, _ = three_steps(OptimConfig(name="adafactor"))
    agree(steps, oracle.adafactor, MATRICES, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("family", list(models.FAMILIES))
@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor"])
def test_state_takes_the_bytes_that_the_planner_counts(family, name):
    model = {"family": family, "vocab_size": 64, "n_layers": 2, "dim": 32, "n_heads": 4}
    spec = models.spec(build(RunConfig, {"model": model}).model)
    ours = optimizer(OptimConfig(name=name), spec, 10)
    params = jax.eval_shape(lambda: init(spec, jax.random.key(0)))
    state = jax.tree.leaves(jax.eval_shape(ours.init, params))
    held = sum(x.size * x.dtype.itemsize for x in state if x.size > 3)  # counters and coefficients aside
    assert held == pytest.approx(sum(optimizer_bytes(p, name) for _, p in leaves(spec)), rel=1e-6)
    adamw = 8 * count(spec)
    least = {"adamw": 1, "muon": 0.9, "lion": 0.5, "adafactor": 0.15}[name]
    assert held <= least * adamw


@pytest.mark.parametrize("name", ["muon", "lion", "adafactor"])
def test_the_state_comes_back_from_a_checkpoint(tmp_path, name):
    ours, params = optimizer(OptimConfig(name=name), SPEC, 10), init(SPEC, jax.random.key(0))
    _, state = jax.jit(ours.update)(params, ours.init(params), params)
    before = State(jnp.int32(1), params, state, Watch.start())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, before, {"parameters": describe(SPEC)})
    checkpoints.wait()
    target = jax.eval_shape(lambda p: init_state(p, ours, watched=True), shapes(SPEC))
    after, _ = checkpoints.restore(1, target, SPEC)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))


@pytest.mark.newest
@pytest.mark.devices
def test_on_a_mesh_they_do_the_same(run_python):
    """Parameters cut over fsdp and tp; updates lie like them."""
    found = json.loads(run_python("tests.train.optimizers_case", devices=4).stdout)
    assert set(found) == {"muon", "lion", "adafactor"}
    for name, (difference, moved) in found.items():
        assert difference < 1e-5 and moved == 0, name


@pytest.mark.parametrize("name, lr", [("muon", 0.3), ("lion", 0.05), ("adafactor", 0.15)])
def test_each_of_them_learns_a_linear_map(name, lr):
    """128 steps of least squares: the loss falls a hundredfold."""
    spec = {"w": Param((8, 4), ("embed", "hidden"), 0.1, "matrix")}
    random = np.random.default_rng(0)
    x, true = random.normal(size=(64, 8)).astype(np.float32), random.normal(size=(8, 4)).astype(np.float32)
    cfg = OptimConfig(name=name, lr=lr, warmup=4, min_lr=0.0, weight_decay=0.0, clip=0.0)
    ours, params = optimizer(cfg, spec, 128), init(spec, jax.random.key(0))

    def loss(p):
        return ((x @ p["w"] - x @ true) ** 2).mean()

    @jax.jit
    def step(params, state):
        updates, state = ours.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, before = ours.init(params), float(loss(params))
    for _ in range(128):
        params, state = step(params, state)
    assert float(loss(params)) < before / 100
