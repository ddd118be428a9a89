"""apps/torch_parallel: every way of sharing the work among four gloo processes, against one process and JAX.

One launch runs all of them one after the other, because importing PyTorch takes longer than they do.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import textwrap
import time

import numpy as np
import pytest

from apps.torch_parallel import export
from peers import client
from tests.toys import random_weights

pytestmark = pytest.mark.peers

MODES = (
    "fsdp",
    "fsdp_keep",
    "tp",
    "tp_sequence",
    "fsdp_tp",
    "gpipe",
    "1f1b",
    "interleaved",
    "fsdp_1f1b",
    "llama3",
)
LAYERS = export.CONFIG.n_layers


def launch(processes, *arguments, limit):
    """What torchrun and its processes, in the peers' environment, print, and its exit status. After `limit` seconds
    torchrun is asked to stop, since only it knows its processes, and the test fails with what they said."""
    python = client.interpreter()
    if python is None:
        pytest.skip(client.MISSING)
    torchrun = (python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    with subprocess.Popen(
        [str(word) for word in (*torchrun, *arguments)],
        cwd=client.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(client.ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        try:
            said, _ = running.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGTERM)
            try:
                said, _ = running.communicate(timeout=20)
            finally:
                running.kill()
            pytest.fail(f"no end after {limit} s; the processes said:\n{said}")
    return said, running.returncode


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{"jax": case file, mode: its file}: one packed batch with uneven weights, parameters none of which is 0 or 1."""
    if client.interpreter() is None:
        pytest.skip(client.MISSING)
    folder = tmp_path_factory.mktemp("torch_parallel")
    params = random_weights(export.CONFIG, std=0.15)
    batch = export.random_batch(export.CONFIG)
    uneven = np.random.default_rng(1).uniform(0, 2, batch.weights.shape).astype(np.float32)
    export.write(
        folder / "case.npz", export.CONFIG, params, dataclasses.replace(batch, weights=batch.weights * uneven)
    )
    said, status = launch(
        4, "-m", "apps.torch_parallel.train", "--case", folder / "case.npz", "--out", folder, "--mode", "one", *MODES,
        limit=120,
    )  # fmt: skip
    print(said)
    assert status == 0, said
    return {"jax": np.load(folder / "case.npz")} | {
        mode: np.load(folder / f"{mode}.npz") for mode in ("one", *MODES)
    }


def gradients(file):
    return {name: file[name] for name in file.files if name.startswith("gradients/")}


def unlike(these, those):
    """The leaves that differ by 1e-5 or more, or are not finite, and by how much."""
    assert these.keys() == those.keys()
    apart = {name: float(np.abs(these[name] - those[name]).max()) for name in these}
    return {name: difference for name, difference in apart.items() if not difference < 1e-5}


def test_the_case_has_documents_padding_and_gradients_that_matter(results):
    case = results["jax"]
    segments = case["batch/segment_ids"]
    assert segments.shape == (8, 32) and segments.max() > 1 and segments.min() == 0
    assert all(np.abs(g).max() > 1e-3 for g in gradients(case).values())
    assert len(gradients(case)) == 9 * LAYERS + 3


@pytest.mark.parametrize("mode", ["one", *MODES])
def test_loss_and_gradients_equal_those_of_jax(results, mode):
    assert abs(results[mode]["losses"][0] - results["jax"]["loss"]) < 1e-5
    assert unlike(gradients(results[mode]), gradients(results["jax"])) == {}
    assert results[mode]["difference"] < 1e-5  # every process has looked at its own


@pytest.mark.parametrize("mode", MODES)
def test_sharing_the_work_changes_nothing(results, mode):
    """The loss within 1e-6 and every gradient within 1e-5 of one process. Adam divides a gradient by its size, which
    makes round-off visible: after three updates the loss is compared, within 1e-4."""
    one, shared = results["one"], results[mode]
    assert abs(shared["losses"][0] - one["losses"][0]) < 1e-6
    assert unlike(gradients(shared), gradients(one)) == {}
    assert np.abs(shared["losses"] - one["losses"]).max() < 1e-4
    assert shared["losses"][-1] < shared["losses"][0] - 0.01


UNITS = LAYERS + 1  # what FSDP gathers at a time: a layer; the embedding, the final norm and the head
TALK = {
    "one": {},
    # a unit is gathered for each pass, or once for both (Llama 3); its gradient is scattered once
    "fsdp": {"all_gather": 2 * UNITS, "reduce_scatter": UNITS},
    "fsdp_keep": {"all_gather": UNITS, "reduce_scatter": UNITS},
    # Megatron's two sums a layer and pass, one after the embedding and one before the head; the logits
    "tp": {"all_reduce": 4 * LAYERS + 2, "all_gather": 1},
    # each sum becomes a reduce-scatter and an all-gather, of which the backward pass is the other
    "tp_sequence": {"all_gather": 4 * LAYERS + 3, "reduce_scatter": 4 * LAYERS + 2},
    "fsdp_tp": {"all_gather": 2 * UNITS + 1, "reduce_scatter": UNITS, "all_reduce": 4 * LAYERS + 2},
    # a stage in the middle: four micro-batches, forward and backward; two stages have twice as much to say
    "gpipe": {"send": 8, "recv": 8},
    "1f1b": {"send": 8, "recv": 8},
    "interleaved": {"send": 16, "recv": 16},
    # three layers and the rest of a stage, once for all micro-batches
    "fsdp_1f1b": {"all_gather": 4, "reduce_scatter": 4, "send": 4, "recv": 4},
}


@pytest.mark.parametrize("mode", TALK)
def test_processes_talk_as_often_as_they_must(results, mode):
    """In a forward and backward pass after the first; the process that talks most."""
    assert json.loads(str(results[mode]["talk"])) == TALK[mode]


FAILING = textwrap.dedent("""
    import os, sys, time
    import torch
    import torch.distributed as dist
    from apps.torch_parallel.processes import deadline, joined

    what, timeout, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    with joined(timeout):
        deadline(seconds)
        dist.barrier()
        if dist.get_rank() == 1:
            os._exit(3) if what == "dies" else time.sleep(600)
        if what == "waits elsewhere":
            time.sleep(600)
        dist.all_reduce(torch.ones(1))
""")


@pytest.mark.parametrize(
    ("what", "timeout", "seconds", "reason"),
    [
        ("dies", 30, 50, "exitcode *: 3"),
        ("hangs", 10, 50, "Timed out waiting 10000ms"),
        ("waits elsewhere", 30, 3, r"Timeout \(0:00:03\)!"),
    ],
)
def test_a_process_that_dies_or_hangs_ends_them_all_with_a_reason(tmp_path, what, timeout, seconds, reason):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    began = time.monotonic()
    said, status = launch(2, script, what, timeout, seconds, limit=60)
    assert status != 0 and time.monotonic() - began < 60
    assert re.search(reason, said), said
