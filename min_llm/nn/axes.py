"""Logical axes and the mesh: how one model function serves one device and a thousand.

A spec names each dimension of each parameter, and a model names the dimensions of a few activations. `RULES` maps
those names to the axes of the current mesh (`jax.set_mesh`, explicit sharding). With no mesh every helper here
returns its argument unchanged and adds nothing to the program.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from min_llm import spec as spec_lib

Tree = TypeVar("Tree")

# logical axis -> mesh axes. Parameters shard "embed" over fsdp and one wide dimension over tp; activations shard
# the batch over dp, fsdp and ep and the sequence over cp; between the blocks, where norms and additions work on single
# tokens, the sequence is also split over tp (sequence parallelism: Korthikanti et al. 2022).
RULES: dict[str, str | tuple[str, ...] | None] = {
    "embed": "fsdp",
    "heads": "tp",
    "kv_heads": "tp",  # where there are fewer than tp, every device has them all
    "hidden": "tp",
    "vocab": "tp",
    "experts": "ep",
    "layers": "pp",
    "batch": ("dp", "fsdp", "ep"),
    "seq": "cp",
    "residual": ("cp", "tp"),  # the sequence of the residual stream
    "head_dim": None,
    "position": None,
    "features": None,  # an activation's model dimension
}


def sizes() -> dict[str, int]:
    """Devices by axis of the mesh in use, without axes of one device and those that a shard_map has taken over."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name: mesh.shape[name] for name in explicit() if mesh.shape[name] > 1}


def explicit() -> tuple[str, ...]:
    """Axes of the mesh in use that no shard_map has taken over."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True) if mesh.axis_names else ()
    return tuple(name for name, kind in kinds if kind == AxisType.Explicit)


def on_mesh() -> bool:
    """Whether arrays are spread over several devices here."""
    return bool(sizes())


def to_partition(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> P:
    """The PartitionSpec of an array of that shape with these logical axes on the mesh in use."""
    return joined(cuts(axes, shape, sizes()))


def joined(cut: Iterable[tuple[str, ...]]) -> P:
    """The PartitionSpec of dimensions that these mesh axes cut."""
    return P(*(names[0] if len(names) == 1 else names or None for names in cut))


def parted(spec: P) -> list[tuple[str, ...]]:
    """The mesh axes that cut each dimension: the inverse of `joined`."""
    return [(entry,) if isinstance(entry, str) else entry or () for entry in spec]


def cuts(
    axes: tuple[str | None, ...], shape: tuple[int, ...], devices: dict[str, int]
) -> list[tuple[str, ...]]:
    """The mesh axes that cut each dimension, on a mesh with so many devices along its axes."""
    found = []
    for axis, size in zip(axes, shape, strict=True):
        rule = RULES[axis] if axis is not None else None
        names = (rule,) if isinstance(rule, str) else rule or ()
        kept = tuple(name for name in names if devices.get(name, 1) > 1)
        if axis in ("kv_heads", "layers") and kept and size % devices[kept[0]]:
            kept = ()
        found.append(kept)
    if "layers" in axes and devices.get("pp", 1) > 1 and ("pp",) not in found:
        return elsewhere(found, shape, devices)
    return found


def elsewhere(
    found: list[tuple[str, ...]], shape: tuple[int, ...], devices: dict[str, int]
) -> list[tuple[str, ...]]:
    """The same with the ranks of a pipeline cutting not the layers but the first other dimension that they divide:
    how layers lie that are fewer than the places of its stages, or that are about to change places."""
    result = [tuple(name for name in names if name != "pp") for names in found]
    for i in range(1, len(shape)):
        if shape[i] % math.prod(devices[name] for name in (*result[i], "pp")) == 0:
            result[i] = (*result[i], "pp")
            break
    return result


def shardings(spec: Tree) -> Tree | None:
    """PartitionSpecs for every Param of a spec, for `jit(out_shardings=...)`; None on one device."""
    return spec_lib.map_spec(lambda p: to_partition(p.axes, p.shape), spec) if on_mesh() else None


def shapes(spec: Tree) -> Tree:
    """A float32 `ShapeDtypeStruct` for every Param of a spec, with its layout on the mesh in use."""
    if not on_mesh():
        return spec_lib.shapes(spec)

    def shape(p: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(jax.sharding.get_mesh(), to_partition(p.axes, p.shape))
        return jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=sharding)

    return spec_lib.map_spec(shape, spec)


def targets(tree: Tree) -> Tree:
    """What `jax.eval_shape` made of such shapes, laid out over the devices of the mesh in use: to be loaded into."""
    if not on_mesh():
        return tree

    def target(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = x.sharding.spec if x.sharding is not None else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(jax.sharding.get_mesh(), spec))

    return jax.tree.map(target, tree)


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lay an activation out by its logical axes."""
    return jax.reshard(x, to_partition(axes, x.shape)) if on_mesh() else x


def split_rows(x: jax.Array, parts: int) -> jax.Array:
    """[B, …] -> [parts, B / parts, …]: on a mesh every device has its share of every part."""
    return _split(x, parts, 0) if on_mesh() else x.reshape(parts, -1, *x.shape[1:])


def split_places(x: jax.Array, parts: int) -> jax.Array:
    """[B, S, …] -> [parts, B, S / parts, …], likewise."""
    return _split(x, parts, 1)


def _split(x: jax.Array, parts: int, axis: int) -> jax.Array:
    """The outer of the two dimensions that an axis is cut into stays on the axis's devices."""
    before, cut, after = x.shape[:axis], x.shape[axis] // parts, x.shape[axis + 1 :]
    spec = partition(x)
    spec = P(*spec[: axis + 1], None, *spec[axis + 1 :])
    return jnp.moveaxis(x.reshape(*before, cut, parts, *after, out_sharding=spec), axis + 1, 0)


def join_rows(x: jax.Array) -> jax.Array:
    """The inverse of `split_rows`."""
    if not on_mesh():
        return x.reshape(-1, *x.shape[2:])
    _, rows, *rest = partition(x)
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:], out_sharding=P(rows, *rest))


def partition(x: Any) -> P:
    """How an array, traced or not, is laid out on the mesh in use."""
    return jax.typeof(x).sharding.spec


def without(spec: P, axis: str) -> P:
    """A PartitionSpec without one mesh axis."""
    return joined(tuple(name for name in names if name != axis) for names in parted(spec))
