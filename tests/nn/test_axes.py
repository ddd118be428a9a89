"""Logical axes: nothing on one device; names to mesh axes on a mesh (what that computes: tests/parallel)."""

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from min_llm import models
from min_llm.models import llama
from min_llm.nn import axes
from min_llm.spec import Param, leaves
from tests.toys import GPT2, LLAMA

NAMES = ("dp", "fsdp", "tp")
MESH = AbstractMesh((2, 2, 2), NAMES, axis_types=(AxisType.Explicit,) * 3)


def test_on_one_device_every_helper_is_nothing():
    x, weights = jnp.ones((2, 3)), {"w": jnp.ones(3)}
    assert axes.mesh_axes() == ()
    assert axes.shard(x, "batch", "features") is x
    assert axes.gather(weights, {"w": Param((3,), ("embed",), None, "norm")}) is weights
    assert axes.out("batch") is None
    assert axes.shardings(models.spec(LLAMA)) is None


def test_names_become_axes_of_the_mesh():
    with jax.sharding.use_abstract_mesh(MESH):
        assert axes.mesh_axes() == NAMES
        assert axes.to_partition(("vocab", "embed")) == P("tp", "fsdp")
        assert axes.to_partition(("embed", "heads", None), drop=("fsdp",)) == P(None, "tp", None)
        assert axes.out("batch", "seq", "features") == P(("dp", "fsdp"), None, None)  # no cp here
        assert axes.shardings({"w": Param((4, 2), ("layers", "hidden"), 0.1, "matrix")}) == {
            "w": P(None, "tp")
        }


def test_every_axis_of_every_family_has_a_rule():
    for cfg in (LLAMA, GPT2):
        for name, param in leaves(models.spec(cfg)):
            assert set(param.axes) <= {None, *axes.RULES}, name


def test_the_wide_dimensions_of_llama_are_split_both_ways():
    """Every matrix lives over fsdp and over tp, so that memory falls with both."""
    with jax.sharding.use_abstract_mesh(MESH):
        spec = models.spec(llama.PRESETS["llama3-8b"])
        for name, param in leaves(spec):
            used = {a for a in axes.to_partition(param.axes) if a}
            assert used == ({"fsdp", "tp"} if param.role != "norm" else set()), name
