"""Parameters as the engine reads them: in the compute dtype, each layer by itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from min_llm import models
from min_llm.models import ModelConfig
from min_llm.nn.runtime import Runtime
from min_llm.spec import map_spec


def rounded(params: Any, cfg: ModelConfig, runtime: Runtime) -> Any:
    """Parameters with everything that enters a product in the compute dtype: the same numbers that `dot` would round
    them to at each use, half the bytes to read for each token."""
    used = map_spec(lambda p: p.role in ("matrix", "head", "embedding"), models.spec(cfg))
    return jax.tree.map(lambda p, round_it: p.astype(runtime.dtype) if round_it else p, params, used)


def separate(params: Any) -> Any:
    """The same parameters with a stack for each layer: a program that takes a layer out of a larger array copies it at
    every step."""
    stacks = []
    for stack in params.layers:
        n = jax.tree.leaves(stack)[0].shape[0]
        stacks += [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], stack) for i in range(n)]
    return dataclasses.replace(params, layers=tuple(stacks))


def prepared(params: Any, cfg: ModelConfig, runtime: Runtime) -> Any:
    return separate(rounded(params, cfg, runtime))
