"""What travels, and memory on a mesh: against XLA's compiled programs, and by hand."""

import dataclasses
import json

import pytest

from min_llm import platform
from min_llm.models import llama, mixtral
from min_llm.nn.runtime import Runtime
from min_llm.parallel.mesh import MeshConfig
from min_llm.plan import communication, memory, mesh_memory, step
from min_llm.plan.job import Job

CFG = llama.Config(n_layers=2, dim=64, n_heads=8, n_kv_heads=4, hidden_dim=96, vocab_size=512, max_seq_len=64)
LAYER = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3
NEW = platform.jaxlib_version() >= (0, 12)


def job(mesh, rows=16, micro_batches=1, **runtime):
    runtime = {"scan": True, **runtime}
    return Job(CFG, rows, 64, Runtime(**runtime), MeshConfig(**mesh), micro_batches)


def sums(job, what):
    """{(kind, axis): total bytes} of what is called so."""
    return {(t.kind, t.axis): t.total for t in communication.transfers(job) if t.what == what}


# Exact but for scalars (the loss, the norm of the gradient) and the integers of a mask. Over all cases of bench/plan.py
# traffic is within 2 % but for three things that XLA decides: on meshes with both pp and tp it moves embedding and head
# between the ranks, under tp it looks up a table with many more entries than tokens in ways of its own, and a stage of
# one layer is gathered once for all turns. With jaxlib 0.10 the first two cases are the same, but a pipeline gathers
# activations over dp and takes twice the memory, so there it is not compared.
@pytest.mark.devices
def test_traffic_and_memory_are_what_xla_plans(run_python):
    cases = ("unseen-fsdp-tp", "fsdp-cp-tp", *(["unseen-pp-dp"] if NEW else []))
    done = run_python("tests.plan.mesh_case", *cases)
    for name, case in json.loads(done.stdout).items():
        planned, held = case["memory"]
        assert planned == pytest.approx(held, rel=0.10), name
        for key, (expected, counted) in case["traffic"].items():
            assert expected == pytest.approx(counted, rel=0.01, abs=4096), (name, key)
    assert set(case["traffic"]) == (
        {"reduce dp", "reduce pp", "shift pp"}
        if NEW
        else {f"{kind} {axis}" for kind in ("gather", "reduce") for axis in ("fsdp", "cp", "tp")}
    )


def test_fsdp_gathers_twice_or_once_and_scatters_float32():
    twice, once = (job({"fsdp": 8}, dtype="bfloat16", keep_gathered=keep) for keep in (False, True))
    assert sums(twice, "parameters") == {("gather", "fsdp"): 2 * 2 * LAYER * 2}
    assert sums(once, "parameters") == {("gather", "fsdp"): 2 * LAYER * 2}
    assert sums(twice, "gradients") == sums(once, "gradients") == {("scatter", "fsdp"): 2 * LAYER * 4}
    assert sums(job({"fsdp": 8}, micro_batches=2), "gradients") == {("scatter", "fsdp"): 2 * 2 * LAYER * 4}


def test_each_device_sends_what_a_ring_sends():
    made = communication.transfers(job({"dp": 2, "fsdp": 4}))
    sent = {(t.what, t.axis): t.sent for t in made}
    assert sent["gradients", "fsdp"] == 3 / 4 * 2 * LAYER * 4
    assert sent["gradients", "dp"] == 2 * 1 / 2 * 2 * LAYER * 4 / 4  # the pieces, there and back
    assert communication.by_axis(made)["dp"] == sum(t.sent for t in made if t.axis == "dp")


def test_tensor_parallel_traffic_is_the_residual_stream():
    """Two blocks: 2 gathers and 2 sums forward, 2 gathers and 5 sums backward; recomputing adds 2 and 1."""
    stream = 16 * 64 * 64 * 4
    plain, full = job({"tp": 4}), job({"tp": 4}, remat="full")
    assert sums(plain, "activations") == {("gather", "tp"): 2 * 4 * stream, ("scatter", "tp"): 2 * 2 * stream}
    assert sums(plain, "gradients of activations") == {("sum", "tp"): 2 * 5 * stream}
    assert sums(full, "activations") == {("gather", "tp"): 2 * 6 * stream, ("scatter", "tp"): 2 * 3 * stream}


def test_context_parallel_traffic_does_not_grow_with_query_heads():
    """L3-3.7: all keys and values of the device's sequences, whatever the queries."""
    size = 2 * 16 * 64 * 4 * 8 * 4  # keys and values, rows, places, heads, width, bytes
    assert sums(job({"cp": 4}), "keys and values") == {("gather", "cp"): 2 * size}
    more = dataclasses.replace(CFG, n_heads=16, head_dim=8)
    assert sums(dataclasses.replace(job({"cp": 4}), model=more), "keys and values") == {
        ("gather", "cp"): 2 * size
    }


def test_tokens_go_to_their_experts_and_back_both_ways():
    """All devices along ep have room for all tokens. Experts are not summed over ep, everything else is."""
    moe = mixtral.Config(**{**vars(CFG), "n_experts": 8, "experts_per_token": 2})
    made = dataclasses.replace(job({"ep": 4, "tp": 2}), model=moe)
    arrived = 16 // 4 * 64 * 64 * 4 * 4  # rows, places, width, bytes, devices
    assert sums(made, "tokens") == {
        ("exchange", "ep"): 2 * 4 * arrived / 2,
        ("gather", "tp"): 2 * 2 * arrived,
        ("scatter", "tp"): 2 * 2 * arrived,
    }
    full = dataclasses.replace(made, runtime=Runtime(scan=True, remat="full"))
    assert sums(full, "tokens")["exchange", "ep"] == 2 * 5 * arrived / 2
    attention = (LAYER - 64 * 96 * 3) // 2
    assert sums(made, "gradients") == {("sum", "ep"): 2 * (attention + 64 * 8) * 4}
    # of eight experts a token multiplies two, wherever they are
    one = dataclasses.replace(made, mesh=MeshConfig(dp=4, tp=2))
    assert step.device_flops(made) == step.device_flops(one)
    dense = dataclasses.replace(one, model=dataclasses.replace(CFG, hidden_dim=2 * 96))
    routers = 2 * one.part_tokens * 6 * 64 * 8
    assert step.device_flops(one) == step.device_flops(dense) + routers


def test_a_pipeline_passes_parts_on_in_every_turn_and_its_bubble_is_the_papers():
    made = job({"pp": 2}, pipeline_parts=4)
    assert made.ticks == 5
    assert made.layer_runs == 5  # one layer a rank
    assert sums(made, "activations and their gradients") == {("shift", "pp"): 2 * 5 * 4 * 64 * 64 * 4}
    # L3-3.5: PP = 4, M = 8, one and two stages a rank
    four = Job(dataclasses.replace(CFG, n_layers=8), 16, 64, Runtime(pipeline_parts=8), MeshConfig(pp=4))
    twice = dataclasses.replace(four, runtime=Runtime(pipeline_parts=8, pipeline_rounds=2))
    assert (four.bubble, twice.bubble) == (0.375, 0.1875)


def test_one_device_sends_nothing_and_needs_what_it_needed():
    made = job({})
    assert communication.transfers(made) == []
    assert mesh_memory.training(made) == memory.training(CFG, 16, 64, made.runtime)


def test_every_axis_takes_its_share_of_the_state():
    whole = mesh_memory.training(job({})).optimizer
    assert mesh_memory.training(job({"dp": 8})).optimizer == whole
    norms = 5 * 64 * 8  # are not cut
    for mesh in ({"fsdp": 8}, {"fsdp": 2, "tp": 4}):
        assert mesh_memory.training(job(mesh)).optimizer == pytest.approx((whole - norms) / 8 + norms)
    # 4 key-value heads are not cut by 8 devices
    kept = 2 * 2 * 64 * 32 * 8
    assert mesh_memory.training(job({"tp": 8})).optimizer == pytest.approx(
        (whole - norms - kept) / 8 + norms + kept
    )
