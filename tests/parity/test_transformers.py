"""min_llm against transformers on tiny random models: logits, loss, every gradient, and ten AdamW steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm import models
from min_llm.models import gpt2, llama, mixtral
from min_llm.nn.batch import Batch
from min_llm.nn.rope import RopeScaling
from min_llm.nn.runtime import Runtime
from min_llm.train.config import OptimConfig
from min_llm.train.optim import optimizer
from min_llm.train.step import init_state, jit_step, language_model_loss, make_step

pytestmark = pytest.mark.peers

BASE = {
    "n_layers": 2,
    "dim": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "hidden_dim": 48,
    "vocab_size": 61,
    "max_seq_len": 64,
}
LLAMAS = {
    "gqa": {},
    "mqa": {"n_kv_heads": 1},
    "mha": {"n_kv_heads": 4},
    "tied": {"tie_embeddings": True},
    "odd sizes": {
        "n_layers": 3,
        "dim": 30,
        "n_heads": 3,
        "n_kv_heads": 1,
        "head_dim": 14,
        "hidden_dim": 37,
        "vocab_size": 53,
    },
    "theta 10000": {"rope_theta": 10_000.0, "norm_eps": 1e-6},
    # original contexts this short put some planes above, between and below the two frequency limits
    "scaling 8": {
        "rope_scaling": RopeScaling(factor=8.0, original_context=256),
        "rope_theta": 10_000.0,
        "head_dim": 16,
    },
    "scaling 32": {
        "rope_scaling": RopeScaling(factor=32.0, original_context=512),
        "tie_embeddings": True,
        "head_dim": 32,
    },
    "scaling 8192": {
        "rope_scaling": RopeScaling(factor=32.0),
        "head_dim": 64,
        "n_kv_heads": 1,
        "max_seq_len": 256,
    },
}
LLAMAS |= {
    "linear": {"rope_scaling": RopeScaling(kind="linear", factor=4.0), "rope_theta": 10_000.0},
    "yarn": {
        "rope_scaling": RopeScaling(kind="yarn", factor=4.0, original_context=256),
        "rope_theta": 10_000.0,
        "head_dim": 32,
    },
    "yarn, other bounds": {
        "rope_scaling": RopeScaling(
            kind="yarn", factor=2.5, original_context=64, beta_fast=8.0, beta_slow=2.0
        ),
        "head_dim": 16,
    },
}
GPT2 = {"n_layers": 2, "dim": 32, "n_heads": 4, "vocab_size": 61, "max_seq_len": 64}
GPT2S = {
    "biases": {},
    "no biases": {"bias": False},
    "odd sizes": {
        "n_layers": 3,
        "dim": 33,
        "n_heads": 3,
        "hidden_dim": 41,
        "vocab_size": 53,
        "norm_eps": 1e-6,
    },
}
CONFIGS = {f"llama {name}": llama.Config(**(BASE | changes)) for name, changes in LLAMAS.items()}
CONFIGS |= {
    "mixtral": mixtral.Config(**BASE, n_experts=5, experts_per_token=2),
    "mixtral three of four, tied": mixtral.Config(
        **BASE, n_experts=4, experts_per_token=3, tie_embeddings=True
    ),
}
CONFIGS |= {f"gpt2 {name}": gpt2.Config(**(GPT2 | changes)) for name, changes in GPT2S.items()}


def random_params(cfg: models.ModelConfig, seed: int = 0):
    """Normal values large enough that every part of the model matters; norm scales lie around 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].name
        mean = 1.0 if name.endswith(("norm", "norm_scale")) else 0.0
        return rng.normal(mean, 0.15, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: models.init(cfg, 0)))


def tree_of(params) -> dict:
    """The library's dataclasses as the peers' dictionaries: stacks joined, absent leaves left out."""

    def fields(node) -> dict:
        return {f.name: v for f in dataclasses.fields(node) if (v := getattr(node, f.name)) is not None}

    stacks = [fields(stack) for stack in params.layers]
    joined = {name: np.concatenate([np.asarray(stack[name]) for stack in stacks]) for name in stacks[0]}
    return {name: np.asarray(value) for name, value in fields(params).items() if name != "layers"} | {
        "layers": joined
    }


def config_of(cfg: models.ModelConfig) -> dict:
    return dataclasses.asdict(cfg) | {"head_dim": cfg.head_dim, "n_kv_heads": cfg.n_kv_heads}


def plain_batch(cfg: models.ModelConfig, rows: int = 2, length: int = 0) -> Batch:
    length = length or cfg.max_seq_len
    tokens = np.random.default_rng(1).integers(0, cfg.vocab_size, (rows, length + 1), dtype=np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:])


def packed_batch(cfg: models.ModelConfig, length: int = 33) -> Batch:
    """Rows of documents of unlike lengths, the second with padding at its end."""
    lengths = [[7, 1, 20, 5], [16, 13]]
    tokens = np.random.default_rng(2).integers(0, cfg.vocab_size, (2, length + 1), dtype=np.int32)
    positions = np.zeros((2, length), np.int32)
    segment_ids = np.zeros((2, length), np.int32)
    for row, documents in enumerate(lengths):
        start = 0
        for number, size in enumerate(documents, start=1):
            positions[row, start : start + size] = np.arange(size)
            segment_ids[row, start : start + size] = number
            start += size
    index = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    weights = np.random.default_rng(3).uniform(0.5, 1.5, (2, length)).astype(np.float32) * (segment_ids > 0)
    return Batch(tokens[:, :-1], tokens[:, 1:], positions, index, segment_ids, weights)


def batch_of(batch: Batch) -> dict:
    return {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name != "index"}


@functools.partial(jax.jit, static_argnums=1)
def answers(params, cfg, batch: Batch):
    """Logits, mean loss, gradients."""

    def mean_loss(params):
        weights = jnp.ones(batch.tokens.shape) if batch.weights is None else batch.weights
        weighted = dataclasses.replace(batch, weights=weights)
        return models.loss_sum(params, cfg, weighted, Runtime()) / weights.sum()

    loss, gradients = jax.value_and_grad(mean_loss)(params)
    return models.logits(params, cfg, batch, Runtime())[0], loss, gradients


def assert_close(ours, theirs, what: str, tolerance: float = 1e-5) -> None:
    """Largest difference at most `tolerance` of the largest value, or of 1 where values are smaller."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    scale = max(1.0, float(np.abs(theirs).max()))
    assert float(np.abs(ours - theirs).max()) <= tolerance * scale, what


PACKED = ("llama gqa", "llama mqa", "llama scaling 8", "mixtral", "gpt2 biases", "gpt2 no biases")


@pytest.mark.parametrize(
    ("name", "packed"), [(name, False) for name in CONFIGS] + [(name, True) for name in PACKED], ids=str
)
def test_logits_loss_and_gradients_equal_transformers(peer, name, packed):
    cfg = CONFIGS[name]
    params = random_params(cfg)
    batch = packed_batch(cfg) if packed else plain_batch(cfg)
    theirs = peer.call(cfg.family, config=config_of(cfg), params=tree_of(params), batch=batch_of(batch))

    logits, loss, gradients = answers(params, cfg, batch)
    real = np.ones_like(batch.tokens) if batch.segment_ids is None else batch.segment_ids > 0
    assert_close(logits * real[..., None], theirs["logits"] * real[..., None], "logits")
    assert abs(float(loss) - theirs["loss"]) <= 1e-5
    ours = tree_of(gradients)
    assert ours["layers"].keys() == theirs["gradients"]["layers"].keys()
    for leaf in ours.keys() - {"layers"}:
        assert_close(ours[leaf], theirs["gradients"][leaf], leaf)
    for leaf, gradient in ours["layers"].items():
        assert_close(gradient, theirs["gradients"]["layers"][leaf], leaf)


@pytest.mark.parametrize("name", ["llama gqa", "llama tied", "gpt2 biases", "gpt2 no biases"])
def test_ten_adamw_steps_equal_torch(peer, name):
    """llm.c's protocol: ten steps on one batch; here with clipping at work and decay on matrices only."""
    cfg = CONFIGS[name]
    params, batch = random_params(cfg), plain_batch(cfg)
    optim = OptimConfig(lr=3e-3, schedule="constant", warmup=0, weight_decay=0.1, clip=0.5)
    theirs = peer.call(
        "adamw_trace",
        family=cfg.family,
        config=config_of(cfg),
        params=tree_of(params),
        batch=batch_of(batch),
        learning_rate=optim.lr,
        betas=[optim.beta1, optim.beta2],
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        clip=optim.clip,
    )
    tx = optimizer(optim, models.spec(cfg), steps=10)
    step = jit_step(make_step(language_model_loss(cfg, Runtime()), tx))
    state, losses, norms = init_state(jax.tree.map(jnp.asarray, params), tx), [], []
    for _ in range(10):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    assert min(norms) > optim.clip, "this case is to test clipping"
    assert losses[-1] < losses[0] - 0.1, "this case is to train"
    np.testing.assert_allclose(losses, theirs["losses"], rtol=2e-5)
    np.testing.assert_allclose(norms, theirs["grad_norms"], rtol=2e-4)
    # Adam divides tiny gradients by their own size, so round-off decides the sign of a few updates of size lr.
    # A key's bias adds the same to all scores of a query: its gradient is nothing but round-off.
    ours = tree_of(state.params)
    for leaf, value in ours["layers"].items():
        if leaf == "bk":
            continue
        apart = np.abs(value - theirs["params"]["layers"][leaf])
        assert apart.mean() <= 0.01 * optim.lr and apart.max() <= 10 * optim.lr, leaf
