"""The process behind test_engine_mesh.py: the engine on meshes of 8 virtual devices, as JSON.

python -m tests.infer.mesh_case
"""

import dataclasses
import json

from min_llm import models  # before jax, for the flags
from min_llm.config import UserError

# isort: split
import numpy as np

from min_llm.infer.engine import Engine
from min_llm.infer.load import Loaded
from min_llm.infer.options import EngineConfig
from min_llm.infer.request import Sampling
from min_llm.nn.runtime import Runtime
from min_llm.parallel import mesh as meshes
from min_llm.tokenizers.byte import Bytes
from tests.toys import random_weights

SIZES = {"n_layers": 2, "dim": 16, "n_heads": 8, "hidden_dim": 24, "vocab_size": 264, "max_seq_len": 64}


def answers(tp, kv_heads, kv_dtype):
    """Greedy and drawn tokens, with log-probabilities of prompts, and embeddings."""
    cfg = models.ModelConfig.from_mapping(SIZES | {"n_kv_heads": kv_heads}, "model")
    with meshes.use(meshes.MeshConfig(tp=tp)):
        loaded = Loaded("toy", cfg, random_weights(cfg), Runtime(), Bytes())
        engine = Engine(
            loaded, EngineConfig(max_sequences=3, chunk=16, page_size=4, cache_tokens=72, kv_dtype=kv_dtype)
        )
    rng = np.random.default_rng(0)
    asked = Sampling(temperature=0, max_tokens=8, prompt_logprobs=1, logprobs=1)
    for i, n in enumerate((3, 20, 7, 33)):
        engine.add(rng.integers(0, 256, n).tolist(), dataclasses.replace(asked, temperature=i % 2, seed=i))
    found = {}
    while engine.busy:
        for o in engine.step():
            one = found.setdefault(o.request, {"tokens": [], "logprobs": []})
            for token in (*(o.prompt or ()), *o.tokens):
                one["tokens"].append(token.id)
                one["logprobs"].append(token.logprob or 0.0)
    embedded = engine.embed([[1, 2, 3]])
    return {"answers": found, "embedded": embedded.tolist(), "compiles": engine.statistics().compiles}


def refused():
    with meshes.use(meshes.MeshConfig(fsdp=8)):
        try:
            cfg = models.ModelConfig.from_mapping(SIZES, "model")
            Engine(Loaded("toy", cfg, random_weights(cfg), Runtime(), Bytes()))
        except UserError as error:
            return str(error)


if __name__ == "__main__":
    cases = ((2, "same"), (8, "same"), (2, "int8"))
    print(json.dumps([[answers(tp, *case) for tp in (1, 8)] for case in cases] + [refused()]))
