"""Parameter specs: counting, stacking, names."""

import jax
import jax.numpy as jnp
import pytest

from min_llm.spec import Param, count, leaves, map_spec, shapes, stack

MATRIX = Param((3, 5), ("embed", "hidden"), 0.5, "matrix")
NORM = Param((3,), (None,), None, "norm", fill=1.0)
SPEC = {
    "embed": Param((7, 3), ("vocab", "embed"), 0.1, "embedding"),
    "layers": (stack({"w": MATRIX, "n": NORM}, 4),),
}


def test_a_parameter_names_each_of_its_dimensions():
    with pytest.raises(ValueError, match=r"one axis name a dimension; got shape \(3, 5\), axes \('embed',\)"):
        Param((3, 5), ("embed",), 0.1, "matrix")
    assert MATRIX.size == 15
    assert Param((), (), None, "bias").size == 1


def test_leaves_come_in_tree_order_with_dotted_names():
    assert [name for name, _ in leaves(SPEC)] == ["embed", "layers.0.n", "layers.0.w"]


def test_stacking_adds_an_axis_and_keeps_the_rest():
    stacked = dict(leaves(SPEC))["layers.0.w"]
    assert stacked == Param((4, 3, 5), ("layers", "embed", "hidden"), 0.5, "matrix")


def test_counting_by_role_adds_up():
    assert count(SPEC) == 7 * 3 + 4 * (15 + 3)
    assert count(SPEC, "matrix") == 60
    assert count(SPEC, "norm", "embedding") == 12 + 21
    assert count(SPEC, "head") == 0
    assert (
        count({"huge": Param((2**40, 2**40), (None, None), 1.0, "matrix")}) == 2**80
    )  # nothing is allocated


def test_a_spec_maps_and_turns_into_shapes():
    assert map_spec(lambda p: p.role, {"a": NORM}) == {"a": "norm"}
    assert map_spec(lambda p, x: p.fill + x, {"a": NORM}, {"a": 2}) == {"a": 3.0}
    assert shapes({"a": NORM}) == {"a": jax.ShapeDtypeStruct((3,), jnp.float32)}
    assert shapes({"a": NORM}, jnp.bfloat16)["a"].dtype == jnp.bfloat16
