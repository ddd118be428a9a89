"""Initial parameters from a spec."""

from __future__ import annotations

import zlib
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from min_llm import spec as spec_lib
from min_llm.kernels.normal import normals
from min_llm.spec import Param

Tree = TypeVar("Tree")


def init(spec: Tree, key: jax.Array, dtype: Any = jnp.float32, shardings: Any = None) -> Tree:
    """Initialise every leaf, in one jitted call.

    The key of a leaf is folded from its name, so adding a parameter changes no other one's numbers; JAX's
    partitionable random bits make them the same on every mesh. shardings: a tree like the spec
    (`nn.axes.shardings`).
    """

    def draw(key: jax.Array) -> Tree:
        drawn = {name: p for name, p in spec_lib.leaves(spec) if p.std is not None}
        own = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in drawn}
        sizes = [p.size for p in drawn.values()]
        # on a mesh of CPUs every device draws all and keeps its part: XLA's vector code rounds the draw of some shapes
        # otherwise than that of others
        if drawn and jax.default_backend() == "cpu" and dtype == jnp.float32 and max(sizes) < 2**32:
            normal = dict(zip(drawn, normals(list(own.values()), sizes), strict=True))
        else:
            normal = {name: jax.random.normal(own[name], p.shape, dtype) for name, p in drawn.items()}

        def leaf(path: Any, p: Param) -> jax.Array:
            if p.std is None:
                return jnp.full(p.shape, p.fill, dtype)
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            # without the barrier XLA multiplies std into the draw's own constants, differently from mesh to mesh
            return p.std * jax.lax.optimization_barrier(normal[name].reshape(p.shape))

        return jax.tree_util.tree_map_with_path(leaf, spec, is_leaf=spec_lib.is_param)

    return jax.jit(draw, out_shardings=shardings)(key)
