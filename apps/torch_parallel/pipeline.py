"""Pipeline parallelism: the model cut into stages, and PyTorch's schedules that run them.

A schedule cuts the batch into micro-batches and says in which order a process runs their forward and backward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from apps.torch_parallel.model import Config, Llama, loss_sum

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B}


def cut(cfg: Config, n_stages: int) -> list[dict[str, Any]]:
    """What each stage holds, as arguments of Llama.

    The embedding and the head count as a layer each, so the first and the last stage get one layer less, as in
    Llama 3 (section 3.3.2: 126 layers are 128 less two).
    """
    share, rest = divmod(cfg.n_layers + 2, n_stages)
    if rest or not share:
        raise ValueError(
            f"{cfg.n_layers} layers, the embedding and the head cannot be cut into {n_stages} equal stages: "
            "n_layers + 2 must be a multiple of the number of stages"
        )
    stages = []
    for i in range(n_stages):
        start, stop = i * share - 1, (i + 1) * share - 1  # the embedding would be layer -1
        layers = range(max(start, 0), min(stop, cfg.n_layers))
        stages.append({"layers": layers, "embed": i == 0, "head": i == n_stages - 1})
    return stages


def local_stages(cfg: Config, mesh: DeviceMesh, per_process: int) -> dict[int, Llama]:
    """This process's stages by number: process p of P has p, P + p, 2P + p …, the interleaved placement."""
    here, processes = mesh.get_local_rank(), mesh.size()
    held = cut(cfg, processes * per_process)
    return {i: Llama(cfg, **held[i]) for i in range(here, len(held), processes)}


def schedule(
    name: str, stages: dict[int, Llama], mesh: DeviceMesh, device: torch.device, micro_batches: int
) -> Callable[..., Tensor]:
    """A function (tokens, positions, segment_ids, targets, weights), all of the whole batch, that runs the forward
    and backward passes of all micro-batches and returns the loss, 0 where the last stage is not."""
    n_stages = mesh.size() * len(stages)
    parts = [
        PipelineStage(module, i, n_stages, device, group=mesh.get_group()) for i, module in stages.items()
    ]
    single = name != "interleaved"
    # gradients of micro-batches are added, not averaged: weights sum to 1 over the whole batch
    made: Any = SCHEDULES[name](
        parts[0] if single else parts,  # type: ignore[arg-type]
        n_microbatches=micro_batches,
        loss_fn=_loss,
        scale_grads=False,
    )

    def run(
        tokens: Tensor, positions: Tensor, segment_ids: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        losses: list[Tensor] = []
        # tokens enter at the first stage; what every stage needs beside its input goes by name
        made.step(
            *([tokens] if 0 in stages else []),
            positions=positions,
            segment_ids=segment_ids,
            target=_join(targets, weights),
            losses=losses,
            return_outputs=False,
        )
        return torch.stack(losses).sum().detach() if losses else torch.zeros((), device=device)

    return run


def _join(targets: Tensor, weights: Tensor) -> Tensor:
    """[b, s, 2]: a schedule hands one tensor to the loss. float64 holds every token number and every weight."""
    return torch.stack([targets.double(), weights.double()], dim=-1)


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    return loss_sum(logits, target[..., 0].long(), target[..., 1].float())
