"""Every attention implementation against the NumPy oracle: outputs and gradients, for every kind of mask.

A new implementation joins by its line in the registry; a new kind of mask by a line in MASKS.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm.config import UserError
from min_llm.kernels import attention
from min_llm.kernels.attention.xla import QUERY_BLOCK
from min_llm.kernels.mask import Mask
from min_llm.reference.attention import attend, attend_backward, build_mask

LONG = 2 * QUERY_BLOCK + 5  # several blocks, the last one ragged


def segments(*rows):
    """[B,S] from rows of (document, length) pairs."""
    return np.array([[number for number, n in row for _ in range(n)] for row in rows], np.int32)


def decoding(starts, s):
    """q_index [B,s] of rows that already hold `starts` tokens."""
    return np.array(starts, np.int32)[:, None] + np.arange(s, dtype=np.int32)


PACKED = segments([(1, 5), (2, 1), (3, 7)], [(1, 13)])
PADDED = segments([(1, 9), (0, 4)], [(1, 4), (2, 3), (0, 6)])
LONG_PACKED = segments([(1, 100), (2, 57), (3, 90), (0, LONG - 247)], [(1, LONG - 1), (2, 1)])
ORDER = np.random.default_rng(5).permutation(13).astype(np.int32)[None]

MHA, GQA, MQA = (3, 3), (6, 2), (5, 1)

# name -> ((S, T, (H, G), K), what the mask says)
MASKS = {
    "causal, MHA": ((13, 13, MHA, 6), {}),
    "causal, GQA": ((13, 13, GQA, 7), {}),
    "causal, MQA": ((13, 13, MQA, 5), {}),
    "one token": ((1, 1, GQA, 4), {}),
    "exactly one block": ((QUERY_BLOCK, QUERY_BLOCK, GQA, 4), {}),
    "causal, long": ((LONG, LONG, GQA, 4), {}),
    "full": ((13, 13, GQA, 6), {"causal": False}),
    "full, long": ((LONG, LONG, MQA, 4), {"causal": False}),
    "window": ((13, 13, GQA, 6), {"window": 4}),
    "window, long": ((LONG, LONG, MHA, 4), {"window": 40}),
    "window wider than a block": ((LONG, LONG, MHA, 4), {"window": QUERY_BLOCK + 30}),
    "window on the past alone": ((13, 13, GQA, 6), {"window": 4, "causal": False}),
    "packed": ((13, 13, GQA, 6), {"q_segments": PACKED, "kv_segments": PACKED}),
    "padded": ((13, 13, GQA, 6), {"q_segments": PADDED, "kv_segments": PADDED}),
    "packed and padded, long": (
        (LONG, LONG, GQA, 4),
        {"q_segments": LONG_PACKED, "kv_segments": LONG_PACKED},
    ),
    "packed, window": ((13, 13, GQA, 6), {"q_segments": PADDED, "kv_segments": PADDED, "window": 3}),
    "packed, long window": (
        (LONG, LONG, MHA, 4),
        {"q_segments": LONG_PACKED, "kv_segments": LONG_PACKED, "window": 60},
    ),
    "prefix": ((13, 13, GQA, 6), {"prefix": np.array([6, 0], np.int32)}),
    "prefix, long": ((LONG, LONG, MHA, 4), {"prefix": np.array([150, 3], np.int32)}),
    "prefix, packed": (
        (13, 13, GQA, 6),
        {"prefix": np.array([3, 5], np.int32), "q_segments": PADDED, "kv_segments": PADDED},
    ),
    "any order": ((13, 13, GQA, 6), {"q_index": ORDER, "kv_index": ORDER}),
    "decode": ((1, 37, GQA, 6), {"q_index": decoding([36, 4], 1), "kv_index": np.arange(37)[None]}),
    "decode, places of keys left out": ((1, 37, GQA, 6), {"q_index": decoding([36, 0], 1)}),
    "several new tokens": ((3, 37, MQA, 6), {"q_index": decoding([30, 0], 3)}),
    "decode, long, window": ((2, LONG, GQA, 4), {"q_index": decoding([LONG - 2, 140], 2), "window": 50}),
    "cross": ((5, 11, GQA, 6), {"causal": False}),
    "cross, packed": (
        (5, 11, GQA, 6),
        {
            "causal": False,
            "q_segments": segments([(1, 2), (2, 3)], [(1, 4), (0, 1)]),
            "kv_segments": segments([(1, 8), (2, 3)], [(1, 9), (0, 2)]),
        },
    ),
}


def inputs(shape, rows=2):
    s, t, (h, g), k = shape
    rng = np.random.default_rng(0)
    sizes = ((rows, s, h, k), (rows, t, g, k), (rows, t, g, k), (rows, s, h, k))
    return tuple(rng.normal(size=size).astype(np.float32) for size in sizes)


def oracle(q, k, v, do, fields):
    """Output and gradients in float64 from the mask drawn in full."""
    b, s, t = q.shape[0], q.shape[1], k.shape[1]

    def places(given, n):
        return np.broadcast_to(np.arange(n) if given is None else given, (b, n))

    mask = build_mask(
        places(fields.get("q_index"), s),
        fields.get("q_segments"),
        key_index=places(fields.get("kv_index"), t),
        key_segment_ids=fields.get("kv_segments"),
        causal=fields.get("causal", True),
        window=fields.get("window"),
        prefix=fields.get("prefix"),
    )
    q, k, v, do = (np.float64(x) for x in (q, k, v, do))
    return attend(q, k, v, mask), *attend_backward(do, q, k, v, mask)


# LLVM's optimizer would take most of the time of these tests and none of it belongs to us
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def run(name, q, k, v, do, mask):
    """Output, dq, dk, dv."""
    out, pull = jax.vjp(lambda q, k, v: attention.get(name)(q, k, v, mask), q, k, v)
    return out, *pull(do.astype(out.dtype))


def make_mask(fields):
    return Mask(**{f: jnp.asarray(x) if isinstance(x, np.ndarray) else x for f, x in fields.items()})


def worthwhile(name, case):
    """The reference has no blocks: one long case tells as much as seven."""
    return name != "reference" or "long" not in case or case == "causal, long"


@pytest.mark.parametrize(
    ("case", "name"), [(c, n) for c in MASKS for n in attention.IMPLEMENTATIONS if worthwhile(n, c)]
)
def test_outputs_and_gradients_equal_the_oracle(case, name):
    shape, fields = MASKS[case]
    arrays = inputs(shape)
    for what, got, want in zip(
        ("out", "dq", "dk", "dv"), run(name, *arrays, make_mask(fields)), oracle(*arrays, fields), strict=True
    ):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=what)


@pytest.mark.parametrize("name", attention.IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["packed and padded, long", "decode"])
def test_bfloat16_stays_near_the_oracle(name, case):
    """The largest error over the largest entry: measured up to 0.003 for the reference, which computes in float32,
    and up to 0.009 for those that multiply in bfloat16 (whose steps are 2⁻⁸ = 0.004 wide)."""
    shape, fields = MASKS[case]
    rounded = tuple(jnp.asarray(x, jnp.bfloat16) for x in inputs(shape))
    want = oracle(*(np.asarray(x, np.float64) for x in rounded), fields)
    for what, got, exact in zip(
        ("out", "dq", "dk", "dv"), run(name, *rounded, make_mask(fields)), want, strict=True
    ):
        assert got.dtype == jnp.bfloat16
        error = np.abs(np.asarray(got, np.float64) - exact).max() / np.abs(exact).max()
        assert error < (0.006 if name == "reference" else 0.018), what


@pytest.mark.parametrize("name", attention.IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["packed", "packed and padded, long"])
def test_no_gradient_crosses_documents(name, case):
    """Exactly zero: from the loss of one document, nothing reaches queries, keys or values of another."""
    shape, fields = MASKS[case]
    q, k, v, do = inputs(shape)
    ids = fields["q_segments"]
    for document in (1, 2):
        mine = ids == document
        _, *grads = run(name, q, k, v, np.where(mine[..., None, None], do, 0), make_mask(fields))
        for grad in grads:
            assert np.all(np.asarray(grad)[~mine] == 0)
        assert np.any(np.asarray(grads[2])[mine] != 0)


def test_an_unknown_implementation_names_the_nearest():
    with pytest.raises(UserError, match="no attention implementation 'blockwize'. Did you mean 'blockwise'"):
        attention.get("blockwize")
