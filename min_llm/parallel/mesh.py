"""The mesh: which devices share what (Llama 3 section 3.3.2, "network-aware parallelism configuration").

Axes from the outermost to the innermost; neighbours on the innermost axis talk most and should be closest. Read from
the inside, this is the paper's order [TP, CP, PP, DP].
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from min_llm import platform
from min_llm.config import UserError, option
from min_llm.nn import axes, context, pipeline
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Context, Runtime
from min_llm.parallel import processes
from min_llm.spec import leaves

AXIS_WORDS = {"embed": "dimensions", "hidden": "hidden units", "vocab": "tokens"}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; their product is the number of devices. Everything 1: one device, no mesh."""

    dp: int = option(1, "data parallel: copies of the model, each with its rows of the batch")
    fsdp: int = option(1, "fully sharded data parallel: rows of the batch and pieces of every parameter")
    pp: int = option(1, "pipeline parallel: consecutive layers")
    cp: int = option(1, "context parallel: pieces of every sequence")
    ep: int = option(1, "expert parallel: experts of a mixture, and rows of the batch")
    tp: int = option(1, "tensor parallel: heads, hidden units and vocabulary")

    @property
    def shape(self) -> dict[str, int]:
        """Devices by axis, outermost first."""
        return dataclasses.asdict(self)

    @property
    def size(self) -> int:
        return math.prod(self.shape.values())

    @property
    def rows(self) -> int:
        """In how many parts the batch is split."""
        return self.dp * self.fsdp * self.ep


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    mesh: MeshConfig = option(MeshConfig(), "devices by axis")
    context: Context = option(
        "gather", "context parallelism: gather keys and values, or pass them round a ring"
    )
    keep_gathered: bool = option(
        False,
        "keep fsdp's gathered parameters from the forward to the backward pass: less traffic, more memory",
    )
    pipeline_parts: int = option(0, "parts of a batch that follow each other through the pipeline; 0: 2 x pp")
    pipeline_rounds: int = option(1, "times a part goes round the pipeline (interleaved stages)")

    def choose(self, runtime: Runtime) -> Runtime:
        """The runtime with what is chosen here."""
        return dataclasses.replace(
            runtime,
            context=self.context,
            keep_gathered=self.keep_gathered,
            pipeline_parts=self.pipeline_parts or (2 * self.mesh.pp if self.mesh.pp > 1 else 1),
            pipeline_rounds=self.pipeline_rounds,
        )


@contextlib.contextmanager
def use(cfg: MeshConfig) -> Iterator[jax.sharding.Mesh | None]:
    """Run the body on the mesh of a configuration; on one device nothing changes."""
    if cfg.size == 1 and processes.count() == 1:
        yield None
        return
    mesh = make(cfg)
    with jax.set_mesh(mesh):
        yield mesh


def make(cfg: MeshConfig) -> jax.sharding.Mesh:
    """The mesh of a configuration over all devices, of every process."""
    if min(cfg.shape.values()) < 1:
        raise UserError(f"Every axis of parallel.mesh is at least 1; given: {words(cfg)}.")
    if cfg.size != jax.device_count():
        hint = (
            " Virtual ones on a CPU: XLA_FLAGS=--xla_force_host_platform_device_count=N."
            if jax.default_backend() == "cpu"
            else ""
        )
        raise UserError(
            f"parallel.mesh ({words(cfg)}) is for {cfg.size} devices; this run has {jax.device_count()}.{hint}"
        )
    return jax.make_mesh(
        tuple(cfg.shape.values()), tuple(cfg.shape), axis_types=(AxisType.Explicit,) * len(cfg.shape)
    )


def placement(cfg: MeshConfig, mesh: jax.sharding.Mesh | None) -> Callable[[Batch], Batch]:
    """What lays a host's batch out over the mesh: rows over the batch axes, places over cp in their balanced order.
    Every process passes the whole batch and keeps its part."""
    if mesh is None:
        return lambda batch: batch
    cut = {name: n for name, n in cfg.shape.items() if n > 1}
    rows = tuple(name for name in ("dp", "fsdp", "ep") if name in cut)
    sharding = NamedSharding(mesh, P(rows or None, "cp" if "cp" in cut else None))

    def place(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return lambda batch: jax.tree.map(place, context.arrange(batch, cfg.cp))


@contextlib.contextmanager
def alone(params: Any) -> Iterator[Any]:
    """Run the body without the mesh in use, with the parameters gathered onto this process's first device: for what
    has no rows to spread, such as sampling during training."""
    if not axes.on_mesh():
        yield params
        return
    whole = jax.tree.map(lambda x: jax.reshard(x, P(*[None] * x.ndim)).addressable_data(0), params)
    with platform.first_device():
        yield whole


def words(cfg: MeshConfig) -> str:
    """ "fsdp 2 x tp 4"; "one device"."""
    return " x ".join(f"{name} {n}" for name, n in cfg.shape.items() if n != 1) or "one device"


def coordinates(cfg: MeshConfig, device: int) -> dict[str, int]:
    """Where the device-th device of an unpermuted mesh stands on each axis."""
    place = {}
    for name, n in reversed(cfg.shape.items()):
        device, place[name] = divmod(device, n)
    return {name: place[name] for name in cfg.shape}


def check(cfg: MeshConfig, model: Any, spec: Any, batch: int, seq_len: int) -> None:
    """A sentence where the model or the batch cannot be cut that way. batch: rows of a micro-batch."""
    shape = cfg.shape
    heads, kv = getattr(model, "n_heads", cfg.tp), getattr(model, "n_kv_heads", cfg.tp)
    if heads % cfg.tp or (kv % cfg.tp and cfg.tp % kv):
        raise UserError(
            f"parallel.mesh.tp is {cfg.tp}, but the model has {heads} heads and {kv} key-value heads. tp must divide "
            "the heads, and be a divisor or a multiple of the key-value heads."
        )
    for name, p in leaves(spec):
        for size, axis in zip(p.shape, p.axes, strict=True):
            if axis == "layers":
                pipeline.spare(size, cfg.pp)
            rule = axes.RULES[axis] if axis not in (None, "kv_heads", "layers") else None
            for mesh_axis in (rule,) if isinstance(rule, str) else rule or ():
                if size % shape[mesh_axis]:
                    hint = (
                        " Set model.vocab_size to a multiple; the rest stays unused."
                        if axis == "vocab"
                        else ""
                    )
                    raise UserError(
                        f"{name} has {size} {AXIS_WORDS.get(str(axis), axis)}, which parallel.mesh.{mesh_axis} = "
                        f"{shape[mesh_axis]} does not divide.{hint}"
                    )
    if batch % cfg.rows:
        raise UserError(
            f"A micro-batch has {batch} rows, which dp x fsdp x ep = {cfg.rows} does not divide. "
            "Change train.batch_size, train.micro_batches or parallel.mesh."
        )
    pieces = cfg.tp * cfg.cp * (2 if cfg.cp > 1 else 1)
    if seq_len % pieces:
        raise UserError(
            f"'train.seq_len' is {seq_len}; on this mesh ({words(cfg)}) it must be a multiple of {pieces}."
        )
