"""How well a small encoder stands in for a language model as a judge of texts: `python -m apps.classifiers.distil`.

The model scores some thousand texts (teacher.py) into OUT/scores.jsonl, which stay there for the next run. An encoder
is trained on them with three seeds, which draw the split, too, and so is a linear classifier (bags of n-grams), the
yardstick: has the encoder learnt more than which words and sources score well? Rows: the area under the ROC curve on
texts held out, where the teacher's verdict (above or below its median) is the truth, also without the tenth of the
scores about the median, where the verdict is nearly a coin's; and speed, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from apps import results
from apps.classifiers import teacher
from apps.classifiers.teacher import Teacher
from bench.results import Row, row
from min_llm import config, machine
from min_llm.config import build
from min_llm.data import readers
from min_llm.data.curate import train_encoder, train_linear
from min_llm.data.curate.encoder import LABELS, Encoder
from min_llm.data.curate.labelled import Text
from min_llm.data.curate.train_encoder import DistilConfig, Scored
from min_llm.data.curate.train_linear import ClassifierConfig

CONFIG = Path(__file__).resolve().parent / "configs" / "encoder.yaml"
TIMED = 64  # texts
ROUNDS = 5


def linear(cfg: DistilConfig, texts: list[Scored]) -> float:
    """The area under the curve of a linear classifier of the same texts, which knows on which side each score is."""
    given = {"data": {"rows": [cfg.scores]}, "seed": cfg.seed, "epochs": 10}
    learnt = [Text(t.text, int(t.score >= 0.5), False) for t in texts if not t.held_out]
    model = train_linear.fit(build(ClassifierConfig, given), LABELS, learnt)
    return train_encoder.agreement(model, [t for t in texts if t.held_out])["auc"]


def by_source(texts: list[Scored], sources: dict[str, str]) -> float:
    """The area under the curve of who knows the source of a text, and nothing else of it."""
    known: dict[str, list[float]] = {}
    for t in texts:
        if not t.held_out:
            known.setdefault(sources[t.text], []).append(t.score)
    held_out = [t for t in texts if t.held_out]
    guesses = np.array([statistics.mean(known[sources[t.text]]) for t in held_out])
    return train_linear.auc(guesses, np.array([t.score >= 0.5 for t in held_out]))


def agreements(scores: Path, seeds: list[int]) -> tuple[list[Row], Encoder]:
    """The rows of agreement, and the last encoder."""
    sources = {found["text"]: found["source"] for _, found in readers.json_lines(scores)}
    measured: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            overrides = [f"scores={scores}", f"seed={seed}", f"output={folder}/encoder.safetensors"]
            cfg = config.load(DistilConfig, CONFIG, overrides)
            began = time.perf_counter()
            model = train_encoder.train(cfg)
            seconds = time.perf_counter() - began
            texts = train_encoder.read(cfg)
            clear = [t for t in texts if t.held_out and abs(t.score - 0.5) >= 0.05]
            found = model.about["held_out"]
            measured.append(
                {
                    "auc": found["auc"],
                    "accuracy": found["accuracy"],
                    "auc without the middle tenth": train_encoder.agreement(model, clear)["auc"],
                    "auc of a linear classifier": linear(cfg, texts),
                    "auc of the source alone": by_source(texts, sources),
                    "seconds": seconds,
                }
            )
    columns = {metric: [found[metric] for found in measured] for metric in measured[0]}
    about: dict[str, Any] = {
        "runs": len(seeds),
        "seed": seeds,
        "config": CONFIG.relative_to(results.APPS.parent).as_posix(),
        "teacher": cfg.teacher,
        "texts": model.about["texts"],
        "seconds": statistics.mean(columns.pop("seconds")),
    }
    made = [
        row(
            "encoder held out",
            metric,
            "share",
            "float32",
            statistics.mean(values),
            spread=[min(values), max(values)],
            **about,
        )
        for metric, values in columns.items()
    ]
    return made, model


def verdicts(scores: Path) -> list[Row]:
    """The teacher's mean score of the texts of each source: whether its taste makes sense."""
    by_source: dict[str, list[float]] = {}
    for _, found in readers.json_lines(scores):
        by_source.setdefault(found["source"], []).append(found["score"])
    return [
        row(
            f"teacher on {source}",
            "mean score",
            "share",
            "bfloat16",
            statistics.mean(values),
            texts=len(values),
        )
        for source, values in by_source.items()
    ]


def speed(model: Encoder, scores: Path) -> Row:
    """Texts a second of both, who take turns; the ratio is the median of the rounds."""
    judge = Teacher()
    texts = [t.text for t in train_encoder.read(build(DistilConfig, {"scores": str(scores), "teacher": ""}))][
        :TIMED
    ]
    sides = {"ours": model.predict, "teacher": judge.bits}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):  # the first compiles
        for name, judged in sides.items():
            began = time.perf_counter()
            judged(texts)
            if number:
                seconds[name].append(time.perf_counter() - began)
    ratios = [slow / fast for fast, slow in zip(seconds["ours"], seconds["teacher"], strict=True)]
    rates = {name: len(texts) / statistics.median(taken) for name, taken in seconds.items()}
    return row(
        "encoder", "speed", "texts/s", "float32/bfloat16", rates["ours"], peer_name=teacher.NAME,
        peer=rates["teacher"], ratio=statistics.median(ratios), runs=ROUNDS, spread=[min(ratios), max(ratios)],
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the teacher's scores")
    parser.add_argument("--most", type=int, default=250, help="texts of a source")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    arguments = parser.parse_args()
    scores = arguments.out / "scores.jsonl"
    arguments.out.mkdir(parents=True, exist_ok=True)
    with machine.exclusive(print):
        if not scores.exists():
            print(f"the teacher took {teacher.write(scores, arguments.most):.3f} s a text")
        rows, model = agreements(scores, arguments.seeds)
        rows += [*verdicts(scores), speed(model, scores)]
    for made in rows:
        print(f"{made['case']} {made['metric']}: {made['ours']:.4f} {made['unit']}, spread {made['spread']}")
    print(f"wrote {results.write('classifiers', rows, arguments.into)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
