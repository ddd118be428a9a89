"""Annealing, averaging and annealing as a probe, measured on a small Llama: rows of results.json.

    python -m apps.annealing.run                          everything: about 20 minutes of one core
    python -m apps.annealing.run --stages anneal rows     some of it, with what the others have left in runs/annealing

    base      config.yaml: three seeds, at a constant rate to the end
    probe     `min-llm anneal-probe` from each; its control anneals on the default mix
    anneal    each base goes on without annealing, and is annealed on a mix with more math
    rows      reads all of them, and scores means of their last checkpoints

Losses are nats a token on held-out text, scored once for each row; "default" weighs the sources as the default mix.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apps import results
from apps.annealing import texts
from bench.results import ROOT, Row
from min_llm.config import load
from min_llm.train import history
from min_llm.train.average import average, last_steps
from min_llm.train.config import RunConfig
from min_llm.train.pretrain import pretraining
from min_llm.train.run import load_config

CONFIG = Path(__file__).resolve().parent / "config.yaml"
OUT = ROOT / "runs/annealing"
STAGES = ("base", "probe", "anneal", "rows")
STEPS = 300
EVERY = 20  # steps between the checkpoints of an annealing
AVERAGED = 5  # the last checkpoints: 160 of 1,600 steps of a base, 80 of 300 of an annealing
DEFAULT = load(RunConfig, CONFIG).data.mix[0].weights
SHARE = 0.3  # of a candidate, and of the math that is added
UPSAMPLED = {name: (1 - SHARE) * weight + SHARE * (name == "math") for name, weight in DEFAULT.items()}
FALLING = {
    "optim.schedule": "linear",
    "optim.min_lr": 0,
    "optim.warmup": 0,
    "data.mix": [{"weights": UPSAMPLED}],
}
TRAININGS: dict[str, dict[str, Any]] = {
    "constant": {"optim.warmup": 0},
    "math": FALLING,
    "math-warmup": FALLING | {"optim.warmup": 20},
}
CANDIDATES = ("good", "neutral", "junk")
CONTROL = "control"


def base(seed: int) -> Path:
    return OUT / f"base-{seed}"


def going_on(what: str, seed: int) -> Path:
    """The run that goes on from a base: one of TRAININGS, a candidate or the control of the probe."""
    if what in TRAININGS:
        return OUT / f"{what}-{seed}"
    return OUT / f"probe-{seed}/runs/{what}-{100 + seed}"


def train_base(seed: int) -> None:
    results.train(CONFIG, {"name": base(seed).name, "seed": seed}, OUT)


def probe(seed: int) -> None:
    config = {
        "name": f"probe-{seed}",
        "out": str(OUT),
        "source": str(base(seed)),
        "candidates": {name: str(OUT / f"texts/{name}.jsonl") for name in CANDIDATES},
        "share": SHARE,
        "steps": STEPS,
        "seeds": [100 + seed],
        "run": {"checkpoint": {"every": EVERY, "keep_every": EVERY}},
    }
    path = OUT / f"probe-{seed}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    subprocess.run([*results.MIN_LLM, "anneal-probe", str(path)], check=True, cwd=ROOT)


def anneal(seed: int) -> None:
    for what, settings in TRAININGS.items():
        changes = {
            "name": going_on(what, seed).name,
            "seed": 100 + seed,
            "init_from": base(seed),
            "data.tokenizer": base(seed) / "tokenizer.json",
            "train.steps": STEPS,
            "checkpoint.every": EVERY,
            "checkpoint.keep_every": 0,
        }
        results.train(CONFIG, changes | settings, OUT)


def losses(row: Mapping[str, Any]) -> dict[str, float]:
    """Of a row of validation: of math, of the default mix, and the mean over the sources, by which the probe judges."""
    each = {name: row[f"loss/{name}"] for name in DEFAULT}
    default = sum(weight * each[name] for name, weight in DEFAULT.items())
    return {"math": each["math"], "default": default, "mean": statistics.mean(each.values())}


def of_run(folder: Path) -> dict[str, float]:
    return losses([row for row in history.read_rows(folder)[0] if row["kind"] == "val"][-1])


def of_mean(folder: Path) -> dict[str, float]:
    """Of the mean of its last checkpoints, scored as the run was."""
    _, task, _ = pretraining(load_config(folder))
    return losses(task.validate(average(folder, last_steps(folder, AVERAGED))))


@dataclasses.dataclass(frozen=True)
class Case:
    """What a row is of: a run for each seed, and its losses."""

    name: str
    folders: Sequence[Path]
    losses: Sequence[Mapping[str, float]]

    def rows(self, against: Case | None = None) -> list[Row]:
        """A row for each loss, with the differences seed by seed from another case."""
        runs = [results.read(folder) for folder in self.folders]
        made = []
        for metric in self.losses[0]:
            values = [found[metric] for found in self.losses]
            of = dict(zip(self.folders, values, strict=True))
            extra: dict[str, Any] = {}
            if against is not None:
                pairs = zip(values, against.losses, strict=True)
                differences = [value - theirs[metric] for value, theirs in pairs]
                extra = {
                    "against": against.name,
                    "difference": statistics.mean(differences),
                    "differences": differences,
                    "below": f"{sum(d < 0 for d in differences)} of {len(differences)}",
                }
            value = lambda run, of=of: of[run.folder]
            made.append(results.over_seeds(self.name, f"loss_{metric}", "nats/token", runs, value, **extra))
        return made


def all_rows(seeds: Sequence[int]) -> list[Row]:
    def case(name: str, what: str, score: Callable[[Path], dict[str, float]] = of_run) -> Case:
        folders = [base(seed) if what == "base" else going_on(what, seed) for seed in seeds]
        return Case(name, folders, [score(folder) for folder in folders])

    start, constant = case("base", "base"), case("no annealing", "constant")
    annealed, more = case("annealed", CONTROL), case("annealed on more math", "math")
    return [
        *start.rows(),
        *constant.rows(),
        *annealed.rows(constant),
        *more.rows(annealed),
        *case("annealed on more math, 20 steps of warmup", "math-warmup").rows(more),
        *case(f"mean of {AVERAGED} checkpoints of the base", "base", of_mean).rows(start),
        *case(f"mean of {AVERAGED} checkpoints of the annealing", CONTROL, of_mean).rows(annealed),
        *(row for c in CANDIDATES for row in case(f"probe: {c}", c).rows(annealed)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    options = parser.parse_args()
    texts.write(OUT / "texts")
    for stage, work in (("base", train_base), ("probe", probe), ("anneal", anneal)):
        for seed in options.seeds if stage in options.stages else ():
            work(seed)
    if "rows" in options.stages:
        print(f"wrote {results.write('annealing', all_rows(options.seeds), options.into)}")


if __name__ == "__main__":
    main()
