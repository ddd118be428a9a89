"""Low-rank adaptation (LoRA, Hu et al. 2021): a parameter W and beside it scale · A · B, of a rank far below W's.

    params = adapt(params, adapter)    every product with an adapted parameter adds scale · (x · A) · B
    params = merge(params)             plain arrays again: W + scale · A · B

`Lora` is a leaf like any other (nn/leaves.py): it stands over an array, a packed or a quantized parameter, and touches
no model file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from min_llm.config import UserError, nearest
from min_llm.nn.layers import length
from min_llm.nn.leaves import is_leaf, multiply
from min_llm.spec import Param, is_param, leaves

Tree = TypeVar("Tree")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lora:
    """base: the parameter that is adapted, an array or another `Leaf`. a [*layers, k, rank], b [*layers, rank, m]: k is
    what meets the activations, m what comes out, each as one dimension. scale: alpha / rank. shape: of the parameter of
    one layer."""

    base: Any
    a: Float[Array, "*layers k r"]
    b: Float[Array, "*layers r m"]
    scale: float = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def product(self, x: Float[Array, "n k"]) -> Float[Array, "n m"]:
        return multiply(x, self.base) + self.scale * multiply(multiply(x, self.a), self.b)

    def merged(self) -> Float[Array, "*layers ..."]:
        """One array for both; the base may be quantized, not packed. What its integers stand for is added to: rounded
        to them again, most of what the adapter says would be lost (peft#2105)."""
        added = self.scale * jnp.matmul(self.a, self.b, precision="highest")
        base = self.base
        if is_leaf(base):  # [*layers, m, k and padding]
            base = base.matrix().swapaxes(-1, -2)[..., : added.shape[-2], :]
        whole = (base.reshape(added.shape) + added).astype(base.dtype)
        return whole.reshape(*added.shape[:-2], *self.shape)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is added to a model. pairs: for each adapted parameter, by its name in a layer ("wq"), a [layers, k, rank]
    and b [layers, rank, m] of all layers; zeros where a layer has none."""

    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]
    scale: float

    @property
    def rank(self) -> int:
        return max((a.shape[-1] for a, _ in self.pairs.values()), default=0)


def is_adaptable(p: Param) -> bool:
    """Whether it is a matrix that every token goes through: experts have products of their own, and a router's outputs
    have no name."""
    return p.role == "matrix" and "experts" not in p.axes and None not in p.axes


def lora(spec: Tree, targets: Collection[str], rank: int, alpha: float) -> Tree:
    """The spec of a model with a `Lora` at each parameter named in `targets`, such as ("wq", "wv").

    B begins at zero, so that nothing changes at first; A is normal (section 4.1 of the paper) with the variance of
    peft's uniform numbers, 1 / (3k). Raises UserError for names that are none of the model's.
    """
    known = sorted({name.rpartition(".")[2] for name, p in leaves(spec) if is_adaptable(p)})
    if rank < 1:
        raise UserError(f"The rank of an adapter is {rank}; it must be at least 1.")
    if unknown := sorted(set(targets) - set(known)):
        raise UserError(f"The model has no matrix {unknown[0]!r} to adapt.{nearest(unknown[0], known)}")

    def leaf(path: Any, p: Param) -> Any:
        if path[-1].name not in targets:
            return p
        (n, *shape), names, (k, m) = p.shape, p.axes[1:], p.matrix
        a: Any = Param((n, k, rank), ("layers", names[0], None), (3 * k) ** -0.5, "matrix")
        b: Any = Param((n, rank, m), ("layers", None, names[p.inputs]), None, "matrix")
        return Lora(p, a, b, alpha / rank, tuple(shape))

    return jax.tree_util.tree_map_with_path(leaf, spec, is_leaf=is_param)


def adapt(params: Any, adapter: Adapter) -> Any:
    """The model with `Lora` leaves, whose arrays are rounded where they are used, like all parameters."""
    stacks, first = [], 0
    for stack in params.layers:
        some = slice(first, first + length(stack))
        made = {}
        for name, (a, b) in adapter.pairs.items():
            base = getattr(stack, name)
            shape = base.shape if is_leaf(base) else base.shape[1:]
            made[name] = Lora(base, jnp.asarray(a[some]), jnp.asarray(b[some]), adapter.scale, shape)
        stacks.append(dataclasses.replace(stack, **made))
        first = some.stop
    return dataclasses.replace(params, layers=tuple(stacks))


def extract(params: Any) -> Adapter:
    """What `adapt` put in, or training has made of it."""
    found: dict[str, list[Lora]] = {}
    for stack in params.layers:
        for field in dataclasses.fields(stack):
            if isinstance(one := getattr(stack, field.name), Lora):
                found.setdefault(field.name, []).append(one)
    scales = sorted({one.scale for some in found.values() for one in some})
    if len(scales) != 1:
        raise UserError(f"An adapter has one scale; these parameters have {scales or 'no adapter'}.")
    pairs = {
        name: (np.concatenate([one.a for one in some]), np.concatenate([one.b for one in some]))
        for name, some in found.items()
    }
    return Adapter(pairs, scales[0])


def merge(params: Any) -> Any:
    """The same model with arrays in the place of its `Lora` leaves, as fast as without an adapter."""
    return jax.tree.map(lambda w: w.merged() if isinstance(w, Lora) else w, params, is_leaf=_is_lora)


def _is_lora(x: Any) -> bool:
    return isinstance(x, Lora)
