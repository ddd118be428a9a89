"""A trained run, ready to use: configuration, parameters, tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from min_llm import models, tokenizers
from min_llm import spec as spec_lib
from min_llm.config import UserError
from min_llm.nn.runtime import Runtime, resolve
from min_llm.tokenizers import Tokenizer
from min_llm.train.config import RunConfig
from min_llm.train.optim import optimizer
from min_llm.train.run import Run, load_config
from min_llm.train.step import init_state


@dataclasses.dataclass(frozen=True)
class Loaded:
    cfg: RunConfig
    step: int
    params: Any
    tokenizer: Tokenizer
    runtime: Runtime


def load_run(folder: Path, step: int | None = None) -> Loaded:
    """The latest checkpoint of a run (or that of `step`)."""
    cfg = load_config(folder)
    run = Run(folder, cfg)
    have = run.checkpoints.steps()
    if not have or (step is not None and step not in have):
        wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        raise UserError(
            f"{folder} does not have {wanted} (it has: {', '.join(map(str, have)) or 'none'}). Train it first."
        )
    step = have[-1] if step is None else step
    spec = models.spec(cfg.model)
    opt = optimizer(cfg.optim, spec, cfg.train.steps)
    target = jax.eval_shape(lambda p: init_state(p, opt), spec_lib.shapes(spec))
    state, _ = run.checkpoints.restore(step, target, spec)
    runtime = resolve(cfg.runtime, getattr(cfg.model, "n_layers", 1))
    return Loaded(cfg, step, state.params, tokenizers.load(str(folder / "tokenizer.json")), runtime)
