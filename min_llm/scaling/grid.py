"""The IsoFLOP grid: every run of a sweep, fixed in a file before the first of them starts (Llama 3 section 3.2.1).

Of each budget the models of all sizes are trained for as long as it lasts, D = C / (FLOPs per token) tokens. The
defaults of `OptimConfig` are the paper's recipe: cosine to 0.1 of the peak, and weight decay of 0.1 times the learning
rate of the step (`decay_with_lr`). Its peaks of 2e-4 to 4e-4 depend on the size (`lrs`), its batches of 250K to 4M
tokens on the budget (`batch_sizes`). Its 2000 steps of warmup would be all of a small run, so warmup is a share of the
steps here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from min_llm import config as config_lib
from min_llm.config import UserError, option
from min_llm.plan.flops import flops_per_token
from min_llm.platform import write_atomic
from min_llm.train.config import RunConfig, check

ROUNDING = 0.05  # share of a budget that whole steps may miss it by
OURS = ("name", "out")  # of a run: the sweep gives each its folder


@dataclasses.dataclass(frozen=True)
class ScalingConfig:
    name: str = option("isoflop", "name of the sweep: its folder is OUT/NAME")
    out: str = option("runs", "folder of all sweeps")
    budgets: tuple[float, ...] = option((), "training FLOPs of each IsoFLOP curve")
    sizes: tuple[dict[str, Any], ...] = option((), "models of each curve: settings of 'model' over run.model")
    lrs: tuple[float, ...] = option((), "peak learning rate of each size; empty: run.optim.lr for all")
    batch_sizes: tuple[int, ...] = option((), "rows of a batch of each budget; empty: run.train.batch_size")
    warmup: float = option(0.05, "share of a run's steps that warm up")
    flops: Literal["6ND", "full", "causal", "lingua"] = option(
        "full", "what a token costs: 6 N, or a convention of plan/flops.py, which counts attention"
    )
    run: dict[str, Any] = option({}, "settings that all runs share, as for `min-llm train`")

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid. parameters: those that multiply a token (N of plan/flops.py)."""

    budget: float
    parameters: int
    flops_per_token: float
    run: RunConfig

    @property
    def folder(self) -> Path:
        return Path(self.run.out) / self.run.name

    @property
    def tokens(self) -> int:
        t = self.run.train
        return t.steps * t.batch_size * t.seq_len

    @property
    def flops(self) -> float:
        """What its whole steps cost: the budget, but for their rounding."""
        return self.tokens * self.flops_per_token


def grid(cfg: ScalingConfig, vocab_size: int) -> list[Cell]:
    """Every run, by budget and then as the sizes are given. vocab_size: the tokenizer's."""
    _check(cfg)
    return [_cell(cfg, b, s, vocab_size) for b in range(len(cfg.budgets)) for s in range(len(cfg.sizes))]


def settle(cfg: ScalingConfig) -> list[Cell]:
    """The grid of a sweep: what its file says, which the first call writes and no later one changes."""
    path = cfg.folder / "plan.json"
    if not path.exists():
        cells = grid(cfg, _vocab_size(cfg))
        plan = {"config": config_lib.dump(cfg), "cells": [_plain(c) for c in cells]}
        write_atomic(path, json.dumps(plan, indent=1))
        return cells
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        old, cells = plan["config"], [_read(cell, cfg) for cell in plan["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it: the same CONFIG writes the same plan."
        ) from error
    before, now = (config_lib.flatten({**c, "out": ""}) for c in (old, config_lib.dump(cfg)))
    if changed := [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]:
        given = "; ".join(f"{k}: {before.get(k)} -> {now.get(k)}" for k in changed[:5])
        raise UserError(
            f"The grid of {cfg.folder} was fixed with other settings ({given}). Give another name=NAME, or remove the "
            "folder to start afresh."
        )
    return cells


def _check(cfg: ScalingConfig) -> None:
    for key in ("budgets", "sizes"):
        values = getattr(cfg, key)
        if not values or any(v in values[:i] for i, v in enumerate(values)):
            raise UserError(f"'{key}' is {list(values)}; a grid needs at least one, and none of them twice.")
    if min(cfg.budgets) <= 0:
        raise UserError(f"'budgets' has {min(cfg.budgets):g}; training FLOPs are above 0.")
    for key, of in (("lrs", "sizes"), ("batch_sizes", "budgets")):
        given, wanted = len(getattr(cfg, key)), len(getattr(cfg, of))
        if given not in (0, wanted):
            raise UserError(f"'{key}' has {given} values for {wanted} {of}; give one for each, or none.")
    if not 0 <= cfg.warmup < 1:
        raise UserError(f"'warmup' is {cfg.warmup}; it is a share of the steps, from 0 to below 1.")
    if taken := [key for key in OURS if key in cfg.run]:
        raise UserError(f"'run.{taken[0]}' is given by the sweep, a folder for each run. Remove it.")


def _cell(cfg: ScalingConfig, b: int, s: int, vocab_size: int) -> Cell:
    budget = cfg.budgets[b]
    model = dict(cfg.run.get("model") or {}) | cfg.sizes[s]
    given = {"name": f"budget{b + 1}-size{s + 1}", "out": str(cfg.folder / "cells"), "model": model}
    run = config_lib.build(RunConfig, {**cfg.run, **given}, "run")
    if run.train.ramp or run.optim.over != "steps" or run.optim.decay_steps:
        raise UserError(
            "The runs of a grid have batches of one size and a schedule that ends with them, but 'run' sets "
            "train.ramp, optim.over or optim.decay_steps. Remove these."
        )
    model_cfg = dataclasses.replace(run.model, vocab_size=run.model.vocab_size or vocab_size)
    cost = flops_per_token(model_cfg, run.train.seq_len)
    per_token = 6.0 * cost.n if cfg.flops == "6ND" else cost.of(cfg.flops)
    rows = cfg.batch_sizes[b] if cfg.batch_sizes else run.train.batch_size
    per_step = rows * run.train.seq_len * per_token
    steps = round(budget / per_step)
    if abs(steps * per_step / budget - 1) > ROUNDING:
        raise UserError(
            f"A step of size {s + 1} ({cost.n:,} parameters) costs {per_step:.3g} FLOPs, so that whole steps miss the "
            f"budget of {budget:.3g} by more than {ROUNDING:.0%}. Take smaller batches, or leave that size out."
        )
    optim = dataclasses.replace(
        run.optim, lr=cfg.lrs[s] if cfg.lrs else run.optim.lr, warmup=round(cfg.warmup * steps)
    )
    train = dataclasses.replace(run.train, steps=steps, batch_size=rows)
    return Cell(
        budget, cost.n, per_token, check(dataclasses.replace(run, model=model_cfg, optim=optim, train=train))
    )


def _vocab_size(cfg: ScalingConfig) -> int:
    """The tokenizer's; the text is prepared for it, which the first run would do anyway."""
    from min_llm.data.prepare import prepare_corpus

    run = config_lib.build(RunConfig, {k: v for k, v in cfg.run.items() if k != "model"}, "run")
    return prepare_corpus(run.data).tokenizer.vocab_size


def _plain(cell: Cell) -> dict[str, Any]:
    """A cell as JSON, with what is worth reading beside what is needed."""
    return {
        "budget": cell.budget,
        "parameters": cell.parameters,
        "flops_per_token": cell.flops_per_token,
        "tokens": cell.tokens,
        "flops": cell.flops,
        "run": config_lib.dump(cell.run),
    }


def _read(plain: Mapping[str, Any], cfg: ScalingConfig) -> Cell:
    """A cell of a plan that may have been moved since."""
    run = config_lib.build(RunConfig, plain["run"] | {"out": str(cfg.folder / "cells")})
    return Cell(plain["budget"], plain["parameters"], plain["flops_per_token"], run)
