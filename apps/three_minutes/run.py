"""The leaderboard: character-level validation loss after 3 or 10 minutes of training on two cores.

    python -m apps.three_minutes.run 3min                              three seeds, and a row for results.json
    python -m apps.three_minutes.run 3min --tune optim.lr=2e-3         one seed, scored on training text; no row

A first training of 60 steps measures a step (`--calibrate` stops there), then every seed trains for the number of
steps that fits the budget, so that its schedule ends with it. Time counts from the first step to the last, without
compilation and validation; a seed that takes longer than the budget makes the row invalid, and it is not written.
The whole run holds the machine's lock.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from apps import results
from bench.results import cores
from min_llm import machine
from min_llm.train import history
from scripts.evidence import commit

HERE = Path(__file__).resolve().parent
CORES = 2
BUDGETS = {"3min": 180.0, "10min": 600.0}  # seconds
UNIT = "nats/char"
PROBE_STEPS, WARM_STEPS = 60, 20


def seconds_per_step(config: Path, changes: dict[str, object], out: Path) -> float:
    """Mean over steps 21 to 60 of a short training; the first ones are slower."""
    short = {
        **changes,
        "name": "three-minutes-calibration",
        "train.steps": PROBE_STEPS,
        "train.log_every": 10,
    }
    elapsed = dict(
        history.column(history.read_rows(results.train(config, short, out).folder)[0], "train", "elapsed")
    )
    return (elapsed[PROBE_STEPS] - elapsed[WARM_STEPS]) / (PROBE_STEPS - WARM_STEPS)


def row(board: str, runs: Sequence[results.Trained], settings: Sequence[str]) -> dict[str, object]:
    """The board's row: mean over the seeds, with what another machine needs to compare."""
    at = commit()
    return results.over_seeds(
        f"{board} {at[:10]}{' changed' if '+' in at else ''}{' ' if settings else ''}{' '.join(settings)}",
        "val_loss",
        UNIT,
        runs,
        lambda run: run.loss,
        minutes=max(run.seconds for run in runs) / 60,
        config=f"apps/three_minutes/{board}.yaml",
        commit=at,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("board", choices=BUDGETS)
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="changes of the configuration, with --tune"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 1337 1338 1339; with --tune 1337")
    parser.add_argument(
        "--tune", action="store_true", help="validate on a slice of the training text, write no row"
    )
    parser.add_argument("--steps", type=int, help="train this many steps instead of calibrating")
    parser.add_argument("--margin", type=float, default=0.03, help="share of the budget left free")
    parser.add_argument(
        "--calibrate", action="store_true", help="print the number of steps that fit, and stop"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    options = parser.parse_intermixed_args()
    if options.settings and not (options.tune or options.calibrate):
        parser.error(
            "a row is a configuration and a commit: put the settings into the file, or tune with --tune"
        )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if cores() != CORES:
        parser.error(f"the board is for {CORES} cores; this process may use {cores()}")
    config, out, budget = HERE / f"{options.board}.yaml", options.out.absolute(), BUDGETS[options.board]
    changes: dict[str, object] = dict(setting.split("=", 1) for setting in options.settings)
    changes["data.tune"] = str(options.tune).lower()
    runs = []
    with machine.exclusive(print):
        steps = options.steps
        if steps is None:
            step = seconds_per_step(config, changes, out)
            steps = int(budget * (1 - options.margin) / step)
            print(
                f"a step takes {1000 * step:.1f} ms: {steps} steps in {budget:.0f} s less {options.margin:.0%}"
            )
        if options.calibrate:
            return 0
        for seed in options.seeds or ([1337] if options.tune else [1337, 1338, 1339]):
            name = f"three-minutes-{options.board}{'-tune' if options.tune else ''}-{seed}"
            runs.append(
                results.train(config, {**changes, "name": name, "seed": seed, "train.steps": steps}, out)
            )
            print(f"seed {seed}: {runs[-1].loss:.4f} {UNIT} after {runs[-1].seconds:.1f} s, {steps} steps")
    slow = [f"seed {run.seed} took {run.seconds:.1f} s" for run in runs if run.seconds > budget]
    if slow:
        print(
            f"invalid: {', '.join(slow)}; the budget is {budget:.0f} s. A larger --margin trains fewer steps."
        )
        return 1
    if not options.tune:
        print(
            f"wrote {results.write('three_minutes', [row(options.board, runs, options.settings)], options.into)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
