"""Logical axes and the mesh: how one model function serves one device and a thousand.

A spec names each dimension of each parameter, and a model names the dimensions of a few activations. `RULES` maps
those names to the axes of the current mesh (`jax.set_mesh`, explicit sharding). With no mesh every helper here
returns its argument unchanged and adds nothing to the program.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec as P

from min_llm.spec import Param, map_spec

Tree = TypeVar("Tree")

# logical axis -> mesh axes. Parameters shard "embed" over fsdp and one wide dimension over tp; activations shard
# the batch over dp and fsdp and the sequence over cp.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "embed": "fsdp",
    "heads": "tp",
    "kv_heads": "tp",
    "hidden": "tp",
    "vocab": "tp",
    "batch": ("dp", "fsdp"),
    "seq": "cp",
    "layers": None,
    "head_dim": None,
    "position": None,
    "features": None,  # an activation's model dimension
}


def mesh_axes() -> tuple[str, ...]:
    """Axis names of the mesh in use; empty on one device."""
    return tuple(jax.sharding.get_abstract_mesh().axis_names)


def to_partition(axes: tuple[str | None, ...], drop: tuple[str, ...] = ()) -> P:
    """The PartitionSpec of logical axes on the mesh in use, without the mesh axes in `drop`."""
    present = [a for a in mesh_axes() if a not in drop]
    entries: list[Any] = []
    for axis in axes:
        rule = RULES[axis] if axis is not None else None
        names = (rule,) if isinstance(rule, str) else rule or ()
        kept = tuple(name for name in names if name in present)
        entries.append(kept[0] if len(kept) == 1 else kept or None)
    return P(*entries)


def shardings(spec: Tree) -> Tree | None:
    """NamedShardings for every Param of a spec, for `jit(out_shardings=...)`; None on one device."""
    if not mesh_axes():
        return None
    return map_spec(lambda p: to_partition(p.axes), spec)


def out(*axes: str | None) -> P | None:
    """`out_sharding` of a contraction whose result has these logical axes; None on one device."""
    return to_partition(axes) if mesh_axes() else None


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lay an activation out by its logical axes."""
    return jax.reshard(x, to_partition(axes)) if mesh_axes() else x


def gather(weights: Tree, spec: Tree) -> Tree:
    """Un-shard one layer's parameters over fsdp for its computation; they stay split over tp. Called inside the
    scanned and rematerialised body, so that each layer is gathered when it runs and again in the backward pass, and
    its gradient comes back sharded like the parameter (FSDP; Llama 3 section 3.3.2)."""
    if not mesh_axes():
        return weights

    def leaf(p: Param, w: jax.Array) -> jax.Array:
        axes = p.axes[len(p.axes) - w.ndim :]  # inside a stack the "layers" axis is gone
        return jax.reshard(w, to_partition(axes, drop=("fsdp",)))

    return map_spec(leaf, spec, weights)
