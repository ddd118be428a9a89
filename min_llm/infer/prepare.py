"""Parameters as the engine reads them: in the compute dtype, packed where our kernels run, copied nowhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from min_llm import models
from min_llm.kernels import cpu
from min_llm.models import ModelConfig
from min_llm.nn.layers import length
from min_llm.nn.leaves import Leaf, Whole, is_leaf
from min_llm.nn.packed import pack
from min_llm.nn.runtime import Runtime
from min_llm.quant.leaves import DynamicInt8, GroupsInt4
from min_llm.spec import Param, leaves, map_spec

READ = ("matrix", "head", "embedding")  # roles that enter products or are looked up


def rounded(params: Any, cfg: ModelConfig, runtime: Runtime) -> Any:
    """Parameters with everything that enters a product in the compute dtype: the same numbers that `dot` would round
    them to at each use, half the bytes to read for each token. Leaves that bring their own product stay as they are."""
    read = {name.rpartition(".")[2] for name, p in leaves(models.spec(cfg)) if p.role in READ}

    def leaf(path: tuple, w: Any) -> Any:
        return w if is_leaf(w) or path[-1].name not in read else w.astype(runtime.dtype)

    return jax.tree_util.tree_map_with_path(leaf, params, is_leaf=is_leaf)


def prepared(
    params: Any, cfg: ModelConfig, runtime: Runtime, release: bool = False
) -> tuple[Any, Any, Runtime]:
    """Parameters, the head by itself, and how layers run: scanned where every matrix is read where it lies, else each
    from a stack of its own, unrolled. Leaves that bring their own product stay as they are, or pack themselves.
    release: a matrix that was packed is given back at once, and `params` can be used no more."""
    family = models.of(cfg)
    head, layer = family.head(params), family.layer_spec(cfg)
    stacks = [
        map_spec(lambda p, w: _prepared(p, w, runtime, release), layer, stack) for stack in params.layers
    ]
    scan = not any(_is_sliced(p, w) for s in stacks for p, w in zip(_leaves(layer), _leaves(s), strict=True))
    if not scan:
        stacks = [one for stack in stacks for one in _apart(stack)]
    without = {"layers": ()} | (
        {"head": None} if hasattr(params, "head") else {}
    )  # it is read from `head` alone
    spec, rest = (dataclasses.replace(tree, **without) for tree in (models.spec(cfg), params))
    outside = map_spec(lambda p, w: _prepared(p, w, runtime, release), spec, rest)
    head = _leaf(head, runtime) if is_leaf(head) else _read(head[None], 1, runtime, True, alone=True)
    return dataclasses.replace(outside, layers=tuple(stacks)), head, dataclasses.replace(runtime, scan=scan)


def _prepared(p: Param, w: Any, runtime: Runtime, release: bool) -> Any:
    if is_leaf(w):
        return _leaf(w, runtime)
    if p.role not in READ:
        return w
    if p.role == "matrix" and "embed" in p.axes and "experts" not in p.axes and None not in p.axes:
        return _read(w, p.inputs, runtime, release)
    return w.astype(runtime.dtype)


def _leaf(w: Any, runtime: Runtime) -> Any:
    """Packed where a kernel reads it: of int4 in bfloat16, groups of whole steps."""
    if not cpu.takes_over():
        return w
    if isinstance(w, DynamicInt8):
        return w.packed()
    int4 = isinstance(w, GroupsInt4) and runtime.dtype == "bfloat16" and w.group % 32 == 0
    return w.packed() if int4 else w


def _read(w: Any, contracted: int, runtime: Runtime, release: bool, alone: bool = False) -> Any:
    """w [layers, ...] packed, or in the compute dtype; alone: its one layer is all there is."""
    if cpu.takes_over():
        packed = pack(w, runtime.dtype, contracted)
        if release and isinstance(w, jax.Array):
            jax.block_until_ready(packed)
            w.delete()
        return packed
    return (w[0] if alone else w).astype(runtime.dtype)


def _is_sliced(p: Param, w: Any) -> bool:
    return p.role == "matrix" and not isinstance(w, Whole)


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, (Param, Leaf)))


def _apart(stack: Any) -> tuple[Any, ...]:
    """A stack of n layers as n stacks of one: a program that takes a layer out of a larger array copies it at every
    step."""
    n = length(stack)

    def cut(stack: Any) -> tuple[Any, ...]:  # a scalar is a Packed's own number
        return tuple(jax.tree.map(lambda x, i=i: x[i : i + 1] if jnp.ndim(x) else x, stack) for i in range(n))

    return jax.jit(cut)(stack)
