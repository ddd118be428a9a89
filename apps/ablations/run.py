"""The ablation table: what each of Llama 3's choices changes at equal training FLOPs, over three seeds.

    python -m apps.ablations.run --tune      the optimizers' learning rates, on a part of the training text
    python -m apps.ablations.run             every variant and seed, the rows of results.json and differences.png

Runs are kept in OUT: what a folder already holds, finished and with the same settings, is read and not run again;
one with other settings is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps import results
from apps.ablations.figure import draw
from apps.ablations.variants import BASE, CONFIG, RATES, TUNE_STEPS, VARIANTS, load, settings
from bench.results import Row
from min_llm import config as config_lib
from min_llm import machine
from min_llm.data.prepare import prepare_corpus
from min_llm.train import history
from min_llm.train.config import RunConfig
from min_llm.train.series import last_loss

UNIT = "nats/token"
APP = "ablations"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tune", action="store_true", help="try the learning rates instead")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1337, 1338, 1339])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    options = parser.parse_args()
    vocab_size = prepare_corpus(config_lib.load(RunConfig, CONFIG).data).tokenizer.vocab_size
    out = options.out.absolute()
    with machine.exclusive(print):
        if options.tune:
            rows = tuned(vocab_size, options.seeds[0], out)
        else:
            rows = compared(vocab_size, options.seeds, out)
    print(f"wrote {results.write(APP, rows, options.into)}")
    if not options.tune:
        draw(rows).savefig(CONFIG.parent / "differences.png", dpi=130)


def tuned(vocab_size: int, seed: int, out: Path) -> list[Row]:
    """A row for each optimizer and learning rate, one seed: the mean training loss over the last tenth of the steps.
    A run sees no token twice, so that this is the loss on text that it has not learned from."""
    rows = []
    for optimizer, rates in RATES.items():
        for rate in rates:
            changes = {
                "optim.name": optimizer,
                "optim.lr": rate,
                "data.tune": True,
                "train.steps": TUNE_STEPS,
            }
            run = trained(f"tune {optimizer} {rate:g}", changes | {"seed": seed}, vocab_size, out)
            case = f"{optimizer} at {rate:g}"
            rows.append(results.over_seeds(case, "late_loss", UNIT, [run], late_loss))
    return rows


def compared(vocab_size: int, seeds: list[int], out: Path) -> list[Row]:
    """A row for each variant: the validation loss, and its difference from the base's of the same seed."""
    runs: dict[str, list[results.Trained]] = {name: [] for name in VARIANTS}
    for seed in seeds:
        for name, mine in runs.items():
            mine.append(trained(name, settings(name, vocab_size) | {"seed": seed}, vocab_size, out))
    return [row(name, mine, runs[BASE]) for name, mine in runs.items()]


def row(name: str, runs: list[results.Trained], base: list[results.Trained]) -> Row:
    """difference: the mean of loss - base's loss of the same seed; seed_differences: its lowest and highest.
    late_loss: of training, as `--tune` has it. verdict: "better" or "worse" where the losses of all seeds lie on one
    side of all of the base's."""
    apart = [mine.loss - other.loss for mine, other in zip(runs, base, strict=True)]
    mine, others = [run.loss for run in runs], [run.loss for run in base]
    verdict = "better" if max(mine) < min(others) else "worse" if min(mine) > max(others) else "within seeds"
    return results.over_seeds(
        name,
        "val_loss",
        UNIT,
        runs,
        lambda run: run.loss,
        difference=statistics.mean(apart),
        seed_differences=[min(apart), max(apart)],
        late_loss=statistics.mean(map(late_loss, runs)),
        verdict="–" if name == BASE else verdict,
        spikes=sum(spikes(run.folder) for run in runs),
    )


def late_loss(run: results.Trained) -> float:
    """Mean training loss over the last tenth of the steps."""
    losses = [loss for _, loss in history.column(history.read_rows(run.folder)[0], "train", "loss")]
    return statistics.mean(losses[-run.steps // 10 :])


def spikes(folder: Path) -> int:
    """Losses that the run's monitor called spikes (`train.spike_z`, every step)."""
    return sum(event.get("event") == "spike" for event in history.read_rows(folder)[0])


def trained(name: str, changes: Mapping[str, Any], vocab_size: int, out: Path) -> results.Trained:
    """The run with these settings: read where it is finished, trained otherwise."""
    label = f"{name} {changes['seed']}"
    folder = f"ablations-{label.replace(' ', '-').lower()}"
    planned = dataclasses.replace(load(changes, vocab_size), name=folder, out=str(out))
    finished = last_loss(planned) is not None
    run = results.read(out / folder) if finished else results.train(CONFIG, {**changes, "name": folder}, out)
    print(f"{label}: {run.loss:.4f} {UNIT}, {run.steps} steps, {run.seconds:.0f} s", flush=True)
    return run


if __name__ == "__main__":
    main()
