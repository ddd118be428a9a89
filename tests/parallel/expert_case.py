"""The process behind test_experts.py: a small Mixtral on one mesh after another against one device, as JSON.

python -m tests.parallel.expert_case '[[{"ep": 4}, {"scan": true}]]'
"""

import json
import sys

from min_llm import models  # before jax, for the flags
from min_llm.models import mixtral

# isort: split
import dataclasses

from min_llm.nn.runtime import Runtime
from tests.parallel.mesh_case import SIZES, compare, make_batch, step

# weights so large that the gradients of experts and routers are too
CFG = mixtral.Config(**SIZES, n_kv_heads=2, n_experts=4, experts_per_token=2, init_std=0.1)


def one_sided(params):
    """The same with routers of zeros: every token goes to the first two experts, which live on one device of ep."""
    layers = tuple(dataclasses.replace(stack, router=0 * stack.router) for stack in params.layers)
    return dataclasses.replace(params, layers=layers)


def main(cases):
    batch, found = make_batch(), []
    for change in (lambda params: params, one_sided):
        params = change(models.init(CFG, 0))
        one = step(CFG, Runtime(attention="reference", scan=True))(params, batch)
        found += [compare(CFG, shape, runtime, batch, params, *one, change) for shape, runtime in cases]
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
