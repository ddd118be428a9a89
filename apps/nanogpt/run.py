"""nanoGPT's shakespeare_char settings, trained by min_llm and scored on the whole validation split.

    python -m apps.nanogpt.run --configs gpt2-cpu llama-cpu --seeds 1337 1338 1339 --dtypes float32 bfloat16

One row a configuration and dtype, the mean over the seeds. The split is scored in windows of the training length,
each target once, with the final weights. Where a configuration validates on the way (the GPU ones, as nanoGPT
does) a second row has the lowest of its validations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from apps import results

HERE = Path(__file__).resolve().parent
CASES = {  # bench/nanogpt.py compares itself with the first
    "gpt2-cpu": "shakespeare_char cpu",
    "llama-cpu": "shakespeare_char cpu, Llama",
    "gpt2-gpu": "shakespeare_char gpu",
    "llama-gpu": "shakespeare_char gpu, Llama",
}
UNIT = "nats/char"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", choices=CASES, default=["gpt2-cpu", "llama-cpu"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1337, 1338, 1339])
    parser.add_argument(
        "--dtypes", nargs="+", choices=["auto", "float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    options = parser.parse_args()
    for config in options.configs:
        for dtype in options.dtypes:
            runs = []
            for seed in options.seeds:
                name = f"nanogpt-{config}-{dtype}-{seed}"
                changes = {"name": name, "seed": seed, "runtime.dtype": dtype}
                runs.append(results.train(HERE / f"{config}.yaml", changes, options.out.absolute()))
                print(f"{name}: {runs[-1].loss:.4f} {UNIT} after {runs[-1].seconds:.0f} s of training")
            about = {"model": config.split("-")[0], "config": f"apps/nanogpt/{config}.yaml"}
            rows = [results.over_seeds(CASES[config], "val_loss", UNIT, runs, lambda run: run.loss, **about)]
            if len(runs[0].losses) > 1:
                best = results.over_seeds(
                    CASES[config], "best_val_loss", UNIT, runs, lambda run: min(run.losses), **about
                )
                rows.append(best)
            print(f"wrote {results.write('nanogpt', rows, options.into)}")


if __name__ == "__main__":
    main()
