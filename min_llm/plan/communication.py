"""What one device sends and receives in a training step, by axis of the mesh, from the spec.

What travels for N values on an axis of n devices, in bytes that each device sends (rings, as in NCCL and XLA):

    gather    every device comes to hold all N             (n − 1) / n · N
    scatter   sums, of which every device keeps its piece  (n − 1) / n · N
    sum       sums that every device keeps (all-reduce)    2 · (n − 1) / n · N
    shift     to the neighbour                             N
    exchange  a part for every device (all-to-all)         (n − 1) / n · N

By axis, with P the bytes of the residual stream of one part in the compute dtype, whole over tp (nn.sharded,
nn.context and nn.pipeline are what is counted here):

    fsdp   parameters, gathered in the compute dtype for the forward and again for the backward pass (once where they
           are kept); float32 gradients, scattered
    dp, ep, cp    float32 gradients of the pieces, summed (of experts not over ep, which cuts them)
    ep     rows of a mixture's tokens to their experts and back, forward and backward: P for every device along ep, the
           room that nn.moe has for the worst case
    cp     keys and values, gathered; their gradients, scattered
    tp     a layer gathers P for each block, forward, and again for the gradient of each block's last product; it sums P
           for each block's last product forward and for each other product backward. Rematerialisation repeats what
           is forward. A mixture gathers what arrived over ep, and sums it forward and backward
    pp     P from stage to stage, in every turn and both ways; the result of all parts and its gradient

tests/plan compares this with the collectives in XLA's compiled programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from min_llm import platform
from min_llm.plan.job import Job, cut
from min_llm.plan.memory import BYTES
from min_llm.spec import Param, leaves

Kind = Literal["gather", "scatter", "sum", "shift", "exchange"]
SENT = {"gather": 1, "scatter": 1, "exchange": 1, "sum": 2}
F32 = 4


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Something that travels `times` times a step. bytes: the whole, what a gather makes and a reduction takes."""

    what: str
    kind: Kind
    axis: str
    devices: int
    bytes: float
    times: int

    @property
    def total(self) -> float:
        return self.bytes * self.times

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step."""
        share = 1 if self.kind == "shift" else SENT[self.kind] * (self.devices - 1) / self.devices
        return share * self.total


def transfers(job: Job) -> list[Transfer]:
    """All that travels in one step, apart from what is smaller than a token a row."""
    made = (*_parameters(job), *_tensor(job), *_experts(job), *_context(job), *_pipeline(job), *_ends(job))
    return [t for t in made if t.devices > 1 and t.total]


def _transfer(job: Job, what: str, kind: Kind, axis: str, size: float, times: int) -> Transfer:
    return Transfer(what, kind, axis, job.mesh.shape[axis], size, times * job.micro_batches)


def _parameters(job: Job) -> Iterator[Transfer]:
    """Matrices of the layers and their gradients; gradients of norms and biases."""
    matrices = [p for p in job.layer if p.role == "matrix"]
    vectors = [p for p in job.layer if p.role != "matrix"]
    whole = sum(job.local(p, "fsdp") for p in matrices)
    # Unrolled, with nothing recomputed, both passes are one program and XLA's CPU backend gathers once for both.
    one_program = not job.runtime.scan and job.runtime.remat == "none" and job.mesh.pp == 1
    once = job.runtime.keep_gathered or (one_program and platform.backend() == "cpu")
    size = whole * BYTES[job.runtime.dtype]
    yield _transfer(job, "parameters", "gather", "fsdp", size, (1 if once else 2) * job.layer_runs)
    yield from _gradients(job, "gradients", matrices, job.layer_runs)
    for axis in ("dp", "fsdp", "ep", "cp", "tp"):
        size = sum(job.local(p) for p in vectors if axis not in cut(p, job.mesh))
        yield _transfer(job, "gradients of norms and biases", "sum", axis, size * F32, job.layer_runs)


def _gradients(job: Job, what: str, params: list[Param], times: int) -> Iterator[Transfer]:
    """Sums over the batch: scattered over fsdp, then the pieces over the other axes."""
    whole = sum(job.local(p, "fsdp") for p in params)
    yield _transfer(job, what, "scatter", "fsdp", whole * F32, times)
    for axis in ("dp", "ep", "cp"):
        pieces = sum(job.local(p) for p in params if axis not in cut(p, job.mesh))
        yield _transfer(job, what, "sum", axis, pieces * F32, times)


def _tensor(job: Job) -> Iterator[Transfer]:
    """Activations over tp."""
    cfg: Any = job.model
    size = BYTES[job.runtime.dtype]
    stream, runs = job.part_tokens * cfg.dim * size, job.layer_runs
    columns = [p for p in job.layer if p.role == "matrix" and p.axes[0] == "embed"]
    blocks = sum(p.role == "matrix" and p.axes[-1] == "embed" and p.axes[0] != "experts" for p in job.layer)
    remat = job.runtime.remat
    # a pipeline keeps its pieces and gathers them once more, unless the products are kept anyway
    again = (remat != "none") + (job.mesh.pp > 1 and remat != "selective")
    yield _transfer(job, "activations", "gather", "tp", stream, blocks * (2 + again) * runs)
    # full rematerialisation makes the first block's result again; the last one is not needed
    first = 1 if remat == "full" else 0
    yield _transfer(job, "activations", "scatter", "tp", stream, (blocks + first) * runs)
    summed = sum("tp" in cut(p, job.mesh) for p in columns)
    yield _transfer(job, "gradients of activations", "sum", "tp", stream, summed * runs)
    if cfg.n_kv_heads % job.mesh.tp:  # each device has them all and uses one: the gradient comes back to all
        heads = job.part_tokens * job.mesh.tp * cfg.head_dim * size
        yield _transfer(job, "gradients of keys and values", "gather", "tp", heads, 2 * runs)


def _experts(job: Job) -> Iterator[Transfer]:
    """The tokens of a mixture over ep, and what arrived over tp."""
    cfg: Any = job.model
    if not job.choices:
        return
    arrived = job.mesh.ep * job.part_tokens * cfg.dim * BYTES[job.runtime.dtype]
    again = job.runtime.remat != "none" or job.mesh.pp > 1  # there, but not back
    yield _transfer(job, "tokens", "exchange", "ep", arrived / job.mesh.tp, (4 + again) * job.layer_runs)
    yield _transfer(job, "tokens", "gather", "tp", arrived, (2 + again) * job.layer_runs)
    yield _transfer(job, "tokens", "scatter", "tp", arrived, 2 * job.layer_runs)


def _context(job: Job) -> Iterator[Transfer]:
    """Keys and values over cp, of all heads that a device has."""
    cfg: Any = job.model
    heads = max(cfg.n_kv_heads, job.mesh.tp) / job.mesh.tp
    size = 2 * job.part_tokens * job.mesh.cp * heads * cfg.head_dim * BYTES[job.runtime.dtype]
    again = job.runtime.remat != "none" or job.mesh.pp > 1
    yield _transfer(job, "keys and values", "gather", "cp", size, (2 if again else 1) * job.layer_runs)
    yield _transfer(job, "gradients of keys and values", "scatter", "cp", size, job.layer_runs)


def _pipeline(job: Job) -> Iterator[Transfer]:
    """The residual stream from stage to stage; layers that travel to their ranks where there are several rounds."""
    cfg: Any = job.model
    piece = job.part_tokens * cfg.dim * BYTES[job.runtime.dtype] / job.mesh.tp
    yield _transfer(job, "activations and their gradients", "shift", "pp", piece, 2 * job.ticks)
    yield _transfer(job, "results of all parts", "sum", "pp", piece * job.parts, 1)
    yield _transfer(job, "gradients of all parts", "sum", "pp", piece * job.parts, 1)
    stack = sum(job.local(p) for name, p in leaves(job.spec) if name.startswith("layers."))
    yield _transfer(job, "layers to their ranks", "exchange", "pp", stack * F32, 2 * job.moves)


def _ends(job: Job) -> Iterator[Transfer]:
    """The embedding table and the head, outside the layers."""
    cfg: Any = job.model
    size, mesh = BYTES[job.runtime.dtype], job.mesh
    tokens = job.part_tokens * job.parts
    ends = [p for name, p in leaves(job.spec) if not name.startswith("layers.")]
    tables = [p for p in ends if p.role == "embedding" and p.axes[0] == "vocab"]
    heads = [p for p in ends if p.role == "head"] or tables
    for p in tables:
        stream = tokens * cfg.dim * F32
        yield Transfer("embedding table", "gather", "fsdp", mesh.fsdp, job.local(p, "fsdp") * F32, 1)
        if gathers_table(job, p):
            yield Transfer("embedding table", "gather", "tp", mesh.tp, p.size * F32, 1)
        else:  # each device looks up the tokens that it has
            yield _transfer(job, "rows of the embedding table", "sum", "tp", stream, 1)
            yield _transfer(job, "rows of the embedding table", "shift", "tp", stream / mesh.tp, 1)
        whole = p.size if gathers_table(job, p) else job.local(p, "fsdp")
        for axis in ("dp", "fsdp", "ep", "cp", *(("tp",) if gathers_table(job, p) else ())):
            yield _transfer(job, "gradient of the embedding table", "sum", axis, whole * F32, 1)
    for p in heads:
        yield Transfer("head", "gather", "fsdp", mesh.fsdp, job.local(p, "fsdp") * size, 1)
        yield from _gradients(job, "gradient of the head", [p], 1)
    yield _transfer(job, "activations at the head", "gather", "tp", tokens * cfg.dim * size, 1)
    yield _transfer(job, "gradients at the head", "sum", "tp", tokens * cfg.dim * size, 1)
    yield _transfer(job, "largest logit, sum and target's logit", "sum", "tp", 3 * tokens * F32, 1)


def gathers_table(job: Job, table: Param) -> bool:
    """Whether XLA gathers the embedding table over tp, as it does where that is small beside the rows of the tokens:
    4 times as large it was gathered, 8 times as large it was not."""
    return table.size <= 4 * job.part_tokens * job.parts * table.shape[-1]


def by_axis(made: list[Transfer]) -> dict[str, float]:
    """Bytes that each device sends in a step, by axis."""
    result: dict[str, float] = {}
    for t in made:
        result[t.axis] = result.get(t.axis, 0.0) + t.sent
    return result


def totals(made: list[Transfer]) -> dict[tuple[str, str], float]:
    """Whole bytes by ("gather", "reduce" or "shift", axis), to be laid beside `hlo.totals`."""
    result: dict[tuple[str, str], float] = {}
    for t in made:
        key = ("reduce" if t.kind in ("scatter", "sum") else t.kind, t.axis)
        result[key] = result.get(key, 0.0) + t.total
    return result
