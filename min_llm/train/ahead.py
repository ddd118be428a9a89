"""The training step compiled for devices that are not here, to see what XLA says it needs before they are rented.

need = compile_for(job, run, "h100", 8)         need.total: bytes on each device at the peak of a step
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from min_llm import platform
from min_llm.config import UserError
from min_llm.nn import axes
from min_llm.nn.batch import Batch
from min_llm.parallel import absent
from min_llm.parallel import mesh as meshes
from min_llm.plan import hlo
from min_llm.plan.job import Job
from min_llm.train.config import RunConfig
from min_llm.train.optim import optimizer
from min_llm.train.ramp import Ramp
from min_llm.train.step import Step, init_state, jit_step, language_model_loss, make_step


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What XLA's compiler says of a step. Bytes are of one device: `state` of parameters, optimizer and batch, which
    stay; `temporary` of all that comes and goes within the step. memory: that the device has."""

    device: str
    seconds: float
    state: int
    temporary: int
    memory: int
    collectives: list[hlo.Collective]

    @property
    def total(self) -> int:
        return self.state + self.temporary


def compile_for(job: Job, run: RunConfig, chip: str, count: int) -> Compiled:
    """The job's step with the run's optimizer, compiled for `count` such devices on the job's mesh."""
    if job.mesh.size != count:
        raise UserError(
            f"parallel.mesh ({meshes.words(job.mesh)}) is for {job.mesh.size} devices; --compile names {count}."
        )
    found = np.array(absent.devices(chip, count)).reshape(tuple(job.mesh.shape.values()))
    explicit = AxisType.Explicit if count > 1 else AxisType.Auto  # one device: no mesh, as when training
    mesh = Mesh(found, tuple(job.mesh.shape), axis_types=(explicit,) * found.ndim)
    step = make_step(
        language_model_loss(job.model, job.runtime),
        optimizer(run.optim, job.spec, run.train.steps, Ramp.of(run.train)),
        job.micro_batches,
        run.seed if job.model.dropout else None,
        spike_z=run.train.spike_z,
    )
    began = time.perf_counter()
    with platform.compiling_for("gpu"), jax.set_mesh(mesh) if count > 1 else contextlib.nullcontext():
        program = _lower(step, job, run, mesh).compile()
    seconds = time.perf_counter() - began
    size = program.memory_analysis()
    return Compiled(
        device=found.flat[0].device_kind,
        seconds=seconds,
        state=size.argument_size_in_bytes + size.output_size_in_bytes - size.alias_size_in_bytes,
        temporary=size.temp_size_in_bytes,
        memory=absent.CHIPS[chip].memory,
        collectives=hlo.collectives(program.as_text(), job.mesh),
    )


def _lower(step: Step, job: Job, run: RunConfig, mesh: Mesh) -> Any:
    whole = NamedSharding(mesh, P())

    def laid_out(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:  # on one device nothing says where
        return x if x.sharding is not None else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

    make = optimizer(run.optim, job.spec, run.train.steps, Ramp.of(run.train))
    watched = run.train.spike_skip
    state = axes.targets(jax.eval_shape(lambda p: init_state(p, make, watched), axes.shapes(job.spec)))
    shape = (job.rows, job.seq_len)
    cut = NamedSharding(mesh, axes.to_partition(("batch", "seq"), shape)) if axes.on_mesh() else whole
    numbers: Any = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=cut)
    # documents packed; over cp the places stand in another order and are told
    batch = Batch(numbers, numbers, numbers, numbers if job.mesh.cp > 1 else None, numbers)
    return jit_step(step).lower(jax.tree.map(laid_out, state), batch)
