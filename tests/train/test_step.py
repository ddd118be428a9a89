"""One training step: micro-batches, weights, accumulation in float32, dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from min_llm import models
from min_llm.models.llama import Config
from min_llm.nn.batch import Batch
from min_llm.nn.initial import init
from min_llm.nn.runtime import Runtime
from min_llm.train.step import State, language_model_loss, make_step
from tests.train.runs import TOY, toy_loss

CFG = Config(vocab_size=17, n_layers=1, dim=16, n_heads=2, n_kv_heads=1, max_seq_len=16)
ROWS, SEQ = 8, 16


# An optimizer that changes nothing and whose state is the gradient it was given.
KEEP = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def batch(kind="plain", rows=ROWS, seed=0):
    random = np.random.default_rng(seed)
    text = random.integers(0, CFG.vocab_size, (rows, SEQ + 1)).astype(np.int32)
    made = Batch(text[:, :-1], text[:, 1:])
    if kind == "plain":
        return made
    weights = random.uniform(0, 1, (rows, SEQ)).astype(np.float32)
    weights[random.uniform(size=weights.shape) < 0.3] = 0
    weights[0] = 0  # a row that is not scored at all
    if kind == "weights":
        return dataclasses.replace(made, weights=weights)
    segment_ids = 1 + np.cumsum(random.uniform(size=(rows, SEQ)) < 0.2, axis=1).astype(np.int32)
    start = np.diff(segment_ids, axis=1, prepend=0) > 0
    index = np.arange(SEQ, dtype=np.int32)
    positions = index - np.maximum.accumulate(np.where(start, index, 0), axis=1)
    segment_ids[:, -2:], weights[:, -2:] = 0, 0  # padding
    return Batch(made.tokens, made.targets, positions.astype(np.int32), None, segment_ids, weights)


@functools.cache
def parameters(model="toy"):  # call it outside jit: a cached tracer would leak into the next test
    return init(TOY if model == "toy" else models.spec(CFG), jax.random.key(0))


@functools.cache
def compiled(micro_batches=1, dtype="float32", rate=0.0, seed=None, model="toy"):
    loss = toy_loss(dtype, rate) if model == "toy" else language_model_loss(CFG, Runtime(dtype=dtype))
    return jax.jit(make_step(loss, KEEP, micro_batches, seed))


def gradients(data, micro_batches=1, at=0, **kind):
    """(loss, gradients) of one step."""
    params = parameters(kind.get("model", "toy"))
    state, metrics = compiled(micro_batches, **kind)(State(jnp.int32(at), params, params), data)
    assert int(state.step) == at + 1
    return float(metrics["loss"]), jax.tree.map(np.asarray, state.opt)


def norm(tree):
    return float(np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(tree))))


def relative(found, expected):
    """Norm of the difference over the norm, over all leaves together."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    error = sum(np.sum((np.float64(a) - np.float64(b)) ** 2) for a, b in pairs)
    return float(np.sqrt(error / sum(np.sum(np.float64(b) ** 2) for _, b in pairs)))


@pytest.mark.parametrize("kind, model", [("plain", "toy"), ("weights", "toy"), ("packed", "llama")])
def test_micro_batches_equal_one_batch(kind, model):
    data = batch(kind)
    loss, whole = gradients(data, model=model)
    for parts in (2, 8) if model == "toy" else (4,):
        loss_of_parts, grads = gradients(data, parts, model=model)
        assert loss_of_parts == pytest.approx(loss, rel=1e-6)
        assert relative(grads, whole) < 2e-6


def test_the_loss_is_the_mean_over_the_weights():
    """Not the mean of the rows' means: a row with few scored tokens counts little."""
    data = batch("weights")
    params = {name: np.asarray(p, np.float64) for name, p in parameters().items()}
    logits = np.tanh(params["embed"][data.tokens]) @ params["head"]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(logp, data.targets[..., None], -1)[..., 0]
    for parts in (1, 2):
        loss, _ = gradients(data, parts)
        assert loss == pytest.approx((nll * data.weights).sum() / data.weights.sum(), rel=1e-5)


def test_grad_norm_is_that_before_clipping():
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), KEEP)
    step = jax.jit(make_step(toy_loss(), clipped))
    state, metrics = step(State(jnp.int32(0), parameters(), clipped.init(parameters())), batch())
    assert float(metrics["grad_norm"]) == pytest.approx(norm(gradients(batch())[1]), rel=1e-5)
    assert norm(state.opt[1]) == pytest.approx(1e-3, rel=1e-4)


def test_a_thousand_micro_batches_need_a_float32_accumulator():
    """Llama 3, section 3.3.2: gradients are accumulated in float32. The gradients of 1,024 bf16 micro-batches, added by
    our step, agree with their sum in float64. Added in bf16 the sum stalls: once it is 256 times an addend, the
    addend is half of its last digit and is rounded away."""
    n = 1024
    data = batch(rows=n)
    _, ours = gradients(data, n, dtype="bfloat16")
    loss, params = toy_loss("bfloat16"), parameters()
    weights = jnp.full((1, SEQ), 1 / (n * SEQ), jnp.float32)

    @jax.jit
    def each(tokens, targets):  # the gradient of every row by itself: [n, ...] leaves
        def one(_, row):
            part = Batch(row[0][None], row[1][None], weights=weights)
            return None, jax.grad(loss)(params, part, None)

        return jax.lax.scan(one, None, (tokens, targets))[1]

    parts = jax.tree.map(np.asarray, each(data.tokens, data.targets))
    exact = jax.tree.map(lambda g: g.astype(np.float64).sum(0), parts)
    assert relative(ours, exact) < 1e-3

    def add_in_bf16(g):
        total, path = np.zeros(g.shape[1:], jnp.bfloat16), []
        for part in g.astype(jnp.bfloat16):
            total = total + part
            path.append(total)
        return total.astype(np.float64), path

    assert relative(jax.tree.map(lambda g: add_in_bf16(g)[0], parts), exact) > 10 * 1e-3

    # The same row 1,024 times, so that every gradient points the same way: bf16 stops at a quarter of the sum.
    same = jax.tree.map(lambda g: np.broadcast_to(g[:1], g.shape), parts)
    exact = jax.tree.map(lambda g: 1024 * np.float64(g[0]), same)
    total, path = add_in_bf16(same["head"])
    assert relative([total], [exact["head"]]) > 0.5
    assert (path[1023] == path[600]).all() and (
        path[100] != path[600]
    ).any()  # nothing was added in the last 400
    repeated = Batch(*(np.repeat(x[:1], n, axis=0) for x in (data.tokens, data.targets)))
    _, ours = gradients(repeated, n, dtype="bfloat16")
    assert relative(ours, exact) < 1e-3


def test_gradients_of_a_bf16_model_are_float32():
    _, grads = gradients(batch(), 2, dtype="bfloat16", model="llama")
    assert {g.dtype for g in jax.tree.leaves(grads)} == {np.dtype(np.float32)}


def test_dropout_is_a_function_of_seed_and_step():
    def of(seed, at):
        return gradients(batch(), 1, at, rate=0.5, seed=seed)

    loss, grads = of(3, 7)
    again, same = of(3, 7)
    assert loss == again and relative(same, grads) == 0
    assert len({loss, of(3, 8)[0], of(4, 7)[0]}) == 3
    without_a_key = gradients(batch(), rate=0.5)
    assert without_a_key[0] == pytest.approx(gradients(batch())[0], rel=1e-6)


def test_micro_batches_draw_their_own_dropout():
    """Equal parts are not dropped equally: the gradient of two equal halves is not that of one."""
    half = batch(rows=4)
    twice = Batch(*(np.concatenate([x, x]) for x in (half.tokens, half.targets)))
    one, two = (gradients(data, parts, rate=0.5, seed=3)[1] for data, parts in ((half, 1), (twice, 2)))
    assert relative(two, one) > 0.05


def test_probing_changes_nothing_that_is_trained():
    states = []
    for probing in (False, True):
        step = jax.jit(make_step(toy_loss(), optax.adam(1e-2), 2, probing=probing))
        state, metrics = step(State(jnp.int32(0), parameters(), optax.adam(1e-2).init(parameters())), batch())
        states.append((float(metrics["loss"]), state.params))
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-6)
    assert relative(states[1][1], states[0][1]) < 1e-6
    assert metrics["probe"]["param/head/rms"] == pytest.approx(
        np.sqrt((state.params["head"] ** 2).mean()), rel=1e-5
    )
    assert "grad/embed/kurtosis" in metrics["probe"]
