"""Which parameters of a model are quantized, and the model with them quantized.

    params = quantize(params, models.spec(cfg), "w8a8")

int8 and w8a8: every matrix that multiplies each token, and the head; one that is tied to the embedding becomes a
matrix of its own, and the table stays. int4: the same without the head, whose errors reach the answer undamped (SmolLM2
diverges by 40 % more with it). fp8 as in Llama 3 section 6.2: only the feed-forward matrices, and none in the first
and the last layer. Embeddings, norms, biases, experts and their routers stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from min_llm.config import UserError, nearest
from min_llm.nn.layers import length
from min_llm.nn.leaves import is_leaf
from min_llm.quant.leaves import METHODS, GroupsInt4, Quantized
from min_llm.spec import Param, map_spec

GROUP = 32
WITH_HEAD = ("int8", "w8a8")
MakeLeaf = Callable[[Array, tuple[int, ...]], Quantized]


def quantize(params: Any, spec: Any, method: str, group: int = GROUP, bits: int = 4) -> Any:
    """The same model with `Quantized` leaves, for `models.forward` and the engine. spec: models.spec of its
    configuration. For int4, group: values that share a scale; bits: fewer than 4 only do damage, which measures of
    quality must see (bench/quant.py). Raises UserError where that cannot be done."""
    make = _maker(method, group, bits)
    if is_quantized(params):
        raise UserError("This model is quantized already. Begin with the one that it was made of.")
    stacks: list[Any] = []
    for stack, described in zip(params.layers, spec.layers, strict=True):
        n = length(stack)
        if method != "fp8":
            stacks.append(_layers(make, stack, described, _multiplies))
            continue
        if n < 3:
            raise UserError(
                f"fp8 leaves the first and the last layer as they are, and the model has {n} in all; it needs at "
                "least 3. Choose another method."
            )
        first, middle, last = (
            jax.tree.map(lambda w, s=s: w[s], stack) for s in (slice(0, 1), slice(1, n - 1), slice(n - 1, n))
        )
        stacks += [first, _layers(make, middle, described, _is_feed_forward), last]
    made = dataclasses.replace(params, layers=tuple(stacks))
    if method not in WITH_HEAD or not hasattr(params, "head"):  # GPT-2's head is its embedding table
        return made
    head = params.embed.T if params.head is None else params.head
    return dataclasses.replace(made, head=_quantized(make, head, inputs=1, stacked=False))


def is_quantized(params: Any) -> bool:
    """Whether any parameter is."""
    return any(isinstance(leaf, Quantized) for leaf in jax.tree.leaves(params, is_leaf=is_leaf))


def _maker(method: str, group: int, bits: int) -> MakeLeaf:
    if method not in METHODS:
        raise UserError(
            f"There is no method {method!r} of quantization; there are {', '.join(METHODS)}."
            f"{nearest(method, list(METHODS))}"
        )
    if method != "int4":
        return METHODS[method].of
    if group < 8 or group % 8:
        raise UserError(
            f"A group of {group} values cannot be packed; choose a multiple of 8, such as {GROUP}."
        )
    return functools.partial(GroupsInt4.of, size=group, bits=bits)


def _layers(make: MakeLeaf, stack: Any, described: Any, wanted: Callable[[Param], bool]) -> Any:
    def leaf(p: Param, w: Array) -> Any:
        if not wanted(p):
            return w
        return _quantized(make, w, p.inputs, stacked=True)

    return map_spec(leaf, described, stack)


def _multiplies(p: Param) -> bool:
    """Whether it is a matrix that every token goes through (a router's outputs have no name)."""
    return p.role == "matrix" and "experts" not in p.axes and p.axes[-1] is not None


def _is_feed_forward(p: Param) -> bool:
    return _multiplies(p) and "hidden" in p.axes


def _quantized(make: MakeLeaf, w: Array, inputs: int, stacked: bool) -> Quantized:
    """A parameter whose first `inputs` dimensions (of one layer) are contracted, as a leaf."""
    shape = w.shape[1:] if stacked else w.shape
    layers = w.shape[:1] if stacked else ()

    @jax.jit
    def rows(w: Array) -> Quantized:
        flat = w.reshape(*layers, math.prod(shape[:inputs]), -1)
        return make(flat.swapaxes(-1, -2), shape)

    return rows(w)
