"""Logical axes: nothing on one device; names to mesh axes on a mesh (what that computes: tests/parallel)."""

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from min_llm import models
from min_llm.models import llama
from min_llm.nn import axes
from min_llm.spec import Param, leaves
from tests.toys import GPT2, LLAMA, MIXTRAL

MESH = AbstractMesh((2, 2, 1, 2), ("dp", "fsdp", "pp", "tp"), axis_types=(AxisType.Explicit,) * 4)


def test_on_one_device_every_helper_is_nothing():
    x = jnp.ones((2, 3))
    assert not axes.on_mesh()
    assert axes.shard(x, "batch", "features") is x
    assert axes.shardings(models.spec(LLAMA)) is None
    assert axes.targets({"x": x}) == {"x": x}


def test_names_become_axes_of_the_mesh():
    with jax.sharding.use_abstract_mesh(MESH):
        assert axes.sizes() == {"dp": 2, "fsdp": 2, "tp": 2}  # pp has one device
        assert axes.to_partition(("vocab", "embed"), (8, 8)) == P("tp", "fsdp")
        assert axes.without(P("tp", "fsdp"), "fsdp") == P("tp", None)
        assert axes.without(P(("dp", "fsdp"), None), "fsdp") == P("dp", None)
        assert axes.to_partition(("batch", "residual", "features"), (8, 8, 8)) == P(
            ("dp", "fsdp"), "tp", None
        )
        assert axes.shardings({"w": Param((4, 2), ("layers", "hidden"), 0.1, "matrix")}) == {
            "w": P(None, "tp")
        }


def test_fewer_key_value_heads_than_tp_stay_whole():
    with jax.sharding.use_abstract_mesh(MESH):
        assert axes.to_partition(("embed", "kv_heads", None), (8, 2, 4)) == P("fsdp", "tp", None)
        assert axes.to_partition(("embed", "kv_heads", None), (8, 1, 4)) == P("fsdp", None, None)


def test_every_axis_of_every_family_has_a_rule():
    for cfg in (LLAMA, MIXTRAL, GPT2):
        for name, param in leaves(models.spec(cfg)):
            assert set(param.axes) <= {None, *axes.RULES}, name


def test_the_wide_dimensions_of_llama_are_split_both_ways():
    """Every matrix lives over fsdp and over tp, so that memory falls with both."""
    with jax.sharding.use_abstract_mesh(MESH):
        spec = models.spec(llama.PRESETS["llama3-8b"])
        for name, param in leaves(spec):
            used = {a for a in axes.to_partition(param.axes, param.shape) if a}
            assert used == ({"fsdp", "tp"} if param.role != "norm" else set()), name


def test_experts_are_split_over_ep_and_so_are_rows():
    mesh = AbstractMesh((2, 2, 2), ("ep", "fsdp", "tp"), axis_types=(AxisType.Explicit,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        layer = axes.shardings(models.of(MIXTRAL).layer_spec(MIXTRAL))
        assert layer.w_up == P("ep", "fsdp", "tp")
        assert layer.w_down == P("ep", "tp", "fsdp")
        assert layer.router == P("fsdp", None)
        assert layer.wq == P("fsdp", "tp", None)
        assert axes.to_partition(("batch", "residual", "features"), (4, 4, 4)) == P(
            ("fsdp", "ep"), "tp", None
        )
