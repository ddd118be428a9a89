"""First use: seconds from the start of `min-llm train` to its first training step, cold and again.

    python -m bench.startup [--starts N] [--dry]

Configuration c of bench/train.py in bfloat16. The first start of a pair has an empty compilation cache, the second
has what the first left; data, measured peaks and the compiled kernels are there for both. The step is done when its
row is in metrics.jsonl.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import results
from bench.train import CASES, model_of
from min_llm import machine, platform

LIMIT = 300.0  # seconds


def settings(folder: Path) -> list[str]:
    """Configuration c for `min-llm train`, one step; characters stand for its 32,000 tokens."""
    case = CASES["c"]
    model = {"family": "llama", **model_of("llama", case)}
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("To be, or not to be, that is the question.\n" * 2000)
    return [
        *(f"model.{key}={value}" for key, value in model.items()),
        f"data.source={text}", "data.tokenizer=bytes",
        f"train.batch_size={case.rows}", f"train.seq_len={case.length}", "train.steps=1", "train.log_every=1",
        "train.eval_every=0", "sample.every=0", "checkpoint.every=0", "log.tensorboard=false",
        "runtime.dtype=bfloat16", "optim.warmup=0",
    ]  # fmt: skip


def start(folder: Path, name: str) -> float:
    """Seconds until the first step of a new run is in its metrics."""
    run = folder / "runs" / name
    command = [sys.executable, "-c", "from min_llm.cli.main import main; main()", "train", *settings(folder)]
    env = {**os.environ, "MIN_LLM_HOME": str(folder / "home")}
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, f"name={name}"],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = None
    while seconds is None and time.perf_counter() - began < LIMIT:
        if process.poll() is not None and process.returncode != 0:
            break
        try:
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            if any(row["kind"] == "train" for row in rows):
                seconds = time.perf_counter() - began
        except (OSError, ValueError):
            pass
        time.sleep(0.01)
    process.kill()  # what follows the step is not measured
    output = process.communicate()[0]
    if seconds is None:
        raise SystemExit(f"The run did not make its step:\n{output[-3000:]}")
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=5, help="pairs of starts")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    with machine.exclusive(), tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        start(folder, "preparation")
        pairs = []
        for i in range(arguments.starts):
            shutil.rmtree(folder / "home" / "xla")
            pairs.append((start(folder, f"cold-{i}"), start(folder, f"warm-{i}")))
            print(f"cold {pairs[-1][0]:.2f} s, again {pairs[-1][1]:.2f} s", flush=True)
    ratios = sorted(warm / cold for cold, warm in pairs)
    made_row = results.row(
        "c", "second_start", "share of the first", "bfloat16", statistics.median(ratios), better="lower",
        runs=len(pairs), spread=[ratios[0], ratios[-1]],
        seconds=[statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)],
        kernels=platform.compiler_for_kernels() is not None,
    )  # fmt: skip
    if arguments.dry:
        print(made_row)
    else:
        print("wrote", results.write("startup", [made_row]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
