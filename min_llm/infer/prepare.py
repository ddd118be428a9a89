"""Parameters as the engine reads them: matrices in the compute dtype, packed where our kernels run, each layer by
itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from min_llm import models
from min_llm.kernels import cpu
from min_llm.models import ModelConfig
from min_llm.nn import axes
from min_llm.nn.leaves import Leaf
from min_llm.nn.packed import apart, pack
from min_llm.nn.runtime import Runtime
from min_llm.spec import Param, map_spec

READ = ("matrix", "head", "embedding")  # roles that enter products or are looked up


def rounded(params: Any, cfg: ModelConfig, runtime: Runtime) -> Any:
    """Parameters with everything that enters a product in the compute dtype: the same numbers that `dot` would round
    them to at each use, half the bytes to read for each token."""
    return map_spec(lambda p, w: w.astype(runtime.dtype) if p.role in READ else w, models.spec(cfg), params)


def prepared(params: Any, cfg: ModelConfig, runtime: Runtime) -> tuple[Any, Any]:
    """Parameters with a stack for each layer, and the head by itself. Leaves that bring their own product stay."""
    family = models.of(cfg)
    head = family.head(params)
    layer = family.layer_spec(cfg)
    stacks: list[Any] = []
    for stack in params.layers:
        n = jax.tree.leaves(stack)[0].shape[0]
        stacks += apart(map_spec(lambda p, w: _prepared(p, w, runtime), layer, stack), n)
    outside = dataclasses.replace(params, layers=())
    outside = map_spec(
        lambda p, w: _prepared(p, w, runtime), dataclasses.replace(models.spec(cfg), layers=()), outside
    )
    if getattr(outside, "head", None) is not None:
        outside = dataclasses.replace(outside, head=None)  # it is read from `head` alone
    head = head if isinstance(head, Leaf) else _read(head, 1, False, runtime)
    return dataclasses.replace(outside, layers=tuple(stacks)), head


def _prepared(p: Param, w: Any, runtime: Runtime) -> Any:
    if isinstance(w, Leaf) or p.role not in READ:
        return w
    if p.role == "matrix" and "embed" in p.axes and "experts" not in p.axes and None not in p.axes:
        # the model's dimension is what goes in or what comes out
        return _read(w, 1 if p.axes[0] == "embed" else len(p.axes) - 1, True, runtime)
    return w.astype(runtime.dtype)


def _read(w: Any, contracted: int, stacked: bool, runtime: Runtime) -> Any:
    if cpu.available() and not axes.on_mesh():
        return pack(w, runtime.dtype, contracted, stacked)
    return w.astype(runtime.dtype)
