"""The process behind test_mesh.py: one family on meshes of 8 virtual devices against one device, as JSON.

python -m tests.parallel.mesh_case llama '[[{"fsdp": 2, "tp": 4}, {"attention": "xla"}]]' '{}'
"""

import functools
import json
import sys

from min_llm import models  # before jax, for the flags
from min_llm.config import build

# isort: split
import jax
import jax.numpy as jnp
import numpy as np

from min_llm.nn import axes, context
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.parallel import mesh as meshes
from min_llm.reference.batch import pack
from tests import conftest  # noqa: F401  it keeps programs alive
from tests.toys import QUICK, documents

SIZES = {"n_layers": 4, "dim": 16, "n_heads": 8, "hidden_dim": 24, "vocab_size": 32, "max_seq_len": 16}
ROWS = [(7, 9), (16,), (4, 4, 8), (13,), (6, 6), (3, 8), (11,), (5, 5, 5)]


def make_batch():
    texts = iter(documents(*(n for row in ROWS for n in row), vocab=SIZES["vocab_size"]))
    return Batch(*pack([[next(texts) for _ in row] for row in ROWS], SIZES["max_seq_len"]))


@functools.cache
def initial(cfg, cfg_mesh):
    """Initial parameters on the mesh in use, which is that of cfg_mesh."""
    return models.init(cfg, 0)


@functools.cache
def step(cfg, runtime):
    """jitted: loss and gradients."""

    def loss(params, batch):
        return models.loss_sum(params, cfg, batch, runtime) / batch.weights.sum()

    return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)


def difference(a, b):
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def compare(cfg, shape, runtime, batch, params, loss, grads, change=lambda params: params):
    """What a mesh of that shape changes. change: what was done to the initial parameters."""
    cfg_mesh = meshes.MeshConfig(**shape)
    with meshes.use(cfg_mesh) as mesh:
        laid = change(initial(cfg, cfg_mesh))
        placed = context.arrange(batch, cfg_mesh.cp)
        rows = jax.tree.map(lambda x: axes.shard(jnp.asarray(x), "batch", "seq"), placed)
        mesh_loss, mesh_grads = step(cfg, Runtime(**runtime))(laid, rows)
    named = jax.tree_util.tree_leaves_with_path(mesh_grads)
    names = [jax.tree_util.keystr(path) for path, _ in named]
    grads, mesh_grads, laid_leaves = jax.tree.leaves(grads), [g for _, g in named], jax.tree.leaves(laid)
    return {
        "devices": mesh.size,
        "split": sum(not x.sharding.is_fully_replicated for x in laid_leaves),
        "initial": max(jax.tree.leaves(jax.tree.map(difference, params, laid))),
        "loss": abs(float(loss) - float(mesh_loss)),
        "gradients": {
            name: [difference(a, b), difference(a, b) / float(np.abs(a).max())]
            for name, a, b in zip(names, grads, mesh_grads, strict=True)
        },
        "shardings": {
            name: [str(p.sharding.spec), str(g.sharding.spec)]
            for name, p, g in zip(names, laid_leaves, mesh_grads, strict=True)
        },
    }


def main(family, cases, sizes):
    extra = {"n_kv_heads": 2, "head_dim": 4, "qk_norm": True} if family == "llama" else {}
    cfg = build(models.ModelConfig, SIZES | {"family": family} | extra | sizes)
    batch, params = make_batch(), models.init(cfg, 0)
    one = step(cfg, Runtime(attention="reference"))(params, batch)
    return [compare(cfg, shape, runtime, batch, params, *one) for shape, runtime in cases]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(json.loads, sys.argv[2:]))))
