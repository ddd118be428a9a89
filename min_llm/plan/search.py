"""Meshes that a model could be trained on, fastest first (the planner's answer to Llama 3 section 3.3.2: which sizes of
TP, CP, PP and DP?). Every way of writing the number of devices as a product is tried; nothing runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from min_llm.config import UserError
from min_llm.nn import pipeline
from min_llm.parallel import mesh as meshes
from min_llm.parallel.mesh import MeshConfig
from min_llm.plan import mesh_memory, step
from min_llm.plan.hardware import Hardware
from min_llm.plan.job import Job
from min_llm.plan.memory import TrainingMemory
from min_llm.plan.step import Step

AXES = ("dp", "fsdp", "pp", "cp", "tp")  # and ep for mixtures of experts


@dataclasses.dataclass(frozen=True)
class Proposal:
    job: Job
    memory: TrainingMemory
    step: Step


def propose(job: Job, hardware: Hardware, devices: int, reserve: float = 0.1) -> tuple[list[Proposal], int]:
    """Meshes of so many devices for the job's batch, fastest first, and how many were too large for the memory.

    A batch that is too large at once is cut into more micro-batches. The share `reserve` of the memory is kept free;
    where the memory is unknown everything fits. A pipeline has 2 · pp parts, or as many as there are rows.
    """
    if devices < 1:
        raise UserError(f"--devices is {devices}; it must be at least 1.")
    room = hardware.among(devices).memory * (1 - reserve) or float("inf")
    found, too_large = [], 0
    for mesh in factorisations(devices, (*AXES, "ep") if job.choices else AXES):
        ways = list(fitted(job, mesh))
        needs = [mesh_memory.training(way) for way in ways]
        fits = next((i for i, need in enumerate(needs) if need.total <= room), None)
        if fits is None:
            too_large += bool(ways)
            continue
        try:
            found.append(Proposal(ways[fits], needs[fits], step.predict(ways[fits], hardware)))
        except UserError:  # no network is listed that would reach so far
            continue
    return sorted(found, key=lambda p: p.step.seconds), too_large


def fitted(job: Job, mesh: MeshConfig) -> Iterator[Job]:
    """The job on that mesh, in its own number of micro-batches and then twice as many again and again; nothing where
    model or batch cannot be cut so."""
    micro_batches = job.micro_batches
    while micro_batches <= job.rows:
        rows = job.rows // micro_batches
        parts = min(2 * mesh.pp, rows // mesh.rows) if mesh.pp > 1 else 1
        runtime = dataclasses.replace(job.runtime, pipeline_parts=parts)
        try:
            meshes.check(mesh, job.model, job.spec, rows, job.seq_len)
            if mesh.pp > 1:
                pipeline.check(job.n_layers, rows // mesh.rows, mesh.pp, parts, runtime.pipeline_rounds)
        except UserError:
            return
        yield dataclasses.replace(job, mesh=mesh, runtime=runtime, micro_batches=micro_batches)
        micro_batches *= 2


def factorisations(devices: int, names: tuple[str, ...] = AXES) -> Iterator[MeshConfig]:
    """Every mesh of that many devices."""
    for sizes in _products(devices, len(names)):
        yield MeshConfig(**dict(zip(names, sizes, strict=True)))


def _products(n: int, factors: int) -> Iterator[tuple[int, ...]]:
    if factors == 1:
        yield (n,)
        return
    for first in range(1, n + 1):
        if n % first == 0:
            for rest in _products(n // first, factors - 1):
                yield (first, *rest)
