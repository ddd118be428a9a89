"""Which collectives the compiled gradient of a Llama has on each mesh, counted in XLA's text (collectives_case.py).

XLA's CPU backend has no reduce-scatter of its own for explicit shardings: it writes all-reduce and a slice, and joins
the all-reduces of gradients. What comes out of shard_map (context parallelism) is as written.
"""

import json

import pytest

pytestmark = [pytest.mark.devices, pytest.mark.newest]

LAYERS = {"n_layers": 4}
FEW = {"n_layers": 2}
CASES = {
    "dp": ({"dp": 8}, {}, LAYERS),
    "fsdp": ({"fsdp": 8}, {}, LAYERS),
    "fsdp, kept": ({"fsdp": 8}, {"keep_gathered": True}, LAYERS),
    "fsdp, scanned": ({"fsdp": 8}, {"scan": True}, LAYERS),
    "tp": ({"tp": 8}, {}, LAYERS),
    "tp, half": ({"tp": 8}, {}, FEW),
    "cp": ({"cp": 8}, {}, LAYERS),
    "cp, half": ({"cp": 8}, {}, FEW),
    "ring": ({"cp": 8}, {"context": "ring"}, FEW),
    "pp": ({"pp": 4, "dp": 2}, {"pipeline_parts": 4}, LAYERS),
}
PRODUCTS = 7  # of a layer


@pytest.fixture(scope="module")
def counted(run_python):
    done = run_python("tests.parallel.collectives_case", json.dumps(list(CASES.values())), devices=8)
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


def kinds(counts):
    return {kind for kind, n in counts.items() if n}


def test_data_parallel_only_reduces(counted):
    assert kinds(counted["dp"]) == {"all-reduce"}


def test_fsdp_gathers_every_parameter_before_each_use(counted):
    """Forward and backward: the products of the layers; head and embedding once."""
    assert counted["fsdp"]["all-gather"] == 2 * 4 * PRODUCTS + 2
    assert counted["fsdp, scanned"]["all-gather"] == 2 * PRODUCTS + 2
    assert kinds(counted["fsdp"]) == {"all-gather", "all-reduce"}


def test_keeping_gathered_parameters_halves_the_gathering_of_the_layers(counted):
    assert counted["fsdp, kept"]["all-gather"] == 4 * PRODUCTS + 2


def test_tensor_parallel_gathers_and_reduces_twice_a_layer_and_direction(counted):
    """All-gather before and (all-)reduce after each of the two blocks, forward and backward (Megatron with sequence
    parallelism); one more all-reduce a layer for the gradients of the norms, whose tokens are split over tp."""
    whole, half = counted["tp"], counted["tp, half"]
    assert whole["all-gather"] - half["all-gather"] == 2 * 4
    assert whole["all-reduce"] - half["all-reduce"] == 2 * (4 + 1)


def test_context_parallel_gathers_keys_and_values(counted):
    """Two all-gathers a layer, whose gradients are reduce-scatters; places and documents are gathered once."""
    whole, half = counted["cp"], counted["cp, half"]
    assert whole["all-gather"] == 2 * 4 + 2
    assert whole["reduce-scatter"] == 2 * 4
    assert half["reduce-scatter"] == 2 * 2


def test_a_ring_passes_instead_of_gathering(counted):
    """Keys, values, places and documents forward; the gradients of keys and values backward: in loops, so that each
    counts once a layer."""
    assert kinds(counted["ring"]) == {"all-reduce", "collective-permute"}
    assert counted["ring"]["collective-permute"] == 2 * (4 + 2)


def test_a_pipeline_passes_activations_on_and_gradients_back(counted):
    """And gathers nothing (the older XLA gathers rows of the batch inside the pipeline: slow, but right)."""
    assert counted["pp"]["collective-permute"] == 2
    assert counted["pp"]["all-gather"] == 0
