"""How well the classifiers of curation do: `python -m apps.classifiers.run [NAME ...]`.

Each configuration of configs/ is trained with three seeds, which draw the split, too. The labels are real: the
source a text is from, or the topic that Wikipedia's editors gave it. Rows of results.json: accuracy, the lowest recall
of a label and, for two labels, the area under the ROC curve, on held-out documents and on sources that nothing was
learnt from (`elsewhere`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from apps import results
from bench.results import row
from min_llm import config, machine
from min_llm.data.curate.train_linear import ClassifierConfig, train

CONFIGS = Path(__file__).resolve().parent / "configs"
NAMES = sorted({path.stem for path in CONFIGS.glob("*.yaml")} - {"encoder"})  # that one is distil.py's


def measured(about: dict[str, Any]) -> dict[tuple[str, str], float]:
    """(where, metric) -> value."""
    found = {}
    for where, key in (("held out", "held_out"), ("elsewhere", "tested")):
        if key in about:
            found[where, "accuracy"] = about[key]["accuracy"]
            found[where, "lowest recall"] = min(about[key]["recall"].values())
            if "auc" in about[key]:
                found[where, "auc"] = about[key]["auc"]
    return found


def rows_of(name: str, seeds: list[int]) -> list[dict[str, Any]]:
    """Mean, lowest and highest over the seeds of everything measured."""
    runs, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            overrides = [f"seed={seed}", f"output={folder}/{seed}.safetensors"]
            cfg = config.load(ClassifierConfig, CONFIGS / f"{name}.yaml", overrides)
            began = time.perf_counter()
            about = train(cfg).about
            seconds.append(time.perf_counter() - began)
            runs.append(measured(about))
    rows = []
    for where, metric in runs[0]:
        values = [run[where, metric] for run in runs]
        rows.append(
            row(
                f"{name} {where}",
                metric,
                "share",
                "float32",
                statistics.mean(values),
                runs=len(values),
                spread=[min(values), max(values)],
                seed=seeds,
                config=f"apps/classifiers/configs/{name}.yaml",
                texts=about["texts"],
                teacher=about["teacher"],
                seconds=statistics.mean(seconds),  # reading, training and testing
            )
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(NAMES)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    arguments = parser.parse_args()
    for name in arguments.names or NAMES:
        with machine.exclusive(print):
            rows = rows_of(name, arguments.seeds)
        for made in rows:
            low, high = made["spread"]
            print(f"{made['case']} {made['metric']}: {made['ours']:.4f} ({low:.4f} to {high:.4f})")
        print(f"wrote {results.write('classifiers', rows, arguments.into)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
