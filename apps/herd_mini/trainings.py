"""The trainings of the recipe as configurations of `min-llm train`, each a run in FOLDER/runs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.herd_mini import data
from apps.herd_mini.config import RETRIEVAL, HerdConfig, Rung, over
from min_llm import config as config_lib
from min_llm import models, spec
from min_llm.config import UserError
from min_llm.data.prepare import DataConfig
from min_llm.plan.flops import flops_per_token
from min_llm.recipe.journal import Facts
from min_llm.scaling import fits
from min_llm.scaling.grid import ScalingConfig
from min_llm.train.config import Phase, RunConfig
from min_llm.train.ramp import Ramp

WARMUP = 0.05  # share of the steps


def build(cfg: HerdConfig, name: str, text: DataConfig, model: Mapping[str, Any]) -> RunConfig:
    """A run from the settings that all share and its own."""
    own = {"name": name, "out": str(cfg.folder / "runs"), "seed": cfg.seed, "data": config_lib.dump(text)}
    sized = {"vocab_size": data.load_tokenizer(cfg).vocab_size, **model}
    return config_lib.build(RunConfig, over(cfg.run, {**own, "model": sized}), "run")


# The size


def sweep(cfg: HerdConfig) -> ScalingConfig:
    """The IsoFLOP grid over the smallest sizes, on the text of pretraining without the made documents."""
    rungs = cfg.ladder[: cfg.sweep.rungs]
    return ScalingConfig(
        name="sweep",
        out=str(cfg.folder),
        budgets=cfg.sweep.budgets,
        sizes=tuple(rung.model for rung in rungs),
        lrs=tuple(rung.lr for rung in rungs),
        batch_sizes=cfg.sweep.batch_sizes,
        warmup=WARMUP,
        run={**cfg.run, "seed": cfg.seed, "data": config_lib.dump(data.text(cfg, (real(cfg.mix), None)))},
    )


def real(mix: Mapping[str, float]) -> dict[str, float]:
    """The mix without the made documents."""
    kept = {name: share for name, share in mix.items() if name != RETRIEVAL}
    return {name: share / sum(kept.values()) for name, share in kept.items()}


def choose(cfg: HerdConfig, runs: Sequence[fits.Measured]) -> Facts:
    """The size for the budget of pretraining: the one of the ladder that is nearest to the law's. Where a curve has no
    minimum inside the grid there is no law; then the best size of the largest budget is taken, and that is said."""
    sizes = [parameters(cfg, rung) for rung in cfg.ladder]
    curves = fits.fit_isoflop(runs)
    facts: Facts = {
        "sizes": sizes,
        "runs": [dataclasses.asdict(run) for run in runs],
        "curves": [dataclasses.asdict(curve) | {"interior": curve.interior} for curve in curves],
    }
    try:
        found = fits.fit(runs)
    except UserError as refused:
        largest = max(run.budget for run in runs)
        best = min((run for run in runs if run.budget == largest), key=lambda run: run.loss)
        return facts | {"law": None, "refused": str(refused), "chosen": sizes.index(best.parameters)}
    wanted = found.predict(cfg.pretrain.flops)
    nearest = min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i] / wanted.parameters)))
    law = {"exponent": found.law.exponent, "coefficient": found.law.coefficient, "r2": found.law.r2}
    law |= {
        "exponent_interval": found.exponent_interval,
        "tokens": wanted.tokens,
        "tokens_interval": wanted.interval,
    }
    return facts | {"law": law | {"parameters": wanted.parameters}, "refused": None, "chosen": nearest}


def parameters(cfg: HerdConfig, rung: Rung) -> int:
    """N of plan/flops.py."""
    return flops_per_token(shape(cfg, rung), data.base_length(cfg)).n


def shape(cfg: HerdConfig, rung: Rung) -> models.ModelConfig:
    return build(cfg, "shape", data.text(cfg, (real(cfg.mix), None)), rung.model).model


# The model


def pretrain(cfg: HerdConfig, rung: Rung) -> RunConfig:
    """The ramp and the two mixes over the tokens that the budget buys."""
    length = data.base_length(cfg)
    tokens = cfg.pretrain.flops / flops_per_token(shape(cfg, rung), length).training
    late = round(cfg.pretrain.late * tokens)
    text = data.text(cfg, (cfg.mix, late), (cfg.late_mix, None))
    run = build(cfg, "pretrain", text, rung.model)
    phases = tuple(Phase(round(r.until * tokens), r.batch_size, r.seq_len) for r in cfg.pretrain.ramp)
    train = dataclasses.replace(run.train, ramp=phases)
    steps = Ramp.of(train).steps(round(tokens))
    return dataclasses.replace(
        run,
        train=dataclasses.replace(train, steps=steps),
        optim=dataclasses.replace(
            run.optim, lr=rung.lr, min_lr=cfg.pretrain.min_lr, over="tokens", warmup=round(WARMUP * tokens)
        ),
    )


def anneal(cfg: HerdConfig, begin: RunConfig, start: RunConfig, length: int) -> RunConfig:
    """The last tokens, in rows as long as the last stage's: the rate of the stages goes to 0, and checkpoints stay.
    begin: the run whose weights it takes; start: that of pretraining; length: the context reached."""
    t, rate = begin.train, start.optim.lr * cfg.context.lr
    steps = max(cfg.anneal.checkpoints, round(cfg.anneal.tokens / (t.batch_size * t.seq_len)))
    every = steps // cfg.anneal.checkpoints
    return dataclasses.replace(
        begin,
        name="anneal",
        seed=cfg.seed + 10_000,
        init_from=str(Path(begin.out) / begin.name),
        data=data.text(cfg, (cfg.anneal_mix, None), length=length),
        optim=dataclasses.replace(
            begin.optim, lr=rate, schedule="linear", over="steps", min_lr=0.0, warmup=cfg.context.warmup
        ),
        train=dataclasses.replace(t, ramp=(), steps=every * cfg.anneal.checkpoints),
        checkpoint=dataclasses.replace(begin.checkpoint, every=every, keep_every=every),
    )


def tokens(run: RunConfig) -> int:
    """Those that a run trains on."""
    return Ramp.of(run.train).tokens(run.train.steps)


# What it is compared with


def gpt2(cfg: HerdConfig, start: RunConfig, later: Sequence[RunConfig], final: RunConfig) -> RunConfig:
    """A GPT-2 of the nearest size, on as many tokens of the same mixes, with one cosine to 0 and the
    same peak rate. later: the runs of the context stages."""
    ours = spec.count(models.spec(start.model))
    context = sum(tokens(run) for run in later)
    ends = [start.data.mix[0].until or 0, tokens(start), tokens(start) + context]
    mixes = [cfg.mix, cfg.late_mix, *([cfg.context_mix] if context else []), cfg.anneal_mix]
    phases = list(itertools.zip_longest(mixes, ends[: len(mixes) - 1]))
    wide: Any = min(_widths(start), key=lambda model: abs(spec.count(models.spec(model)) - ours))
    model = {"family": "gpt2", **{k: v for k, v in wide.to_mapping().items() if k != "family"}}
    settings = {**cfg.run, "model": {}}
    run = build(dataclasses.replace(cfg, run=settings), "gpt2", data.text(cfg, *phases), model)
    steps = round((tokens(start) + context + tokens(final)) / (run.train.batch_size * run.train.seq_len))
    return dataclasses.replace(
        run,
        train=dataclasses.replace(run.train, steps=steps),
        optim=dataclasses.replace(run.optim, lr=start.optim.lr, min_lr=0.0, warmup=round(WARMUP * steps)),
    )


def _widths(start: RunConfig) -> list[models.ModelConfig]:
    """GPT-2s as deep and with as many heads, of every width that the heads divide."""
    ours: Any = start.model
    heads: int = ours.n_heads
    shared = {"vocab_size": ours.vocab_size, "max_seq_len": start.train.seq_len, "n_layers": ours.n_layers}
    return [
        models.gpt2.Config(**shared, n_heads=heads, dim=dim) for dim in range(heads, 2 * ours.dim + 1, heads)
    ]
