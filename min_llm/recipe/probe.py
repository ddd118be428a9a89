"""Annealing as a probe of what a text is worth (Llama 3 section 3.1.3, L3-1.17).

A half-trained model is annealed, its learning rate falling linearly to 0, on a mix of 30 % of a candidate text and 70 %
of the default mix, and as a control on the default mix alone. What a candidate is worth is the difference of their
losses on held-out text that is the same for all. The paper anneals a half-trained 8B over 40B tokens, because scaling
laws for each small data set would cost more.

Every annealing is an ordinary run (`init_from` a checkpoint) with the settings of the run that it comes from. Those of
one seed differ in the mix alone.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from min_llm import config as config_lib
from min_llm import tokenizers
from min_llm.config import UserError, nearest, option
from min_llm.data.mix import Phase
from min_llm.train.begin import present, run_of
from min_llm.train.config import RunConfig, check
from min_llm.train.ramp import Ramp
from min_llm.train.run import Run, load_config
from min_llm.train.schedules import rate_at
from min_llm.train.series import last_loss, run_series

CONTROL = "control"  # anneals on the default mix alone
OURS = (  # of a run: the probe sets these
    "name", "out", "seed", "init_from", "model", "data.tokenizer", "optim.schedule", "optim.min_lr", "optim.over",
    "optim.decay_steps", "train.steps", "train.ramp",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    name: str = option("probe", "name of the probe: its folder is OUT/NAME")
    out: str = option("runs", "folder of all probes")
    source: str = option("", "the half-trained model: a run, or RUN/checkpoints/STEP")
    candidates: dict[str, str | tuple[str, ...]] = option(
        {}, "texts to judge, by name: each a source or a list of them"
    )
    judges: tuple[str, ...] = option(
        (), "sources of the default mix on whose held-out text the loss is compared; empty: all of them"
    )
    share: float = option(0.3, "of the tokens that a candidate gives; the default mix gives the rest")
    steps: int = option(0, "of an annealing; a fraction of those of the run")
    warmup: int = option(0, "of these, steps in which the rate rises first")
    seeds: tuple[int, ...] = option(
        (101, 102, 103), "an annealing for each; another than the run's, whose order of the text was seen"
    )
    run: dict[str, Any] = option({}, "settings that differ from the run's, as for `min-llm train`")

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name


@dataclasses.dataclass(frozen=True)
class Annealing:
    """One run of the probe. text: the candidate in its mix, or CONTROL."""

    text: str
    run: RunConfig


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a candidate does to the loss: by judge, the loss with it less that of the control in nats per token, for
    each seed in order. Below 0: it helps."""

    candidate: str
    differences: dict[str, tuple[float, ...]]

    @property
    def by_seed(self) -> tuple[float, ...]:
        """The mean over the judges, for each seed."""
        return tuple(statistics.mean(values) for values in zip(*self.differences.values(), strict=True))

    @property
    def mean(self) -> float:
        return statistics.mean(self.by_seed)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest over the seeds."""
        return min(self.by_seed), max(self.by_seed)


def plan(cfg: ProbeConfig) -> list[Annealing]:
    """Every run of the probe: control and candidates of the first seed, then those of the next one."""
    if not cfg.source:
        raise UserError("'source' is empty; give the run that the annealings begin with.")
    folder, given = run_of(cfg.source)
    base = load_config(folder)
    step = present(Run(folder, base), given)
    if taken := sorted(config_lib.flatten(cfg.run).keys() & set(OURS)) or [k for k in cfg.run if k in OURS]:
        raise UserError(f"'run.{taken[0]}' is given by the probe. Remove it.")
    started: dict[str, Any] = {
        "init_from": str(folder / "checkpoints" / str(step)),  # now: the run may go on meanwhile
        "optim": {
            "lr": float(rate_at(base.optim, np.asarray(float(step)), base.train.steps, Ramp.of(base.train)))
        },
        "checkpoint": {"keep_every": 0},
    }
    fixed: dict[str, Any] = {
        "out": str(cfg.folder / "runs"),
        "data": {"tokenizer": str(folder / tokenizers.FILE_NAME)},
        "optim": {
            "schedule": "linear",
            "min_lr": 0.0,
            "over": "steps",
            "decay_steps": 0,
            "warmup": cfg.warmup,
        },
        "train": {"steps": cfg.steps, "ramp": []},
    }
    tree = config_lib.dump(base)
    for changes in (started, cfg.run, fixed):
        tree = config_lib.merge(tree, changes)
    common = config_lib.build(RunConfig, tree, "run")
    sources, weights = _default(common)
    _check(cfg, base, sources)

    def annealing(text: str, seed: int) -> Annealing:
        mix, texts = weights, sources
        if text != CONTROL:
            mix = {name: (1 - cfg.share) * weight for name, weight in weights.items()} | {text: cfg.share}
            texts = sources | {text: cfg.candidates[text]}
        data = dataclasses.replace(common.data, sources=texts, mix=(Phase(mix),))
        run = dataclasses.replace(common, name=f"{text}-{seed}", seed=seed, data=data)
        return Annealing(text, check(run))

    return [annealing(text, seed) for seed in cfg.seeds for text in (CONTROL, *cfg.candidates)]


def _default(cfg: RunConfig) -> tuple[dict[str, str | tuple[str, ...]], dict[str, float]]:
    """Sources of the default mix and their weights."""
    sources = {name: part.source for name, part in cfg.data.parts.items()}
    if len(cfg.data.mix) > 1:
        raise UserError(
            f"The run's mix changes with the tokens seen ({len(cfg.data.mix)} phases). Give the one to anneal on as "
            "run.data.mix, a single phase."
        )
    return sources, dict(cfg.data.mix[0].weights) if cfg.data.mix else dict.fromkeys(sources, 1.0)


def _check(cfg: ProbeConfig, base: RunConfig, sources: dict[str, Any]) -> None:
    if not cfg.candidates:
        raise UserError("'candidates' is empty; name at least one text to judge.")
    for name in cfg.candidates:
        if name == CONTROL or name in sources:
            raise UserError(
                f"A candidate is called {name!r}, which the default mix uses. Give it another name."
            )
    for judge in cfg.judges:
        if judge not in sources:
            raise UserError(
                f"'judges' has {judge!r}, no source of the default mix.{nearest(judge, list(sources))}"
            )
    if not 0 < cfg.share < 1:
        raise UserError(f"'share' is {cfg.share}; it is a share of the tokens, between 0 and 1.")
    if not 0 <= cfg.warmup < cfg.steps:
        raise UserError(
            f"'steps' is {cfg.steps} and 'warmup' {cfg.warmup}; an annealing has more steps than its warmup."
        )
    if not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds) or base.seed in cfg.seeds:
        raise UserError(
            f"'seeds' is {list(cfg.seeds)}; give at least one, none twice, and not the run's own ({base.seed}), with "
            "which it has seen the text in that order."
        )


def run_probe(annealings: Sequence[Annealing], train: Callable[[RunConfig], bool]) -> bool:
    """Train every annealing that is not finished, as `train.series.run_series` does. Whether all are finished."""
    return run_series([(f"annealing on {a.text}, seed {a.run.seed}", a.run) for a in annealings], train)


def effects(cfg: ProbeConfig) -> list[Effect]:
    """What the probe has measured, the candidate that helps most first. Raises UserError while runs are missing."""
    annealings = plan(cfg)
    judges = cfg.judges or tuple(annealings[0].run.data.sources)
    losses: dict[tuple[str, str], list[float]] = {}
    for a in annealings:
        for judge in judges:
            loss = last_loss(a.run, f"loss/{judge}" if len(a.run.data.sources) > 1 else "loss")
            if loss is None:
                raise UserError(
                    f"The annealing {a.run.name} of {cfg.folder} is not finished. Run the probe first."
                )
            if a.text == CONTROL and math.isinf(loss):
                raise UserError(
                    f"The control {a.run.name} diverged. Give a lower run.optim.lr and another name=NAME."
                )
            losses.setdefault((a.text, judge), []).append(loss)

    def difference(candidate: str, judge: str) -> tuple[float, ...]:
        pairs = zip(losses[candidate, judge], losses[CONTROL, judge], strict=True)
        return tuple(ours - control for ours, control in pairs)

    found = [Effect(c, {judge: difference(c, judge) for judge in judges}) for c in cfg.candidates]
    return sorted(found, key=lambda effect: effect.mean)
