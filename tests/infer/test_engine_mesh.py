"""The engine on a tensor-parallel mesh answers as on one device."""

import json

import numpy as np
import pytest

pytestmark = [pytest.mark.devices, pytest.mark.newest]


def test_a_mesh_changes_no_token(run_python):
    """Heads cut in eight, with two key-value heads, which are repeated, and with eight, which are cut; in int8, too."""
    *pairs, refused = json.loads(run_python("tests.infer.mesh_case", devices=8).stdout)
    for one, got in pairs:
        assert got["compiles"] == 0
        np.testing.assert_allclose(got["embedded"], one["embedded"], atol=1e-5)
        for number, answer in one["answers"].items():
            assert got["answers"][number]["tokens"] == answer["tokens"]
            np.testing.assert_allclose(got["answers"][number]["logprobs"], answer["logprobs"], atol=1e-4)
    assert "tensor-parallel" in refused
