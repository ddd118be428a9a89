"""Trains the case's Llama on several processes, in one way of sharing the work after the other.

    torchrun --nproc-per-node 4 -m apps.torch_parallel.train --mode fsdp tp 1f1b

The first step's loss and gradients are compared with JAX's and written to OUT/MODE.npz; the losses of all steps are
printed and written too. Start it in the environment of `make env-peers`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import operator
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from apps.torch_parallel import weights
from apps.torch_parallel.collectives import Counting
from apps.torch_parallel.modes import MODES, Mode, build
from apps.torch_parallel.processes import deadline, joined

FOLDER = Path("runs/torch_parallel")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a process knows after some steps."""

    losses: list[float]  # of the whole batch, before each step's update
    gradients: weights.Arrays  # of its parameters, in the first step
    difference: float  # of the farthest of them from JAX's
    talk: Counter[str]  # collective operations and messages of the last step's forward and backward pass


def train(mode: Mode, case: weights.Case, device: torch.device, options: argparse.Namespace) -> Result:
    """Steps of Adam on the case's one batch."""
    part = build(mode, case, device, options.micro_batches)
    parameters = [p for module in part.modules for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, options.lr, betas=(0.9, 0.95))
    losses, gradients = [], weights.Arrays()
    for step in range(options.steps):
        with Counting() as talking:
            loss = part.run()
        dist.all_reduce(loss)
        losses.append(loss.item() / part.copies)
        if step == 0:
            gradients = weights.gradients(part.modules, case)
        optimizer.step()
        optimizer.zero_grad()
    difference = np.max([np.abs(g - case.gradients(name)).max() for name, g in gradients.items()])
    return Result(losses, gradients, float(difference), talking.counts)


def report(name: str, results: list[Result], case: weights.Case, out: Path) -> None:
    """A line about a mode, and OUT/NAME.npz: the losses, the gradients of all processes together, and the most that
    one of them differs from JAX and talks."""
    losses, difference = results[0].losses, np.max([result.difference for result in results])
    gradients = {f"gradients/{key}": g for result in results for key, g in result.gradients.items()}
    talk = functools.reduce(operator.or_, (result.talk for result in results))  # the most of each
    print(
        f"{name:12} loss {losses[0]:.6f} (JAX {case.loss:.6f}), {losses[-1]:.6f} after {len(losses) - 1} steps; "
        f"gradients differ from JAX's by {difference:.1e} at most; "
        f"{', '.join(f'{n} {key}' for key, n in sorted(talk.items())) or 'no talk'}",
        flush=True,
    )
    out.mkdir(parents=True, exist_ok=True)
    facts = {"losses": np.array(losses), "difference": difference, "talk": np.array(json.dumps(talk))}
    np.savez(out / f"{name}.npz", **facts, **gradients)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", nargs="+", choices=MODES, default=["fsdp"])
    parser.add_argument(
        "--case", type=Path, default=FOLDER / "case.npz", help="made by apps.torch_parallel.export"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for MODE.npz")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--micro-batches", type=int, default=4, help="of a pipeline")
    parser.add_argument("--timeout", type=float, default=30, help="seconds a collective operation may take")
    parser.add_argument("--deadline", type=float, default=50, help="seconds a mode may take")
    options = parser.parse_args()
    if not options.case.exists():
        parser.error(f"there is no case {options.case}: write one with python -m apps.torch_parallel.export")
    if options.steps < 1:
        parser.error(f"--steps is {options.steps}; the first step is the one that is compared")
    case = weights.Case(options.case)
    deadline(options.deadline)
    with joined(options.timeout) as device:
        for name in options.mode:
            deadline(options.deadline)
            results: list[Any] = [None] * dist.get_world_size()
            first = dist.get_rank() == 0
            dist.gather_object(train(MODES[name], case, device, options), results if first else None)
            if first:
                report(name, results, case, options.out)


if __name__ == "__main__":
    main()
