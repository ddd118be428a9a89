"""The models run unchanged on a mesh: 8 virtual devices against one, in processes of their own (mesh_case.py)."""

import json

import pytest

pytestmark = pytest.mark.devices

CASES = [
    ({"dp": 2, "fsdp": 2, "tp": 2}, {"attention": "xla", "scan": True}),
    ({"fsdp": 8}, {"attention": "blockwise", "scan": True, "remat": "full"}),
]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_mesh_changes_nothing(family, run_python):
    """Packed batch. The same initial parameters to the bit; the loss within 1e-6 and every gradient within 1e-5 of
    those of one device; every gradient laid out like its parameter."""
    done = run_python("tests.parallel.mesh_case", family, json.dumps(CASES), devices=8)
    for got in json.loads(done.stdout):
        assert got["devices"] == 8
        assert got["split"] >= 8  # every matrix lives in pieces
        assert got["initial"] == 0
        assert got["loss"] < 1e-6
        assert {name: d for name, d in got["gradients"].items() if not d < 1e-5} == {}
        assert {name: pair for name, pair in got["shardings"].items() if pair[0] != pair[1]} == {}
