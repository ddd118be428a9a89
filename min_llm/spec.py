"""Parameter specs: one tree of `Param` leaves describes a model before any array exists.

A model's `spec(cfg)` returns its parameter dataclass with a `Param` at every leaf. Initialisation, shardings, the
optimizer's groups, parameter counts, FLOPs, memory and checkpoint targets are all read from that one tree, so none
of them can disagree with the model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    pass

Tree = TypeVar("Tree")
Role = Literal["matrix", "embedding", "head", "norm", "bias"]


@dataclasses.dataclass(frozen=True)
class Param:
    """One parameter that does not exist yet.

    shape: its dimensions. axes: the logical name of each dimension (`nn.axes` maps them to mesh axes).
    std: normal initialisation with this standard deviation, or None for the constant `fill`.
    role: what it is to the optimizer and to the accounting ("matrix" and "head" multiply every token, "embedding"
    is looked up, "norm" and "bias" are vectors that weight decay leaves alone).
    active: the share of it that one token uses; below 1 for experts, of which a router chooses some.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float | None
    role: Role
    fill: float = 0.0
    active: float = 1.0

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(
                f"a Param needs one axis name a dimension; got shape {self.shape}, axes {self.axes}"
            )

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def inputs(self) -> int:
        """Of a matrix of a layer: how many of its dimensions, "layers" aside, meet the activations. What is not read
        from the residual stream is written to it."""
        axes = [axis for axis in self.axes if axis != "layers"]
        return 1 if axes[0] == "embed" else len(axes) - 1

    @property
    def matrix(self) -> tuple[int, int]:
        """Its sizes in one layer as products have it: the `inputs` joined, and the others."""
        shape = self.shape[1:] if "layers" in self.axes else self.shape
        return math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])

    @property
    def sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The dimensions of a matrix that are its inputs and those that are its outputs, where layers and experts count
        how many matrices there are: what optimizers of matrices need."""
        dims = [i for i, axis in enumerate(self.axes) if axis not in ("layers", "experts")]
        n = 1 if self.axes[dims[0]] == "embed" else len(dims) - 1
        return tuple(dims[:n]), tuple(dims[n:])


def is_param(x: Any) -> bool:
    return isinstance(x, Param)


def map_spec(f: Callable[..., Any], spec: Tree, *rest: Any) -> Any:
    """`jax.tree.map` over the Param leaves of a spec (and equal trees of anything else)."""
    import jax

    return jax.tree.map(f, spec, *rest, is_leaf=is_param)


def leaves(spec: Any) -> Iterator[tuple[str, Param]]:
    """(dotted name, Param) of every leaf, in tree order: "layers.0.wq"."""
    import jax

    for path, param in jax.tree_util.tree_leaves_with_path(spec, is_leaf=is_param):
        yield jax.tree_util.keystr(path, simple=True, separator="."), param


def stack(layer: Tree, n: int) -> Tree:
    """The spec of n equal layers stacked on a new axis 0, named "layers"."""
    return map_spec(
        lambda p: dataclasses.replace(p, shape=(n, *p.shape), axes=("layers", *p.axes)),
        layer,
    )


def count(spec: Any, *roles: Role, active: bool = False) -> int:
    """Number of parameters (of the given roles, or of all). active: of those that one token uses. Allocates nothing."""
    some = [p for _, p in leaves(spec) if not roles or p.role in roles]
    return sum(round(p.size * p.active) if active else p.size for p in some)


def shapes(spec: Tree, dtype: Any = None) -> Tree:
    """The same tree with a `jax.ShapeDtypeStruct` (float32 by default) at every leaf: checkpoint targets, lowering."""
    import jax
    import jax.numpy as jnp

    return map_spec(lambda p: jax.ShapeDtypeStruct(p.shape, dtype or jnp.float32), spec)
