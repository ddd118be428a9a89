"""A mixture of experts spread over devices is the one of a single device, in a process of its own (expert_case.py)."""

import json

import pytest

pytestmark = [pytest.mark.devices, pytest.mark.newest]

CASES = [
    ({"ep": 4}, {"attention": "xla", "scan": True}),
    ({"ep": 2, "fsdp": 2}, {"attention": "blockwise", "scan": True, "remat": "full"}),
    ({"ep": 2, "tp": 2}, {"attention": "xla", "scan": True, "remat": "selective"}),
    ({"pp": 2, "ep": 2}, {"attention": "xla", "scan": True, "pipeline_parts": 2}),
]


def test_expert_parallelism_changes_nothing(run_python):
    """Packed documents, with the routers' initial weights and with all tokens sent to the same two experts. The same
    initial parameters to the bit; the loss within 1e-6; every gradient within 5e-5 (experts) or 1e-5 (others) and
    1e-4 of the leaf's largest entry; every gradient laid out like its parameter."""
    done = run_python("tests.parallel.expert_case", json.dumps(CASES), devices=4)
    found = json.loads(done.stdout)
    assert [got["devices"] for got in found] == [4] * 8
    for (shape, _), got in zip(CASES * 2, found, strict=True):
        assert got["split"] >= 3  # the experts' matrices at least
        assert got["initial"] == 0
        assert got["loss"] < 1e-6, shape
        for name, (largest, relative) in got["gradients"].items():
            assert largest < (5e-5 if name.endswith(("w_gate", "w_up", "w_down")) else 1e-5), (shape, name)
            assert relative < 1e-4, (shape, name)
        assert {name: pair for name, pair in got["shardings"].items() if pair[0] != pair[1]} == {}
