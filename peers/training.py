"""Timed training steps of the PyTorch side: one model kept warm, which runs steps when it is told to.

A step is what a training loop does: cut the batch out of the token array, forward, loss, backward, clip the
global norm, AdamW (fused). Variants name a precision and whether torch.compile is used:

    float32    everything in float32
    autocast   float32 weights, torch.autocast to bfloat16
    matmul     float32 tensors, oneDNN computes matrix products of them in bfloat16
    weights    a bfloat16 model with float32 master weights that the optimizer updates
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRECISIONS = ("float32", "autocast", "matmul", "weights")


class WithLoss(nn.Module):
    """(tokens, targets) to the mean loss, so that torch.compile sees the cross-entropy too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        out = self.model(tokens)
        logits = out if isinstance(out, Tensor) else out.logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def _model(family: str, config: dict[str, Any]) -> nn.Module:
    if family == "gpt2":
        from peers.gpt import gpt

        return gpt(config)
    from peers.models import llama

    return llama(config, attention="sdpa")


def _batches(tokens: np.ndarray, rows: int, length: int, seed: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Random windows of the token array, one batch a call: int64, as PyTorch's embedding wants them."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)
    rng = np.random.default_rng(seed)

    def next_batch() -> tuple[Tensor, Tensor]:
        taken = torch.from_numpy(windows[rng.integers(0, len(windows), rows)].astype(np.int64))
        return taken[:, :-1], taken[:, 1:]

    return next_batch


def _optimizer(parameters: list[nn.Parameter], settings: dict[str, Any]) -> torch.optim.Optimizer:
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings["learning_rate"], betas=tuple(settings["betas"]), eps=settings["eps"], fused=True
    )


def _masters(model: nn.Module) -> tuple[list[nn.Parameter], Callable[[], None], Callable[[], None]]:
    """Turn the model to bfloat16; float32 copies, and how gradients go to them and weights come back."""
    masters = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    model.to(torch.bfloat16)

    def take_gradients() -> None:
        for master, p in zip(masters, model.parameters(), strict=True):
            master.grad = None if p.grad is None else p.grad.float()
            p.grad = None

    @torch.no_grad()
    def give_weights() -> None:
        for master, p in zip(masters, model.parameters(), strict=True):
            p.copy_(master)

    return masters, take_gradients, give_weights


def build(
    family: str,
    config: dict[str, Any],
    precision: str,
    compiled: str | None,
    batch: dict[str, Any],
    optimizer: dict[str, Any],
    threads: int,
    seed: int,
    micro_batches: int = 1,
) -> tuple[Callable[[], Tensor], int]:
    """One training step as a function that returns the loss, and the number of parameters.

    `compiled` is None or a mode of torch.compile; `batch` is {tokens [N], rows, length}; `optimizer` is
    {learning_rate, betas, eps, weight_decay, clip}.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = _model(family, config).train()
    parameters, before, after = list(model.parameters()), None, None
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if precision == "matmul" else "ieee"
    context: Callable[[], Any] = contextlib.nullcontext
    if precision == "autocast":
        context = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    elif precision == "weights":
        parameters, before, after = _masters(model)
    update = _optimizer(parameters, optimizer)
    loss_of: nn.Module = WithLoss(model)
    run: Any = torch.compile(loss_of, mode=compiled) if compiled else loss_of
    next_batch = _batches(batch["tokens"], batch["rows"], batch["length"], seed)

    def step() -> Tensor:
        tokens, targets = next_batch()
        total = torch.zeros(())
        for x, y in zip(tokens.chunk(micro_batches), targets.chunk(micro_batches), strict=True):
            with context():
                loss = run(x, y) / micro_batches
            loss.backward()
            total += loss.detach()
        if before is not None:
            before()
        nn.utils.clip_grad_norm_(parameters, optimizer["clip"])
        update.step()
        update.zero_grad(set_to_none=True)
        if after is not None:
            after()
        return total

    return step, sum(p.numel() for p in parameters)


def peaks(threads: int, n: int = 1024, repeats: int = 10) -> dict[str, float]:
    """FLOP/s of a square matrix product, the fastest of some: flops_float32, flops_bfloat16."""
    torch.set_num_threads(threads)
    found = {}
    for name in ("float32", "bfloat16"):
        a = torch.full((n, n), 0.01, dtype=getattr(torch, name))
        seconds = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            a @ a
            seconds.append(time.perf_counter() - began)
        found[f"flops_{name}"] = 2 * n**3 / min(seconds)
    return found


_step: Callable[[], Tensor] | None = None


def start(**request: Any) -> dict[str, Any]:
    """Build (see `build`) and make the first step, compilation included: its seconds, the loss, the parameters."""
    global _step
    began = time.perf_counter()
    _step, parameters = build(**request)
    built = time.perf_counter()
    loss = _step().item()
    return {
        "build_seconds": built - began,
        "first_step_seconds": time.perf_counter() - built,
        "loss": loss,
        "parameters": parameters,
    }


def steps(n: int) -> dict[str, Any]:
    """Make n more steps: the seconds of all of them together, and the last loss."""
    if _step is None:
        raise RuntimeError("no model is started in this process: ask for `start` first")
    began = time.perf_counter()
    for _ in range(n):
        loss = _step()
    value = loss.item()
    return {"seconds": time.perf_counter() - began, "loss": value}
