"""How long a training step takes on named hardware, and what bounds it.

    compute    FLOPs of one device / (peak · EFFICIENCY)
    memory     bytes that elementwise passes, the loss and the optimizer read and write / bandwidth
    an axis    bytes that one device sends along it / what it can send there (hardware.sends)

Products keep the multipliers busy and elementwise passes the memory, one after the other, so the two add up.
Activations over tp and keys and values over cp are waited for. Parameters, gradients and a pipeline's shifts travel
meanwhile:

    step = max(compute + memory + tp + cp,  dp + fsdp + ep + pp)

Ranks of a pipeline that have nothing to do compute on stale numbers (nn.pipeline), so idle turns are inside every term.
Nothing is counted for the host, for the latency of a message or for starting a kernel: small steps take longer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from min_llm.plan import communication, memory
from min_llm.plan.flops import Flops, flops_per_token
from min_llm.plan.hardware import Hardware
from min_llm.plan.job import Job
from min_llm.plan.memory import BYTES
from min_llm.spec import leaves

# Share of the peak that products reach: a large one on an H200 reached 696 of the 989 TFLOP/s of its datasheet
# (bench/results/gpu.nvidia-h200.json); on CPU the peak itself is measured, but shapes are smaller.
EFFICIENCY = 0.7
WAITED_FOR = ("cp", "tp")
# Passes over one value a token and layer, forward and backward, each a read or a write. A norm reads its input and
# writes its output, reads both gradient and input and writes a gradient; each block adds to the residual stream, both
# ways.
NORMS_AND_SUMS = 22  # of D
ROTATION = 4  # of the widths of queries and keys
CHOICES = 11  # of D, a choice of a mixture: sorted and unsorted, weighed and added up, both ways
UNITS = 8  # of F: gate, up and product; the product's gradient, gate and up, and their gradients
SCORES = 8  # of each score that exists: written and read twice, both ways
# Of each parameter, float32: gradient (twice, with its norm), parameter and both moments of AdamW, read and written.
# Other optimizers are taken to need as long; the products of Muon are not counted.
OPTIMIZER = 8


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of one step. axes: by axis of the mesh. flops: what one device computes, recomputation and idle turns of
    a pipeline included. model_flops: of the whole step by the formula of `flops`, as MFU counts them."""

    compute: float
    memory: float
    axes: dict[str, float]
    flops: float
    model_flops: float
    formula: str
    bubble: float
    peak: float
    devices: int
    tokens: int

    @property
    def seconds(self) -> float:
        busy = self.compute + self.memory + sum(self.axes.get(name, 0.0) for name in WAITED_FOR)
        return max(busy, sum(t for name, t in self.axes.items() if name not in WAITED_FOR))

    @property
    def bound(self) -> str:
        """The largest term."""
        terms = {"compute": self.compute, "memory": self.memory} | self.axes
        return max(terms, key=terms.__getitem__)

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: model_flops / (seconds · peak · devices)."""
        return self.model_flops / (self.seconds * self.peak * self.devices)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def predict(job: Job, hardware: Hardware) -> Step:
    """The time of one step of the job."""
    devices = job.mesh.size
    one = hardware.among(devices)
    peak = one.peak(job.runtime.dtype)
    flops: Flops = flops_per_token(job.model, job.seq_len)
    computed = device_flops(job)
    return Step(
        compute=computed / (peak * EFFICIENCY),
        memory=bytes_moved(job) / one.bandwidth,
        axes=axis_seconds(job, one),
        flops=computed,
        model_flops=job.tokens * flops.training,
        formula=flops.formula,
        bubble=job.bubble,
        peak=peak,
        devices=devices,
        tokens=job.tokens,
    )


def axis_seconds(job: Job, hardware: Hardware) -> dict[str, float]:
    """Seconds of sending along each axis that has several devices, outermost first."""
    sent = communication.by_axis(communication.transfers(job))
    stride, seconds = 1, {}
    for axis, n in reversed(job.mesh.shape.items()):
        if n > 1:
            seconds[axis] = sent.get(axis, 0.0) / hardware.sends(n, stride)
        stride *= n
    return dict(reversed(seconds.items()))


def device_flops(job: Job) -> float:
    """FLOPs of one device: products with parameters and of attention, three times forward, and once more where all is
    recomputed. Every rank of a pipeline computes the head of the whole micro-batch."""
    cfg: Any = job.model
    passes = 4 if job.runtime.remat == "full" else 3
    # tokens come from all devices along ep, where routers spread them evenly
    matrices = sum(job.local(p, "fsdp", "ep") * p.active for p in job.layer if p.role == "matrix")
    attention = 4 * cfg.n_heads * cfg.head_dim / job.mesh.tp * keys_seen(job)
    layers = job.layer_runs * job.part_tokens * (2 * matrices + attention) * passes
    head = cfg.vocab_size * cfg.dim / job.mesh.tp
    return job.micro_batches * (layers + 6 * job.part_tokens * job.parts * head)


def keys_seen(job: Job) -> float:
    """Keys that attention multiplies a query with, those of the future included where it does not skip them."""
    if job.runtime.attention in ("cudnn", "amx"):
        return (min(job.seq_len, getattr(job.model, "window", None) or job.seq_len) + 1) / 2
    if job.runtime.attention == "xla" and job.mesh.cp == 1:
        return memory.attention_values(job.seq_len, "xla", getattr(job.model, "window", None))[1]
    return job.seq_len


def bytes_moved(job: Job) -> float:
    """Bytes that elementwise passes of one device read and write."""
    cfg: Any = job.model
    tp, size = job.mesh.tp, BYTES[job.runtime.dtype]
    heads = (cfg.n_heads + cfg.n_kv_heads) * cfg.head_dim / tp
    units = UNITS * cfg.hidden_dim / tp
    if job.choices:
        units = job.choices * (units + CHOICES * cfg.dim)
    values = NORMS_AND_SUMS * cfg.dim / tp + ROTATION * heads + units
    if job.runtime.attention not in ("cudnn", "amx"):  # those keep scores on the chip
        values += SCORES * cfg.n_heads / tp * keys_seen(job)
    again = 4 / 3 if job.runtime.remat == "full" else 1
    layers = job.layer_runs * job.part_tokens * values * size * again
    loss = 4 * 4 * job.part_tokens * job.parts * cfg.vocab_size / tp
    parameters = sum(job.local(p) for _, p in leaves(job.spec))
    return job.micro_batches * (layers + loss) + OPTIMIZER * 4 * parameters
