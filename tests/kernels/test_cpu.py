"""Our kernels for CPUs with AMX against NumPy and the plain implementations, and what happens where they cannot run."""

import functools
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm import models, platform
from min_llm.kernels import cpu, elementwise, softmax_loss
from min_llm.kernels.attention import amx, reference
from min_llm.kernels.mask import Mask
from min_llm.kernels.product import multiply, native, product
from min_llm.nn.activations import gelu, swiglu
from min_llm.nn.batch import Batch
from min_llm.nn.norm import layer_norm, rms_norm
from min_llm.nn.rope import angles, rotate
from min_llm.nn.runtime import Runtime

here = pytest.mark.skipif(not cpu.available(), reason=f"no kernels: {cpu.unavailable()}")
RANDOM = np.random.default_rng(0)


def normal(*shape, dtype=jnp.bfloat16):
    return jnp.asarray(RANDOM.normal(size=shape), dtype)


def exact(x):
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


# rows, depth, columns: whole blocks; ragged in every direction; several passes; more rows than a task; one block
SHAPES = [(128, 256, 128), (77, 257, 99), (600, 130, 33), (64, 1376, 65), (2100, 96, 40), (32, 1024, 32)]


@here
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_in_every_layout_and_type(shape, monkeypatch):
    monkeypatch.setattr("min_llm.kernels.product.SMALLEST", 0)
    n, k, m = shape
    for tx, tw, wide, out in itertools.product(*[(False, True)] * 3, (jnp.bfloat16, jnp.float32)):
        x = normal(*((k, n) if tx else (n, k)))
        w = normal(*((m, k) if tw else (k, m)), dtype=jnp.float32 if wide else jnp.bfloat16)
        assert native(x.dtype, n, k, m)
        got = jax.jit(lambda x, w, tx=tx, tw=tw, out=out: multiply(x, w, tx, tw, out))(x, w)
        want = (exact(x).T if tx else exact(x)) @ (exact(w).T if tw else exact(w))
        assert got.dtype == out and got.shape == want.shape
        tolerance = 1e-6 if out == jnp.float32 else 2**-8
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=tolerance, atol=tolerance * k**0.5)


@here
def test_gradients_of_a_product_are_those_of_matmul_and_float32_for_a_master_copy():
    x, w, dy = normal(256, 128), normal(128, 96, dtype=jnp.float32), normal(256, 96)
    _, backward = jax.vjp(product, x, w)
    dx, dw = backward(dy)
    assert (dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(dw, exact(x).T @ exact(dy), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.asarray(dx, np.float64), exact(dy) @ exact(w).T, rtol=2**-7, atol=0.05)


@here
def test_products_under_vmap_scan_and_remat():
    xs, w = normal(3, 128, 96), normal(96, 128)
    one = jnp.stack([product(x, w) for x in xs])
    assert (jax.vmap(lambda x: product(x, w))(xs) == one).all()
    assert (jax.lax.scan(lambda c, x: (c, product(x, w)), 0, xs)[1] == one).all()
    loss = lambda w: product(xs[0], w).astype(jnp.float32).sum()
    assert (jax.grad(jax.checkpoint(loss))(w) == jax.grad(loss)(w)).all()


def test_small_products_and_float32_stay_with_xla():
    assert not native(jnp.dtype("float32"), 512, 512, 512)
    assert not native(jnp.dtype("bfloat16"), 1, 4096, 4096)
    assert not native(jnp.dtype("bfloat16"), 20, 20, 20)


def packed(rows, length):
    return jnp.asarray(np.cumsum(RANDOM.random((rows, length)) < 0.05, axis=1) + 1, jnp.int32)


# name -> (S, T, (H, G), K, mask)
MASKS = {
    "causal": (256, 256, (4, 4), 64, {}),
    "causal, grouped, ragged": (301, 301, (6, 2), 32, {}),
    "causal, longer than a piece": (1100, 1100, (2, 1), 64, {}),
    "full": (70, 70, (2, 1), 128, {"causal": False}),
    "cross": (40, 170, (4, 2), 32, {"causal": False}),
    "window": (300, 300, (2, 1), 64, {"window": 40}),
    "window wider than a piece": (1100, 1100, (1, 1), 32, {"window": 600}),
    "packed": (290, 290, (4, 2), 64, {"segments": True}),
    "packed, window": (290, 290, (2, 2), 32, {"segments": True, "window": 50}),
    "short": (7, 7, (2, 1), 32, {}),
}


@here
@pytest.mark.parametrize("name", MASKS)
def test_attention_and_its_gradients(name):
    """bfloat16 inside: within 1 % of the float32 reference in norm, which `xla` in bfloat16 is not always."""
    s, t, (h, g), k, rules = MASKS[name]
    rules = dict(rules)
    segments = packed(2, s) if rules.pop("segments", False) else None
    mask = Mask(q_segments=segments, kv_segments=segments, **rules)
    arrays = [normal(2, *shape) * 2 for shape in ((s, h, k), (t, g, k), (t, g, k))]
    d_out = normal(2, s, h, k)
    assert amx.supported(arrays[0], mask)

    def run(attention, dtype):
        out, backward = jax.vjp(lambda *a: attention(*a, mask), *(x.astype(dtype) for x in arrays))
        return [np.asarray(x, np.float64) for x in (out, *backward(d_out.astype(dtype)))]

    for got, want in zip(
        run(amx.attention, jnp.bfloat16), run(reference.attention, jnp.float32), strict=True
    ):
        assert np.linalg.norm(got - want) < 0.01 * np.linalg.norm(want)


@here
def test_what_the_kernel_of_attention_does_not_do_goes_to_xla():
    q = jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    assert amx.supported(q, Mask())
    assert not amx.supported(q.astype(jnp.float32), Mask())
    assert not amx.supported(q[..., :48], Mask())
    assert not amx.supported(q, Mask(prefix=jnp.ones(1, jnp.int32)))
    assert not amx.supported(q, Mask(q_index=jnp.arange(8)[None], kv_index=jnp.arange(8)[None]))
    assert not amx.supported(q, Mask(q_segments=jnp.ones((1, 8), jnp.int32)))


@here
@pytest.mark.parametrize("rows, vocabulary", [(5, 7), (64, 65), (33, 1000), (20, 32_001)])
def test_the_loss_and_its_gradient(rows, vocabulary):
    logits = normal(rows, vocabulary) * 4
    targets = jnp.asarray(RANDOM.integers(0, vocabulary, rows), jnp.int32)
    weights = jnp.asarray(RANDOM.random(rows), jnp.float32).at[0].set(0)
    nll, gradient = jax.jit(softmax_loss.loss_and_gradient)(logits, targets, weights)
    want_nll, want = softmax_loss.loss_and_gradient(logits.astype(jnp.float32), targets, weights)
    np.testing.assert_allclose(nll, want_nll, rtol=1e-5, atol=1e-5)
    assert gradient.dtype == jnp.bfloat16 and not gradient[0].any()
    np.testing.assert_allclose(np.asarray(gradient, np.float32), want, rtol=2**-7, atol=1e-6)


@here
@pytest.mark.parametrize("shape", [(5, 100, 37), (700, 64), (3, 333, 352)], ids=str)
def test_norms_and_activations_and_their_gradients(shape):
    x, up, dy = normal(*shape), normal(*shape) * 3, normal(*shape)
    scale, bias = normal(2, shape[-1], dtype=jnp.float32)
    assert elementwise.fits(x)
    wide = [v.astype(jnp.float32) for v in (x, up, dy)]
    far = x + 3  # a mean to take away
    wide_far = far.astype(jnp.float32)
    assert not elementwise.fits(wide[0])
    for f, narrow, plain in (
        (lambda x, scale: rms_norm(x, scale, 1e-5), (x, scale), (wide[0], scale)),
        (
            lambda x, scale, bias: layer_norm(x, scale, bias, 1e-5),
            (far, scale, bias),
            (wide_far, scale, bias),
        ),
        (lambda x, scale: layer_norm(x, scale, None, 1e-5), (x, scale), (wide[0], scale)),
        (swiglu, (x, up), (wide[0], wide[1])),
        (gelu, (x,), (wide[0],)),
    ):
        out, backward = jax.vjp(jax.jit(f), *narrow)
        want, want_backward = jax.vjp(f, *plain)
        pairs = zip((out, *backward(dy)), (want, *want_backward(wide[2])), strict=True)
        for got, expected in pairs:
            got = np.asarray(got, np.float32)
            assert np.abs(got - expected).max() < 2**-8 * np.abs(expected).max()


@here
def test_large_gates_neither_overflow_nor_vanish():
    gate = jnp.asarray(np.tile([-1e38, -1e4, -100, -88, -20, 0, 20, 100, 1e4, 1e38], 4096), jnp.bfloat16)
    got = swiglu(gate, jnp.ones_like(gate))
    np.testing.assert_allclose(
        np.asarray(got, np.float32), jax.nn.silu(gate.astype(jnp.float32)), rtol=2**-8, atol=1e-7
    )


@here
def test_gelu_of_large_numbers_is_theirs_or_zero_and_its_slope_one_or_zero():
    x = jnp.asarray(np.tile([-1e38, -1e4, -100, -20, 0, 20, 100, 1e4, 1e38], 4096), jnp.bfloat16)
    out, backward = jax.vjp(jax.jit(gelu), x)
    np.testing.assert_array_equal(out, jnp.maximum(x, 0))
    np.testing.assert_allclose(
        np.asarray(backward(jnp.ones_like(x))[0], np.float32),
        np.tile([0] * 4 + [0.5] + [1] * 4, 4096),
        atol=1e-30,
    )


@here
@pytest.mark.parametrize("rows", [1, 2])
def test_rotation_and_its_gradient(rows):
    """Angles of one row shared by the batch, or of every row; a head of 40 has a ragged half."""
    x, dy = normal(2, 130, 3, 40), normal(2, 130, 3, 40)
    positions = jnp.asarray(RANDOM.integers(0, 500, (rows, 130)), jnp.int32)
    cos_sin = angles(positions, 40, 1e4)
    out, backward = jax.vjp(jax.jit(lambda x: rotate(x, *cos_sin)), x)
    want, want_backward = jax.vjp(lambda x: rotate(x, *cos_sin), x.astype(jnp.float32))
    for got, expected in ((out, want), (backward(dy)[0], want_backward(dy.astype(jnp.float32))[0])):
        assert np.abs(np.asarray(got, np.float32) - expected).max() < 2**-8 * np.abs(expected).max()


@here
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_whole_model_and_its_gradients_agree_with_float32(family):
    cfg = models.ModelConfig.from_mapping(
        {"family": family, "n_layers": 2, "dim": 128, "n_heads": 4, "vocab_size": 300, "max_seq_len": 96},
        "model",
    )
    params = models.init(cfg, 0)
    text = RANDOM.integers(0, 300, (4, 97)).astype(np.int32)
    batch = Batch(text[:, :-1], text[:, 1:])

    def run(runtime):
        loss = lambda p: models.loss_sum(p, cfg, batch, runtime) / text[:, 1:].size
        return jax.jit(jax.value_and_grad(loss))(params)

    loss, grads = run(Runtime("bfloat16", attention="amx"))
    want_loss, want = run(Runtime("float32"))
    assert float(loss) == pytest.approx(float(want_loss), rel=1e-3)
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True):
        # (the gradient of GPT-2's key bias is zero: it moves all scores of a query alike)
        assert np.linalg.norm(got - expected) < 0.03 * np.linalg.norm(expected) + 1e-5


@here
def test_selective_remat_keeps_our_products():
    from min_llm.nn.layers import rematerialised

    w = normal(128, 128)
    body = lambda index, weights, x, cache: ((jnp.tanh(product(x, weights)), cache), {})
    names = {}
    for remat in ("selective", "full"):
        layer = rematerialised(body, remat)
        f = lambda w, x, layer=layer: layer(0, w, x, 0.0)[0][0].astype(jnp.float32).sum()
        names[remat] = str(jax.make_jaxpr(jax.grad(f))(w, normal(128, 128))).count("min_llm_product")
    assert names == {
        "selective": 3,
        "full": 4,
    }  # forward and two gradients; and the forward product once more


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """The question whether the kernels are there, asked anew, with an empty cache."""
    monkeypatch.setenv("MIN_LLM_HOME", str(tmp_path))
    unavailable = cpu.unavailable.__wrapped__
    return functools.partial(unavailable)


def test_they_can_be_switched_off(fresh, monkeypatch):
    monkeypatch.setenv("MIN_LLM_NATIVE", "0")
    assert fresh() == "MIN_LLM_NATIVE=0"
    assert platform.compiler_for_kernels() is None


def test_other_processors_and_machines_without_a_compiler_are_told_so(fresh, monkeypatch):
    monkeypatch.setattr(platform, "cpu_features", lambda: "avx2")
    assert "no AMX" in fresh()
    monkeypatch.setattr(platform, "cpu_features", lambda: "amx_bf16")
    monkeypatch.setattr(platform.shutil, "which", lambda name: None)
    assert "install g++" in fresh()


@here
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(fresh, monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho no such header >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(platform, "compiler_for_kernels", lambda: str(compiler))
    assert "could not compile them: no such header" in fresh()
    assert not list((tmp_path / "kernels").iterdir())


@here
def test_without_them_the_same_step_runs_in_plain_jax():
    """A step of a bfloat16 model, in a process that may not use the kernels."""
    program = """
import jax, numpy as np
from min_llm import models
from min_llm.nn.activations import swiglu
from min_llm.nn.batch import Batch
from min_llm.nn.norm import rms_norm
from min_llm.nn.rope import angles, rotate
from min_llm.nn.runtime import RuntimeConfig, resolve
cfg = models.ModelConfig.from_mapping(
    {"family": "llama", "n_layers": 1, "dim": 128, "n_heads": 4, "vocab_size": 300, "max_seq_len": 128}, "model")
text = np.random.default_rng(0).integers(0, 300, (4, 129)).astype(np.int32)
runtime = resolve(RuntimeConfig(dtype="bfloat16"), 1)
loss = lambda p: models.loss_sum(p, cfg, Batch(text[:, :-1], text[:, 1:]), runtime) / 512
print(runtime.attention, float(jax.jit(loss)(models.init(cfg, 0))))
import os, sys; sys.stdout.flush(); os._exit(0)
"""
    found = {}
    for switch in ("0", "1"):
        env = {**os.environ, "MIN_LLM_NATIVE": switch}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[switch] = done.stdout.split()
    assert (found["0"][0], found["1"][0]) == ("xla", "amx")
    assert float(found["0"][1]) == pytest.approx(float(found["1"][1]), rel=1e-3)


@here
@pytest.mark.parametrize("d", [15, 64, 200])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms_of_rows_apart(dtype, d):
    """Near float64, and a row has the same bits whatever the number of rows."""
    x = normal(300, d, dtype=dtype)
    scale, bias = normal(2, d, dtype=jnp.float32)
    wide = np.asarray(x, np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    for centre, f in (
        (wide, lambda x: rms_norm(x, scale, 1e-5)),
        (centred, lambda x: layer_norm(x, scale, bias, 1e-5)),
    ):
        with elementwise.rows_apart():
            call = jax.jit(f)
            whole = np.asarray(call(x), np.float64)
            for n in (1, 8, 24, 104):
                assert (np.asarray(call(x[7 : 7 + n]), np.float64) == whole[7 : 7 + n]).all()
        want = centre / np.sqrt((centre**2).mean(-1, keepdims=True) + 1e-5) * scale
        want += bias if centre is centred else 0
        np.testing.assert_allclose(whole, want, atol=1e-5 if dtype == jnp.float32 else 0.05)
