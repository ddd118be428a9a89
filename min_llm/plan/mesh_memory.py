"""Bytes on one device at the peak of a training step on a mesh.

What `memory` counts on one device, cut by the axes that cut it, and what a mesh adds. Per token and layer, with D the
model dimension and h·K, g·K and F the device's share of the widths of queries, keys and hidden units, a layer keeps for
its backward pass, in the compute dtype,

    2·D / tp + 2·D      inputs of the two norms, in pieces over tp, and their outputs, whole
    3·h·K + 2·g·K·cp    queries, attention's result twice, and keys and values of the whole sequence
    3·F                 gate, up and their product; ep · k · (3·F + 2·D) for a mixture with k experts a token, which has
                        room for every token of every device along ep

On top comes the largest of three moments:

    attention   its backward pass: six blocks of scores (blockwise) or the probabilities three times (XLA's), the
                layer's own pieces, and float32 gradients of the layer's feed-forward matrices, whole over fsdp until
                they are reduced
    mlp         hidden units of the layer and their gradients, its matrices gathered and their gradients
    loss        logits of a chunk and their gradient, float32

and all the time the gradients that are summed up, and those of the head and of the embedding table, whole. Unrolled
layers let XLA gather all parameters at the beginning and reduce all gradients at the end. A pipeline keeps the weights
of a stage once for every turn. How many there are of each was read from XLA's lists of live buffers (CPU, jaxlib 0.12);
bench/plan.py compares the total with `memory_analysis`, on meshes that were looked at meanwhile and on others. For GPUs
XLA fuses the loss (`memory.logit_bytes`) and gathers unrolled layers one by one; tests/acceptance/compiled.py compares.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from min_llm import platform
from min_llm.nn.cross_entropy import parts_on_mesh
from min_llm.plan import memory
from min_llm.plan.communication import gathers_table
from min_llm.plan.job import Job
from min_llm.plan.memory import BYTES, TrainingMemory
from min_llm.spec import Param, leaves

F32 = 4
SCORES = {
    "blockwise": 6,
    "xla": 3,
    "reference": 3,
}  # copies of scores alive in the backward pass; others keep none
GAPS = 0.04  # XLA lays buffers out with gaps between them: 3-12 % measured
KEY_BLOCK = 128  # keys that blockwise attention looks at once


def training(job: Job) -> TrainingMemory:
    """The memory of a step on the job's mesh; on one CPU what `memory.training` says, which knows our kernels."""
    on_cpu = platform.backend() == "cpu"
    if job.mesh.size == 1 and on_cpu:
        return memory.training(
            job.model, job.rows, job.seq_len, job.runtime, job.micro_batches, job.optimizer
        )
    scan, cut_in_parts = job.runtime.scan, job.micro_batches > 1
    parameters = F32 * sum(job.local(p) for _, p in leaves(job.spec))
    stack = F32 * sum(job.local(p) for name, p in leaves(job.spec) if name.startswith("layers."))
    layer = Layer.of(job)
    activations = job.layer_runs * layer.kept
    gathered = 0.0
    if not scan:
        # gradients grow while activations shrink; some matrices are there a second time, transposed
        activations = max(activations + layer.gradients, job.n_layers * layer.gradients)
        gathered = 1.5 * job.n_layers * layer.gathered if on_cpu else 0.0
    elif job.runtime.keep_gathered and job.mesh.fsdp > 1:
        gathered = job.layer_runs * layer.gathered
    ends = _ends(job) * (
        2 if cut_in_parts and job.mesh.fsdp > 1 else 1
    )  # gathered before the loop over micro-batches
    piece = job.part_tokens * job.model.dim * BYTES[job.runtime.dtype] / job.mesh.tp  # type: ignore[attr-defined]
    turns = (2 * job.ticks + job.parts) * piece if job.mesh.pp > 1 else 0.0
    if job.rounds > 1:
        turns += (
            job.ticks * stack / job.rounds
        )  # the loop picks them by number, so it keeps them for every turn
    elif job.moves:
        turns += 2 * stack  # in the order of the ranks, and its gradient
    one_stage = 2 * stack / job.rounds if job.mesh.pp > 1 else 0.0  # its gradients: of a turn, and their sum
    tokens = job.part_tokens * job.parts
    at_once = tokens * job.model.vocab_size // job.mesh.tp
    chunks = parts_on_mesh(at_once, job.seq_len // job.mesh.cp, job.runtime.logits_per_chunk)
    logits = at_once / chunks * memory.logit_bytes(job.runtime.dtype)
    summed = 2 * parameters if cut_in_parts else stack if scan else 0.0
    gradients, activations = summed + ends, activations + turns
    workspace = max(layer.attention + one_stage, layer.mlp + one_stage, logits)
    return TrainingMemory(
        parameters=parameters,
        gradients=gradients,
        optimizer=sum(
            job.local(p) / p.size * memory.optimizer_bytes(p, job.optimizer) for _, p in leaves(job.spec)
        ),
        activations=activations,
        gathered=gathered,
        workspace=workspace + GAPS * (gradients + activations + gathered + workspace),
        logits=logits,
    )


@dataclasses.dataclass(frozen=True)
class Layer:
    """Bytes of one layer on one device. kept: for the backward pass. attention, mlp: alive in their backward passes.
    gathered, gradients: of its matrices, whole over fsdp, in the compute dtype and in float32."""

    kept: float
    attention: float
    mlp: float
    gathered: float
    gradients: float

    @classmethod
    def of(cls, job: Job) -> Layer:
        cfg: Any = job.model
        tp, cp, runtime = job.mesh.tp, job.mesh.cp, job.runtime
        size = BYTES[runtime.dtype]
        token = job.part_tokens * size  # bytes of one value for every token
        queries, keys = (n * cfg.head_dim / tp for n in (cfg.n_heads, max(cfg.n_kv_heads, tp)))
        matrices = [p for p in job.layer if p.role == "matrix"]
        gated = sum(p.axes[-1] == "hidden" for p in matrices) == 2
        hidden, ups = cfg.hidden_dim / tp, 2 if gated else 1
        norms, units = 2 * cfg.dim / tp, (3 if gated else 2) * hidden
        moved, made = 3 * hidden + 3 * cfg.dim, ups * hidden
        if job.choices:
            rows = job.choices * job.mesh.ep  # of its experts, for each token
            units, made = rows * (3 * hidden + 2 * cfg.dim), rows * (2 * hidden + cfg.dim)
            moved = units + 3 * cfg.dim
        attention = norms + 2 * cfg.dim + 3 * queries + 2 * keys * cp
        attention += queries + keys if getattr(cfg, "qk_norm", False) else 0
        scores = _scores(job)
        kept = {
            "none": token * (attention + units)
            + (scores if runtime.attention in ("xla", "reference") else 0),
            "selective": token * (2 * cfg.dim / tp + queries + 2 * keys + made),
        }.get(runtime.remat, token * cfg.dim / tp)
        own = {p: job.local(p, "fsdp") for p in matrices}
        feed_forward = sum(n for p, n in own.items() if "hidden" in p.axes)
        return cls(
            kept=kept,
            attention=SCORES.get(runtime.attention, 0) * scores
            + token * (attention - norms + cfg.dim / tp + 2 * keys * (cp - 1))
            + feed_forward * F32,
            mlp=token * (units + moved) + feed_forward * (size + F32),
            gathered=_total(matrices, job) * size,
            gradients=_total(matrices, job) * F32,
        )


def _total(matrices: list[Param], job: Job) -> float:
    return sum(job.local(p, "fsdp") for p in matrices)


def _scores(job: Job) -> float:
    """Bytes of attention's scores, or of as many of them as are there at once."""
    cfg: Any = job.model
    queries = job.part_tokens * cfg.n_heads / job.mesh.tp
    if job.runtime.attention == "blockwise":
        return queries * min(KEY_BLOCK, job.seq_len) * F32
    keys: float = job.seq_len
    if job.mesh.cp == 1 and job.runtime.attention == "xla":
        keys = memory.attention_values(job.seq_len, "xla", getattr(cfg, "window", None))[1]
    return queries * keys * (F32 if job.runtime.attention == "reference" else BYTES[job.runtime.dtype])


def _ends(job: Job) -> float:
    """Bytes of the gradients of the embedding table, whole, and of the head, whole over fsdp."""
    ends = [p for name, p in leaves(job.spec) if not name.startswith("layers.")]
    tables = [p for p in ends if p.role == "embedding" and p.axes[0] == "vocab"]
    heads = [p for p in ends if p.role == "head"] or tables
    looked_up = sum(p.size if gathers_table(job, p) else job.local(p, "fsdp") for p in tables)
    return F32 * (looked_up + sum(job.local(p, "fsdp") for p in heads))
