"""The process behind test_collectives.py: what kinds of communication a compiled gradient has on a mesh, as JSON.

python -m tests.parallel.collectives_case '[[{"fsdp": 8}, {"keep_gathered": true}, {}]]'
"""

import json
import re
import sys

from min_llm import models  # before jax, for the flags
from min_llm.config import build

# isort: split
import jax
import jax.numpy as jnp

from min_llm.nn import axes, context
from min_llm.nn.runtime import Runtime
from min_llm.parallel import mesh as meshes
from tests.parallel.mesh_case import SIZES, make_batch, step

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def count(shape, runtime, sizes):
    """Collectives by kind in the text of the compiled program; one in a loop counts once."""
    cfg = build(models.ModelConfig, SIZES | {"family": "llama", "n_kv_heads": 8, "head_dim": 4} | sizes)
    cfg_mesh = meshes.MeshConfig(**shape)
    with meshes.use(cfg_mesh):
        params = axes.targets(axes.shapes(models.spec(cfg)))
        batch = context.arrange(make_batch(), cfg_mesh.cp)
        rows = jax.tree.map(lambda x: axes.shard(jnp.asarray(x), "batch", "seq"), batch)
        text = step(cfg, Runtime(**runtime)).lower(params, rows).compile().as_text()
    return {kind: len(re.findall(rf"= \S.* {kind}(?:-start)?\(", text)) for kind in KINDS}


if __name__ == "__main__":
    print(json.dumps([count(*case) for case in json.loads(sys.argv[1])]))
