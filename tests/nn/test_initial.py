"""Initial values depend on nothing but name and seed; a CPU draws them in pieces, with the numbers of a plain draw."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm.kernels.normal import PIECE, normals
from min_llm.nn.initial import init
from min_llm.spec import count
from tests.test_spec import MATRIX, NORM, SPEC


def test_missing_leaves_stay_missing():
    assert init({"a": NORM, "head": None}, jax.random.key(0))["head"] is None
    assert count({"a": NORM, "head": None}) == 3


def test_initial_values_depend_on_name_and_seed_alone():
    """A parameter that joins changes no other; nor does its neighbour's shape."""
    params = init(SPEC, jax.random.key(3))
    joined = init({**SPEC, "embed": MATRIX, "aaa": MATRIX, "zzz": MATRIX}, jax.random.key(3))
    np.testing.assert_array_equal(params["layers"][0]["w"], joined["layers"][0]["w"])
    assert not np.array_equal(joined["aaa"], joined["zzz"])
    jax.tree.map(np.testing.assert_array_equal, params, init(SPEC, jax.random.key(3)))
    other = init(SPEC, jax.random.key(4))
    assert not np.array_equal(params["embed"], other["embed"])


def test_the_numbers_are_those_of_a_plain_draw():
    """Written out: key folded with the crc32 of the name, a draw in the leaf's own shape, times its deviation."""
    key = jax.random.fold_in(jax.random.key(3), zlib.crc32(b"layers.0.w"))
    drawn = jax.jit(lambda: jax.random.normal(key, (4, 3, 5)))()
    np.testing.assert_array_equal(init(SPEC, jax.random.key(3))["layers"][0]["w"], np.float32(0.5) * drawn)


def test_constants_are_filled_and_dtypes_followed():
    params = init(SPEC, jax.random.key(0), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert np.all(np.asarray(params["layers"][0]["n"]) == 1)


@pytest.mark.parametrize("sizes", [[1], [PIECE, 3], [PIECE + 1, 2 * PIECE - 1, 5, 3 * PIECE]])
def test_pieces_are_those_of_whole_arrays_to_the_bit(sizes):
    keys = [jax.random.fold_in(jax.random.key(11), i) for i in range(len(sizes))]
    for key, size, got in zip(keys, sizes, jax.jit(lambda: normals(keys, sizes))(), strict=True):
        plain = jax.jit(functools.partial(jax.random.normal, shape=(size,)))
        np.testing.assert_array_equal(got, plain(key))
