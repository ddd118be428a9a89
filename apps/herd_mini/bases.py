"""What the base of the rotary embedding decides, before any training: python -m apps.herd_mini.bases [runs/herd-mini]

The pretrained model of a recipe, with other bases, looks for needles at longer and longer texts, asked for from their
whole length (depth 0) and from half of it; and its loss in short rows says what the change costs. Nothing is trained.
Rows go into apps/herd_mini/results.json.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps import results
from apps.herd_mini import data, score
from apps.herd_mini.config import HerdConfig
from bench.results import Row, row
from min_llm import config as config_lib
from min_llm.data.prepared import Corpus
from min_llm.evals.needles import Grid
from min_llm.infer.load import Loaded, load_run

BASES = (1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6)
DEPTHS = (0.0, 0.5)
TRIALS = 100


def with_base(loaded: Loaded, base: float) -> Loaded:
    return dataclasses.replace(loaded, cfg=dataclasses.replace(loaded.cfg, rope_theta=base))  # type: ignore[call-arg]


def measure(
    cfg: HerdConfig, loaded: Loaded, base: float, lengths: Sequence[int], trials: int, held_out: Corpus
) -> tuple[float, Grid]:
    """Loss in short rows (nats per token), and needles at the lengths."""
    model = with_base(loaded, base)
    tried = dataclasses.replace(cfg, needles=dataclasses.replace(cfg.needles, trials=trials))
    short = score.loss(cfg, model, data.base_length(cfg), held_out)["loss"]
    return short, score.grid(tried, model, tuple(lengths), held_out, DEPTHS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/herd-mini"))
    parser.add_argument("--bases", nargs="+", type=float, default=BASES)
    parser.add_argument("--trials", type=int, default=TRIALS, help="needles at each length and depth")
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    options = parser.parse_args()
    cfg = config_lib.load(HerdConfig, options.folder / "config.yaml")
    loaded, held_out = load_run(options.folder / "runs" / "pretrain"), score.corpus(cfg)
    lengths = (data.base_length(cfg), *cfg.context.lengths)
    rows: list[Row] = []
    for base in options.bases:
        short, grid = measure(cfg, loaded, base, lengths, options.trials, held_out)
        about: dict[str, Any] = {"seed": cfg.seed, "questions": options.trials, "short": short}
        for depth, name in enumerate(("whole length", "half of it")):
            for i, length in enumerate(lengths):
                about[f"{length}"] = grid.recall[i][depth].value
            rows.append(
                row(f"{cfg.name} base {base:,.0f}, {name}", "needles at once", "share", loaded.runtime.dtype,
                    grid.recall[-1][depth].value, **about)
            )  # fmt: skip
        print(rows[-2]["case"], {n: rows[-2][f"{n}"] for n in lengths}, f"loss {short:.4f}", flush=True)
    print(f"wrote {results.write('herd_mini', rows, options.into)}")


if __name__ == "__main__":
    main()
