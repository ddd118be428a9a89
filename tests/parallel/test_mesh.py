"""The models run unchanged on a mesh: 8 virtual devices against one, in processes of their own (mesh_case.py)."""

import json

import pytest

from min_llm import platform

pytestmark = pytest.mark.devices

LLAMA = [
    ({"fsdp": 8}, {"attention": "blockwise", "scan": True, "remat": "full"}),
    ({"fsdp": 2, "tp": 4}, {"attention": "xla", "scan": True}),  # there are two key-value heads
    ({"dp": 2, "fsdp": 2, "cp": 2}, {"attention": "reference", "scan": True, "remat": "selective"}),
    # a device has 4 rows of 8 places and half of 32 tokens: the loss takes four chunks
    ({"fsdp": 2, "cp": 2, "tp": 2}, {"attention": "xla", "keep_gathered": True, "logits_per_chunk": 128}),
    ({"cp": 4, "tp": 2}, {"context": "ring", "scan": True}),
    ({"tp": 8}, {"attention": "xla", "scan": True}),
    ({"pp": 4, "dp": 2}, {"attention": "blockwise", "scan": True, "pipeline_parts": 4}),
    ({"pp": 2, "fsdp": 2, "tp": 2}, {"attention": "xla", "pipeline_parts": 4}),
    ({"pp": 2, "dp": 4}, {"attention": "xla", "scan": True, "pipeline_parts": 2, "pipeline_rounds": 2}),
]
# the last stage, or the last and the first, have a layer less: 4 x 2 - 2, 2 x 2 rounds x 2 - 2, 4 x 2 - 1
SIX = [
    ({"pp": 4, "dp": 2}, {"attention": "xla", "scan": True, "pipeline_parts": 4}),
    (
        {"pp": 2, "fsdp": 2, "tp": 2},
        {"attention": "xla", "scan": True, "pipeline_parts": 2, "pipeline_rounds": 2},
    ),
]
SEVEN = [({"pp": 4, "fsdp": 2}, {"attention": "blockwise", "pipeline_parts": 4, "remat": "full"})]
GPT2 = [
    ({"fsdp": 2, "cp": 2, "tp": 2}, {"attention": "xla", "scan": True}),
    ({"pp": 2, "fsdp": 2, "tp": 2}, {"attention": "xla", "scan": True, "pipeline_parts": 2}),
]
# the oldest pair runs a few, for the time it takes
RUN = LLAMA if platform.jaxlib_version() >= (0, 12) else [LLAMA[1], LLAMA[4], LLAMA[7]]


@pytest.mark.parametrize(
    ("family", "cases", "layers"),
    [
        ("llama", RUN, 4),
        ("gpt2", GPT2, 4),
        pytest.param("llama", SIX, 6, marks=pytest.mark.newest),
        ("gpt2", SEVEN, 7),
    ],
)
def test_a_mesh_changes_nothing(family, cases, layers, run_python):
    """Packed batch. The same initial parameters to the bit; the loss within 1e-6 and every gradient within 1e-5,
    and within 1e-4 of its largest entry, of those of one device (one that is 0 but for rounding has no such scale);
    every gradient laid out like its parameter."""
    done = run_python(
        "tests.parallel.mesh_case", family, *map(json.dumps, (cases, {"n_layers": layers})), devices=8
    )
    for (shape, _), got in zip(cases, json.loads(done.stdout), strict=True):
        assert got["devices"] == 8
        if shape != {"tp": 8}:
            assert got["split"] >= 8  # every matrix lives in pieces
        assert got["initial"] == 0
        assert got["loss"] < 1e-6
        wrong = {
            n: d for n, d in got["gradients"].items() if not (d[0] < 1e-5 and (d[1] < 1e-4 or d[0] < 1e-10))
        }
        assert wrong == {}, shape
        assert {name: pair for name, pair in got["shardings"].items() if pair[0] != pair[1]} == {}
