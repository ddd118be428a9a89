"""`min-llm anneal-probe`: what a text is worth to a half-trained model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from min_llm.cli.models import Json, print_json, say, show

if TYPE_CHECKING:
    from min_llm.recipe.probe import Effect


def anneal_probe(
    settings: Annotated[list[str], typer.Argument(metavar="CONFIG.yaml [key=value ...]", show_default=False)],
    as_json: Json = False,
) -> None:
    """Anneal a half-trained model on 30 % of each candidate text and on the default mix alone, and compare losses.

    CONFIG: source (a run, or RUN/checkpoints/STEP), candidates (NAME: a source of text), steps (of an annealing); also
    judges (sources of the default mix whose held-out text is scored), share, warmup, seeds, run (settings of `min-llm
    train` that differ from the run's), name, out. What is finished is read and never run again. SIGTERM and Ctrl-C save
    a checkpoint first (exit status 143).
    """
    from min_llm import config as config_lib
    from min_llm import platform
    from min_llm.cli import train
    from min_llm.parallel import processes
    from min_llm.recipe.probe import ProbeConfig, effects, plan, run_probe

    cfg = config_lib.from_words(ProbeConfig, settings)
    platform.run_in_turn()
    with processes.joined():
        platform.use_compilation_cache()
        if not run_probe(plan(cfg), lambda run: train.run(run)[0]):
            sys.exit(143)
    found = effects(cfg)
    if as_json:
        return print_json({"seeds": list(cfg.seeds), "effects": [facts(effect) for effect in found]})
    judges = list(found[0].differences)
    names = judges if len(judges) > 1 else []
    show(("candidate", "loss less the control's", "lowest", "highest", *names), [
        (e.candidate, *(f"{x:+.4f}" for x in (e.mean, *e.spread)),
         *(f"{sum(e.differences[j]) / len(cfg.seeds):+.4f}" for j in names)) for e in found
    ], right=tuple(range(1, 4 + len(names))))  # fmt: skip
    say(f"Nats per token on held-out {', '.join(judges)}, {len(cfg.seeds)} seeds; below 0: the text helps")


def facts(effect: Effect) -> dict[str, Any]:
    return {
        "candidate": effect.candidate,
        "mean": effect.mean,
        "spread": effect.spread,
        "differences": effect.differences,
    }
