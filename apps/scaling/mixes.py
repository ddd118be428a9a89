"""Data-mix laws (L3-1.14): small models of three mixes predict the order of the mixes at 4 times the compute.

    python -m apps.scaling.mixes

Three sizes x three mixes of the State of the Union addresses and Shakespeare, each trained on 20 tokens a parameter,
so that twice the parameters are four times the compute. What counts is the mean of the bits per byte of the two
held-out texts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

from apps import results
from bench.results import Row, row
from min_llm.scaling import mixes
from min_llm.train import history

CONFIG = Path(__file__).resolve().parent / "configs" / "mixes.yaml"
SOURCES = ("speeches", "plays")
SHARES = (25, 50, 75)  # per cent of the tokens that are speeches
UNIT = "bits/byte"


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and how it is trained: steps of 256 tokens in proportion to its parameters, peak rate 0.16 / dim."""

    dim: int
    heads: int
    lr: float
    steps: int


SMALL = (Size(16, 1, 10e-3, 770), Size(24, 2, 6.7e-3, 1400), Size(32, 2, 5e-3, 2350))
LARGE = Size(48, 3, 3.3e-3, 4730)  # twice the parameters of the last


def train(share: int, size: Size, out: Path) -> tuple[mixes.Trained, Row]:
    """A model of a size on a mix: what the laws need of it, and its row."""
    weights = dict(zip(SOURCES, (share / 100, 1 - share / 100), strict=True))
    changes = {
        "name": f"mixes-{share}-{size.dim}", "model.dim": size.dim, "model.n_heads": size.heads,
        "model.n_kv_heads": size.heads, "optim.lr": size.lr, "optim.warmup": size.steps // 20,
        "train.steps": size.steps, "data.mix": json.dumps([{"weights": weights}]),
    }  # fmt: skip
    run = results.train(CONFIG, changes, out)
    rows = history.read_rows(run.folder)[0]
    bits = {name: history.column(rows, "val", f"bits_per_byte/{name}")[-1][1] for name in SOURCES}
    mean = statistics.mean(bits.values())
    found = row(
        f"{share} % speeches, dim {size.dim}", "mix_loss", UNIT, run.dtype, mean, seed=run.seed, share=share,
        parameters=run.parameters, steps=run.steps, tokens=run.tokens, flops=run.flops,
        train_seconds=run.seconds, **bits,
    )  # fmt: skip
    return mixes.Trained(f"{share} %", run.parameters, mean), found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    options = parser.parse_args()
    small = [train(share, size, options.out.absolute()) for size in SMALL for share in SHARES]
    laws = mixes.fit_mixes([trained for trained, _ in small])
    large = [train(share, LARGE, options.out.absolute()) for share in SHARES]
    parameters = large[0][0].parameters
    verdict = mixes.verify(laws, parameters, {trained.mix: trained.loss for trained, _ in large})
    rows = [found for _, found in (*small, *large)]
    for trained, _ in large:
        law = laws[trained.mix]
        rows.append(row(
            f"{trained.mix} speeches", "mix_prediction", UNIT, rows[0]["dtype"], trained.loss, parameters=parameters,
            predicted=law(parameters), off=verdict.errors[trained.mix], exponent=law.exponent, r2=law.r2,
            predicted_place=verdict.predicted.index(trained.mix) + 1,
            measured_place=verdict.measured.index(trained.mix) + 1,
        ))  # fmt: skip
    print(f"predicted {' < '.join(verdict.predicted)}, measured {' < '.join(verdict.measured)}")
    print(f"wrote {results.write('scaling', rows, options.into)}")


if __name__ == "__main__":
    main()
