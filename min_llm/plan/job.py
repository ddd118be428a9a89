"""One training step to be planned: the model, the batch, how it runs and on which mesh."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from min_llm import models
from min_llm.nn import axes
from min_llm.nn.runtime import ACCELERATOR_LOGITS, SCAN_FROM_LAYERS, Runtime, RuntimeConfig
from min_llm.parallel.mesh import MeshConfig
from min_llm.plan.hardware import Hardware
from min_llm.spec import Param, leaves


@dataclasses.dataclass(frozen=True)
class Job:
    """rows: of the whole batch, over all devices and micro-batches. Everything below is of one device."""

    model: models.ModelConfig
    rows: int
    seq_len: int
    runtime: Runtime
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    micro_batches: int = 1
    optimizer: str = "adamw"

    @property
    def spec(self) -> Any:
        return _spec(self.model)

    @property
    def layer(self) -> list[Param]:
        """The parameters of one layer, not stacked."""
        return _layer(self.model)

    @property
    def n_layers(self) -> int:
        return self.model.n_layers  # type: ignore[attr-defined]

    @property
    def part_rows(self) -> int:
        """Rows that it works on at once, in whole or (over cp) in part: of a micro-batch, of a part of a pipeline."""
        return max(1, self.rows // (self.micro_batches * self.mesh.rows * self.parts))

    @property
    def part_tokens(self) -> int:
        """Tokens of those rows, at the places that cp leaves it."""
        return self.part_rows * self.seq_len // self.mesh.cp

    @property
    def choices(self) -> int:
        """Experts that a token goes through; 0 where the model is no mixture of them."""
        return getattr(self.model, "experts_per_token", 0)

    @property
    def parts(self) -> int:
        """Parts of a micro-batch that follow each other through the pipeline."""
        return self.runtime.pipeline_parts if self.mesh.pp > 1 else 1

    @property
    def rounds(self) -> int:
        return self.runtime.pipeline_rounds if self.mesh.pp > 1 else 1

    @property
    def ticks(self) -> int:
        """Turns of a micro-batch in which it runs some of its layers on a part, idle turns included."""
        return self.parts * self.rounds + self.mesh.pp - 1

    @property
    def layer_runs(self) -> int:
        """How often it runs a layer forward in a micro-batch, on one part, idle turns included."""
        return -(-self.n_layers // (self.mesh.pp * self.rounds)) * self.ticks

    @property
    def moves(self) -> int:
        """Exchanges that bring the layers to the ranks that run them, each way (nn.pipeline.arranged)."""
        if self.mesh.pp == 1:
            return 0
        stored = self.n_layers % self.mesh.pp == 0  # with the rank that runs them, but for rounds
        return (2 if stored else 1) if self.rounds > 1 or not stored else 0

    @property
    def bubble(self) -> float:
        """Idle turns for each turn of work: (n − 1) / (M·v) with n ranks, M parts, v rounds (Llama 3 section 3.3.2)."""
        return (self.mesh.pp - 1) / (self.parts * self.rounds)

    @property
    def tokens(self) -> int:
        """Tokens of the whole batch."""
        return self.rows * self.seq_len

    def local(self, p: Param, *gathered: str) -> float:
        """Values of a parameter on one device, whole over the mesh axes named `gathered`."""
        return p.size / pieces(p, self.mesh, gathered)


def runtime_on(hardware: Hardware, cfg: RuntimeConfig, n_layers: int) -> Runtime:
    """What `nn.runtime.resolve` would choose on an accelerator that is not here."""
    scan = n_layers >= SCAN_FROM_LAYERS.get(hardware.backend, 0)
    return Runtime(
        dtype="bfloat16" if cfg.dtype == "auto" else cfg.dtype,
        attention=("cudnn" if hardware.backend == "gpu" else "xla")
        if cfg.attention == "auto"
        else cfg.attention,
        scan=scan if cfg.layers == "auto" else cfg.layers == "scan",
        remat=cfg.remat,
        logits_per_chunk=cfg.logits_per_chunk or ACCELERATOR_LOGITS,
    )


@functools.lru_cache(maxsize=8)
def _spec(model: models.ModelConfig) -> Any:
    return models.spec(model)


@functools.lru_cache(maxsize=8)
def _layer(model: models.ModelConfig) -> list[Param]:
    return [p for _, p in leaves(models.of(model).layer_spec(model))]


def pieces(p: Param, mesh: MeshConfig, gathered: tuple[str, ...] = ()) -> int:
    """In how many pieces a parameter lies on a mesh (nn.axes.RULES)."""
    return math.prod(mesh.shape[name] for name in cut(p, mesh) if name not in gathered)


def cut(p: Param, mesh: MeshConfig) -> list[str]:
    """The mesh axes over which a parameter is cut."""
    return [name for names in axes.cuts(p.axes, p.shape, mesh.shape) for name in names]
