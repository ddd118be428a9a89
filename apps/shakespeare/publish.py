"""Keep the demo's result: python -m apps.shakespeare.publish [runs/shakespeare]

Writes apps/shakespeare/results.json (bits per byte beside those of xz and a 5-gram on the same text, time, speed)
and the picture docs/images/demo.svg, both from the run folder alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from apps import results
from bench import results as bench
from min_llm.train import history
from min_llm.train.figures import smooth

PICTURE = bench.ROOT / "docs" / "images" / "demo.svg"
CASE, SIZE = "demo", (7.2, 3.4)


def peers(folder: Path) -> list[tuple[str, float]]:
    """(name, bits per byte) of what the demo must beat."""
    found = history.read_json(folder / "baselines.json")
    if found is None:
        raise SystemExit(f"{folder} has no baselines.json; train the demo with log.baselines=true")
    xz, gram = found["xz_9"], found["kneser_ney"]
    return [
        ("xz -9", xz["alone"]),
        ("xz -9 knowing the training text", xz["conditional"]),
        (f"{gram['order']}-gram", gram["bits_per_byte"]),
    ]


def rows(folder: Path) -> list[bench.Row]:
    """A row a baseline, and the run's loss, time and speed."""
    run, start = results.read(folder), history.starts(folder)[-1]
    about: dict[str, Any] = {
        "commit": (start["commit"] or "unknown").replace("+", "+changes"),
        "command": start["command"],
        "date": start["time"],
        "seed": run.seed,
        "parameters": run.parameters,
        "steps": run.steps,
    }

    def row(metric: str, unit: str, ours: float, **peer: Any) -> bench.Row:
        return bench.row(CASE, metric, unit, run.dtype, ours, **peer, **about)

    return [
        *(
            row("bits_per_byte", "bits/byte", run.bits_per_byte, peer_name=name, peer=value, better="lower")
            for name, value in peers(folder)
        ),
        row("val_loss", "nats/token", run.loss),
        row("train_seconds", "s", run.seconds),
        row("throughput", "tokens/s", run.tokens_per_second),
    ]


def draw(folder: Path, path: Path) -> None:
    """The loss in bits per byte over training time, and what a compressor and an n-gram reach."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "min_llm", "font.size": 9, "svg.fonttype": "none"})
    found, run = history.read_rows(folder)[0], results.read(folder)
    bits = run.bits_per_byte / run.loss  # of one nat a token; the validation text's, used for both curves
    seconds = dict(history.column(found, "train", "elapsed"))
    train = [(seconds[x], bits * y) for x, y in smooth(history.column(found, "train", "loss"))]
    val = [(seconds[x], bits * y) for x, y in history.column(found, "val", "loss") if x in seconds]
    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    axis.plot(*zip(*train, strict=True), color="#7aa6d8", label="training, smoothed")
    axis.plot(*zip(*val, strict=True), "o-", color="#1f5fa8", markersize=4, label="validation")
    end = (max(seconds.values()), run.bits_per_byte)
    axis.plot(
        *end, "D", color="#b0203a", markersize=5, label=f"whole validation text: {run.bits_per_byte:.2f}"
    )
    for (name, value), colour in zip(peers(folder), ("#7a7a7a", "#7a7a7a", "#b5651d"), strict=True):
        axis.axhline(value, color=colour, linestyle="--", linewidth=1)
        axis.annotate(f"{name}: {value:.2f}", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                      color=colour)  # fmt: skip
    axis.set_ylim(0.9 * run.bits_per_byte, 2 * run.bits_per_byte)
    axis.set_xlabel("seconds of training")
    axis.set_ylabel("bits per byte")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/shakespeare"))
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    print(f"wrote {results.write('shakespeare', rows(options.run), options.into)}")
    draw(options.run, options.picture)
    print(f"wrote {options.picture}")


if __name__ == "__main__":
    main()
