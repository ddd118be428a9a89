"""Keep a recipe's result: python -m apps.herd_mini.publish [runs/herd-mini]

Writes apps/herd_mini/results.json and three pictures from the folder alone: bits per byte of every source beside those
of a 5-gram, xz and GPT-2, needles found at each length, the law's choice, the time of the steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from apps import results
from apps.herd_mini import report
from apps.herd_mini.config import HERE, HerdConfig
from bench import results as bench
from min_llm import config as config_lib
from min_llm import models, spec
from min_llm.evals.figure import draw as draw_grid
from min_llm.train import history
from min_llm.train.run import load_config

PEERS = {"kneser_ney": "5-gram", "gpt2": "GPT-2", "xz": "xz -9 knowing the training text"}

COLOURS = ("#1f5fa8", "#7aa6d8", "#d9a066", "#b5651d", "#b8b8b8")


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
        row(source + where, "bits_per_byte", "bits/byte", scores[ours][source], better="lower",
            peer_name=name, peer=scores[peer][source])
        for ours, where in ((report.FINAL, ""), (report.WHOLE, ", whole context"))
        for source in [*cfg.sources, "all text"]
        for peer, name in PEERS.items()
        if peer in scores
    ]  # fmt: skip
    for stage in ("pretrained", "extended", "annealed", "averaged"):
        found.append(row(stage, "bits_per_byte", "bits/byte", scores[stage]["all text"]))
    grid, before = report.final_grid(steps), steps.get("context-before", {"recall": {}})["recall"]
    for length in grid.lengths:
        share = grid.at(length)
        control = {"before": before.get(str(length)), "questions": share.count}
        found.append(row(f"{length} tokens", "needles", "share", share.value, **control))
    if law := steps["size"]["law"]:
        found.append(row("scaling law", "parameters", "", law["parameters"], spread=None, r2=law["r2"]))
    found.append(row("all steps", "seconds", "s", report.seconds(steps)))
    ours = {name: facts for name, facts in steps.items() if name != "gpt2"}
    found.append(row("all steps but GPT-2", "seconds", "s", report.seconds(ours)))
    return found


def draw_scores(folder: Path, path: Path) -> None:
    """Bits per byte by source: the model and what it must beat."""
    cfg = config_lib.load(HerdConfig, folder / "config.yaml")
    scores = report.bits(cfg, report.read_steps(folder))
    shown = {report.WHOLE: "this model", report.FINAL: "in short rows"}
    shown |= {peer: name for peer, name in PEERS.items() if peer in scores}
    matplotlib.rcParams.update({"svg.hashsalt": "min_llm", "font.size": 9, "svg.fonttype": "none"})
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(shown)
    for k, (model, name) in enumerate(shown.items()):
        places = [i + (k - (len(shown) - 1) / 2) * width for i in range(len(cfg.sources))]
        axis.bar(
            places, [scores[model][source] for source in cfg.sources], width, label=name, color=COLOURS[k]
        )
    axis.set_xticks(range(len(cfg.sources)), list(cfg.sources))
    axis.set_ylabel("bits per byte, less is better")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=len(shown), loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def draw_size(folder: Path, path: Path) -> None:
    """The IsoFLOP curves and the law that chose the size."""
    report.isoflop(report.read_steps(folder)["size"]).savefig(path, metadata={"Date": None, "Creator": None})


def draw_needles(folder: Path, path: Path) -> None:
    """Needles found by the final model."""
    grid = report.final_grid(report.read_steps(folder))
    figure = draw_grid(grid, "needles found, %")
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/herd-mini"))
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    options = parser.parse_args()
    print(f"wrote {results.write('herd_mini', rows(options.folder), options.into)}")
    draw_scores(options.folder, HERE / "scores.svg")
    draw_needles(options.folder, HERE / "needles.svg")
    draw_size(options.folder, HERE / "isoflop.svg")


if __name__ == "__main__":
    main()
