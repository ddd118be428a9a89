"""Keep a recipe's result: python -m apps.herd_mini.publish [runs/herd-mini]

Writes apps/herd_mini/results.json from the folder alone: bits per byte of every source beside those of a 5-gram, xz
and GPT-2, needles found at each length, the law's choice, the time of the steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from apps import results
from apps.herd_mini import report
from apps.herd_mini.config import HerdConfig
from bench import results as bench
from min_llm import config as config_lib
from min_llm import models, spec
from min_llm.train import history
from min_llm.train.run import load_config

PEERS = {"kneser_ney": "5-gram", "gpt2": "GPT-2", "xz": "xz -9 knowing the training text"}


def rows(folder: Path) -> list[bench.Row]:
    cfg = config_lib.load(HerdConfig, folder / "config.yaml")
    steps = report.read_steps(folder)
    start = history.starts(folder / "runs" / "pretrain")[-1]
    model = load_config(folder / "runs" / "pretrain").model
    about: dict[str, Any] = {
        "commit": (start["commit"] or "unknown").replace("+", "+changes"),
        "command": start["command"],
        "date": start["time"],
        "seed": cfg.seed,
        "parameters": spec.count(models.spec(model)),
    }
    dtype = start["runtime"]["dtype"]

    def row(case: str, metric: str, unit: str, ours: float, **more: Any) -> bench.Row:
        return bench.row(f"{cfg.name} {case}", metric, unit, dtype, ours, **more, **about)

    scores = report.bits(cfg, steps)
    found = [
        row(source, "bits_per_byte", "bits/byte", scores[report.FINAL][source], better="lower",
            peer_name=name, peer=scores[peer][source])
        for source in [*cfg.sources, "all text"]
        for peer, name in PEERS.items()
        if peer in scores
    ]  # fmt: skip
    for stage in ("pretrained", "extended", "annealed", "averaged"):
        found.append(row(stage, "bits_per_byte", "bits/byte", scores[stage]["all text"]))
    found += [row(f"{n} tokens", "needles", "share", share) for n, share in report.recall(steps).items()]
    if law := steps["size"]["law"]:
        found.append(row("scaling law", "parameters", "", law["parameters"], spread=None, r2=law["r2"]))
    seconds = sum(facts["seconds"] for facts in steps.values())
    found.append(row("all steps", "seconds", "s", seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/herd-mini"))
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    options = parser.parse_args()
    print(f"wrote {results.write('herd_mini', rows(options.folder), options.into)}")


if __name__ == "__main__":
    main()
