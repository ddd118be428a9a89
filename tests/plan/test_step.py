"""Seconds of a step: against measured ones, Table 4 of the paper, links and networks, and proposals of meshes."""

import dataclasses

import pytest

from bench import gpu, results
from bench.train import CASES, model_of
from min_llm import models
from min_llm.config import UserError, build
from min_llm.models import llama
from min_llm.nn.runtime import Runtime
from min_llm.parallel.mesh import MeshConfig, coordinates
from min_llm.plan import search, step
from min_llm.plan.flops import flops_per_token
from min_llm.plan.hardware import Hardware, named
from min_llm.plan.job import Job
from min_llm.plan.published import TABLE_4

CFG = llama.Config(n_layers=4, dim=512, n_heads=8, n_kv_heads=4, vocab_size=4096, max_seq_len=1024)
BF16 = Runtime("bfloat16", "cudnn", scan=True)


def measured_cases():
    """(name, job, hardware, measured tokens/s) of training steps in the result files. The CPU's measured peak is what
    its MFU was divided by; its memory moves about 20 GB/s."""
    rows = {r["id"]: r for r in results.read("train", "xeon-amx-2c") + results.read("gpu", "nvidia-h200")}
    for name in ("b", "c"):
        cfg = build(models.ModelConfig, {"family": "llama"} | model_of("llama", CASES[name]))
        for dtype, attention, speed in (
            ("float32", "xla", f"train/{name}/tokens_per_second/float32/transformers-eager"),
            ("bfloat16", "amx", f"train/{name}/tokens_per_second/best"),
        ):
            reached = rows[speed]["ours"]
            flops = flops_per_token(cfg, CASES[name].length).training
            peak = reached * flops / rows[f"train/{name}/mfu/{dtype}"]["ours"]
            on = Hardware("cpu", peak, 20e9, 0, flops_float32=peak)
            job = Job(cfg, CASES[name].rows, CASES[name].length, Runtime(dtype, attention))
            yield f"{name}-{dtype}", job, on, reached
    for shape in gpu.shapes(smoke=False):
        job = Job(gpu.config(shape), shape.rows, shape.length, Runtime("bfloat16", "cudnn"))
        reached = rows[f"gpu/train-{shape.name.lower()}/tokens_per_second/bfloat16"]["ours"]
        yield f"h200-{shape.name}", job, named("h200"), reached


@pytest.mark.parametrize("case", [*measured_cases()], ids=lambda case: case[0])
def test_the_predicted_step_is_within_twice_the_measured_one(case):
    _, job, on, reached = case
    assert reached / 2 < step.predict(job, on).tokens_per_second < reached * 2


@pytest.mark.parametrize("row", TABLE_4, ids=lambda row: f"{row.gpus}-{row.seq_len}")
def test_table_4_of_the_llama_3_paper(row):
    assert row.mesh.size == row.gpus == row.tp * row.cp * row.pp * row.dp
    assert row.tokens == 16_777_216
    assert row.computed_mfu == pytest.approx(row.mfu, abs=0.7)


def test_sixteen_gpus_stand_where_the_paper_says():
    """Section 3.3.2, Figure 5: with TP, CP, PP and DP of 2 each, GPU 0 shares its group with GPU 1 (TP), 2 (CP), 4 (PP)
    and 8 (DP)."""
    mesh = MeshConfig(fsdp=2, pp=2, cp=2, tp=2)
    home = coordinates(mesh, 0)
    for device, axis in ((1, "tp"), (2, "cp"), (4, "pp"), (8, "fsdp")):
        assert coordinates(mesh, device) == home | {axis: 1}


def test_rings_leave_through_every_adapter_they_pass():
    h100 = named("h100")
    assert h100.sends(8, 1) == 450e9
    assert h100.sends(2, 4) == 450e9
    assert h100.sends(16, 8) == 50e9  # one member a machine
    assert h100.sends(16, 2) == 4 * 50e9
    assert h100.sends(64, 1) == 400e9
    with pytest.raises(UserError, match="no network is listed"):
        named("rtx-4090").sends(16, 1)


def test_terms_add_up_and_the_largest_bounds():
    on = Hardware("toy", 1e12, 1e11, 0, links=1e9, near=8)
    alone = step.predict(Job(CFG, 8, 1024, BF16), on)
    assert alone.axes == {}
    assert alone.seconds == alone.compute + alone.memory
    assert alone.bound == "compute"
    assert alone.mfu == pytest.approx(alone.model_flops / (alone.seconds * 1e12))
    tp = step.predict(Job(CFG, 8, 1024, BF16, MeshConfig(tp=4)), on)
    assert tp.bound == "tp"
    assert tp.seconds == tp.compute + tp.memory + tp.axes["tp"]  # waited for
    fsdp = step.predict(Job(CFG, 8, 16, BF16, MeshConfig(fsdp=8)), on)
    assert fsdp.seconds == fsdp.axes["fsdp"] > fsdp.compute + fsdp.memory  # beside the rest, and longer
    assert tp.compute == pytest.approx(alone.compute / 4)
    again = step.predict(Job(CFG, 8, 1024, dataclasses.replace(BF16, remat="full")), on)
    assert alone.flops < again.flops < 4 / 3 * alone.flops
    assert again.model_flops == alone.model_flops  # MFU does not count what is computed again


def test_idle_turns_take_time():
    job = Job(CFG, 16, 256, dataclasses.replace(BF16, pipeline_parts=4), MeshConfig(pp=4))
    head = 6 * job.tokens * CFG.dim * CFG.vocab_size
    without = dataclasses.replace(job, mesh=MeshConfig(), runtime=BF16)
    layers = step.device_flops(without) - head
    assert step.device_flops(job) - head == pytest.approx(layers / 4 * (1 + job.bubble))


def test_virtual_devices_share_the_machine():
    on = Hardware("cpu", 8e11, 1.6e10, 8 * 10**9, flops_float32=8e11, links=8e9, near=2**30, shared=True)
    one = on.among(8)
    assert (one.flops_float32, one.bandwidth, one.memory, one.links) == (1e11, 2e9, 10**9, 1e9)
    assert named("h100").among(8) == named("h100")
    runtime = Runtime(scan=True)
    whole = step.predict(Job(CFG, 8, 256, runtime), on)
    assert step.predict(Job(CFG, 8, 256, runtime, MeshConfig(dp=8)), on).compute == pytest.approx(
        whole.compute
    )


def test_proposals_fit_can_be_cut_and_are_sorted():
    job = Job(CFG, 64, 1024, BF16)
    found, too_large = search.propose(job, named("h100"), 8)
    assert too_large == 0
    seconds = [p.step.seconds for p in found]
    assert seconds == sorted(seconds)
    shapes = [tuple(p.job.mesh.shape.values()) for p in found]
    assert len(set(shapes)) == len(shapes)
    assert all(p.job.mesh.size == 8 for p in found)
    assert (1, 1, 1, 1, 1, 8) in shapes  # four key-value heads on eight devices: each has two
    assert not [s for s in shapes if s[2] == 8]  # four layers do not make eight stages
    assert found[0].job.mesh.tp == 1  # a small model gains nothing by waiting


def test_a_small_memory_takes_micro_batches_and_then_nothing():
    job = Job(CFG, 64, 1024, BF16)
    roomy, _ = search.propose(job, Hardware("toy", 1e14, 1e12, 10**11, links=1e11, near=8), 8)
    tight, some = search.propose(job, Hardware("toy", 1e14, 1e12, 6 * 10**8, links=1e11, near=8), 8)
    none, all_of_them = search.propose(job, Hardware("toy", 1e14, 1e12, 10**7, links=1e11, near=8), 8)
    assert {p.job.micro_batches for p in roomy} == {1}
    assert max(p.job.micro_batches for p in tight) > 1
    assert all(p.memory.total <= 0.9 * 6e8 for p in tight)
    assert (none, all_of_them) == ([], len(roomy))
    assert len(tight) + some == len(roomy)
