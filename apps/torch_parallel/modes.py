"""The ways of sharing the work, by name, and what each makes of the model in a process."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from apps.torch_parallel import pipeline
from apps.torch_parallel.model import Llama, loss_sum
from apps.torch_parallel.parallelize import fsdp, tensor_parallel
from apps.torch_parallel.weights import Case, load

REST = 0


@dataclasses.dataclass(frozen=True)
class Mode:
    """How many processes share the rows of the batch (dp), the layers (pp) and each product (tp). REST: all that
    the other two leave over."""

    dp: int = 1
    pp: int = 1
    tp: int = 1
    sequence: bool = False  # sequence parallelism beside tp
    reshard: bool = True  # FSDP: free a layer between its forward and backward pass
    schedule: str = "1f1b"
    stages: int = 1  # of the pipeline, a process

    def shape(self, processes: int) -> tuple[int, int, int]:
        """(dp, pp, tp). Neighbours share products, which talk most; Llama 3 orders its axes so (section 3.3.2)."""
        given = (self.dp, self.pp, self.tp)
        left, rest = divmod(processes, math.prod(n for n in given if n != REST))
        if rest:
            raise SystemExit(f"{processes} processes cannot form a mesh (dp, pp, tp) of {given}")
        dp, pp, tp = (left if n == REST else n for n in given)
        return dp, pp, tp


MODES = {
    "one": Mode(),
    "fsdp": Mode(dp=REST),
    "fsdp_keep": Mode(dp=REST, reshard=False),
    "tp": Mode(tp=REST),
    "tp_sequence": Mode(tp=REST, sequence=True),
    "fsdp_tp": Mode(dp=REST, tp=2),
    "gpipe": Mode(pp=REST, schedule="gpipe"),
    "1f1b": Mode(pp=REST, schedule="1f1b"),
    "interleaved": Mode(pp=REST, schedule="interleaved", stages=2),
    # in a pipeline a layer that is freed would be gathered again for every micro-batch
    "fsdp_1f1b": Mode(dp=REST, pp=2, schedule="1f1b", reshard=False),
    "llama3": Mode(dp=REST, pp=2, tp=2, sequence=True, reshard=False, schedule="interleaved", stages=2),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A process's part of the work."""

    modules: list[Llama]  # the whole model, or its stages of the pipeline
    run: Callable[[], Tensor]  # forward and backward pass; the part of the loss that is known here, else 0
    copies: int  # how many processes know each part of the loss


def build(mode: Mode, case: Case, device: torch.device, micro_batches: int) -> Part:
    """The model with the case's weights, shared as the mode says. Every process must call this."""
    if mode == MODES["one"]:
        return _one(case, device)
    processes = dist.get_world_size()
    dp, pp, tp = mode.shape(processes)
    mesh = init_device_mesh(device.type, (dp, pp, tp), mesh_dim_names=("dp", "pp", "tp"))
    with torch.device("meta"):  # shapes without memory, until each process knows its share
        stages = (
            pipeline.local_stages(case.config, mesh["pp"], mode.stages) if pp > 1 else {0: Llama(case.config)}
        )
    for module in stages.values():
        if tp > 1:
            tensor_parallel(module, mesh["tp"], mode.sequence)
        if dp > 1:
            fsdp(module, mesh["dp"], mode.reshard)
        load(module, case, device)
    batch = case.batch(device, mesh["dp"].get_local_rank(), dp)
    length = batch["tokens"].shape[1]
    if mode.sequence and length % tp:
        raise ValueError(f"a sequence of {length} tokens cannot be cut into {tp} equal parts")
    modules = list(stages.values())
    if pp == 1:
        return Part(modules, partial(_whole, modules[0], batch), copies=tp)
    schedule = pipeline.schedule(mode.schedule, stages, mesh["pp"], device, micro_batches)
    return Part(modules, partial(schedule, **batch), copies=tp)


def _one(case: Case, device: torch.device) -> Part:
    """Every process computes everything by itself: what the others are compared with."""
    with torch.device("meta"):
        model = Llama(case.config)
    load(model, case, device)
    return Part([model], partial(_whole, model, case.batch(device)), copies=dist.get_world_size())


def _whole(model: Llama, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["tokens"], batch["positions"], batch["segment_ids"])
    loss = loss_sum(logits, batch["targets"], batch["weights"])
    loss.backward()
    return loss.detach()
