"""The process behind test_optimizers.py: a step of each optimizer on a mesh of 4 virtual devices against one device.

Prints JSON: {name: [largest difference of an update, how many updates lie otherwise than their parameters]}.
"""

import json

from min_llm import models  # before jax, for the flags
from min_llm.config import build

# isort: split
import jax
import numpy as np

from min_llm.parallel import mesh as meshes
from min_llm.train.config import OptimConfig, RunConfig
from min_llm.train.optim import optimizer

SIZES = {"family": "mixtral", "vocab_size": 32, "n_layers": 2, "dim": 16, "n_heads": 4, "n_experts": 2}


def main():
    spec = models.spec(build(RunConfig, {"model": SIZES}).model)
    grads, found = models.init_spec(spec, 1), {}
    for name in ("muon", "lion", "adafactor"):
        made = optimizer(OptimConfig(name=name, lr=1.0, warmup=0, weight_decay=0.0), spec, 10)
        alone, _ = jax.jit(made.update)(grads, jax.jit(made.init)(grads), grads)
        with meshes.use(meshes.MeshConfig(fsdp=2, tp=2)):
            laid = models.init_spec(spec, 1)
            updates, _ = jax.jit(made.update)(laid, jax.jit(made.init)(laid), laid)
        pairs = list(zip(jax.tree.leaves(alone), jax.tree.leaves(updates), strict=True))
        moved = zip(jax.tree.leaves(updates), jax.tree.leaves(laid), strict=True)
        found[name] = [
            max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs),
            sum(u.sharding != p.sharding for u, p in moved),
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
