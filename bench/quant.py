"""What each way of quantizing costs SmolLM2-135M-Instruct, and what it brings on this machine.

    python -m bench.quant [--windows N] [--methods w8a8,int8,int4,fp8] [--dry]

Quality is min_llm.quant.quality on windows of 256 tokens of Shakespeare, against the model in float32; weights rounded
to bfloat16 are the floor. The packaged weights are a Q4_1 file: they lie on a 4-bit grid already, so only what is lost
in addition is seen. Speed is of one product in XLA beside float32, at as many rows as the engine has.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import min_llm
from bench import results
from min_llm import models
from min_llm.kernels.product import product
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.quant.leaves import METHODS
from min_llm.quant.quality import Quality, Tokens, compare, summary
from min_llm.quant.quantize import quantize

MODEL = "smollm2-135m-instruct"
TEXT = results.ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
LENGTH = 256
METRICS = {
    "ratio": "changed / reference", "mean_divergence": "nats", "median_divergence": "nats", "divergence_99": "nats",
    "same_top": "share of tokens", "rms_delta_p": "probability",
}  # fmt: skip
SHAPES = ((576, 1536), (1536, 576), (576, 49_152), (2048, 8192))
ROWS = (1, 8, 16, 256)
MOST_OUTPUTS = 8 << 20  # of a product that is timed


def rounded(params: Any) -> Any:
    return jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), params)


def quality(loaded: Any, changed: dict[str, Any], windows: list[list[int]]) -> dict[str, Quality]:
    """Of each changed set of parameters, one window after the other: a window's logits are 50 MB."""
    runtime = Runtime("float32", scan=True)
    logits = jax.jit(lambda params, batch: models.logits(params, loaded.cfg, batch, runtime)[0][0])
    found: dict[str, list[Tokens]] = {name: [] for name in changed}
    for i, window in enumerate(windows):
        batch, targets = Batch(np.array([window[:-1]], np.int32)), np.array(window[1:])
        reference = logits(loaded.params, batch)
        for name, params in changed.items():
            found[name].append(jax.device_get(compare(reference, logits(params, batch), targets)))
        print(f"window {i + 1} of {len(windows)}", file=sys.stderr)
    return {
        name: summary(Tokens(*map(np.concatenate, zip(*some, strict=True)))) for name, some in found.items()
    }


def milliseconds(f: Any, *args: Any, runs: int = 9) -> list[float]:
    f = jax.jit(f)
    jax.block_until_ready(f(*args))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        times.append(1e3 * (time.perf_counter() - start))
    return times


def speeds(methods: list[str]) -> list[results.Row]:
    rng, rows = np.random.default_rng(0), []
    for k, m in SHAPES:
        w = jnp.asarray(rng.normal(size=(k, m)), jnp.float32)
        leaves = {method: METHODS[method].of(w.T, (k, m)) for method in methods}
        for n in ROWS:
            if n * m > MOST_OUTPUTS:
                continue
            x = jnp.asarray(rng.normal(size=(n, k)), jnp.float32)
            plain = milliseconds(product, x, w)
            for method, leaf in leaves.items():
                ours = milliseconds(lambda leaf, x: leaf.product(x), leaf, x)
                rows.append(
                    results.row(
                        f"{k}x{m} rows {n}", "product", "ms", method, statistics.median(ours), peer_name="float32",
                        peer=statistics.median(plain), better="lower", runs=len(ours),
                    )
                )  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=16, help=f"of {LENGTH} tokens")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--dry", action="store_true", help="write no results")
    args = parser.parse_args()
    methods = args.methods.split(",")

    loaded = min_llm.load(MODEL)
    tokens = loaded.prompt(args.text.read_text()[: 8 * LENGTH * args.windows])
    windows = [tokens[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(args.windows)]
    spec = models.spec(loaded.cfg)
    changed = {"bfloat16": rounded(loaded.params)}
    changed |= {method: quantize(loaded.params, spec, method) for method in methods}
    rows = [
        results.row(
            f"smollm2-135m {name}", metric, unit, name, getattr(found, metric), tokens=LENGTH * args.windows,
            spread=[found.ratio - found.ratio_error, found.ratio + found.ratio_error] if metric == "ratio" else None,
            about=f"perplexity {found.perplexity:.3f}, of the reference {found.reference_perplexity:.3f}",
        )
        for name, found in quality(loaded, changed, windows).items()
        for metric, unit in METRICS.items()
    ]  # fmt: skip
    rows += speeds(methods)
    for row in rows:
        spread = "" if row["spread"] is None else " ({:.4f} to {:.4f})".format(*row["spread"])
        beside = "" if row["ratio"] is None else f", {row['ratio']:.2f} times as fast as float32"
        print(
            f"{row['case']} {row['dtype']} {row['metric']}: {row['ours']:.5g} {row['unit']}{spread}{beside}"
        )
    if not args.dry:
        results.write("quant", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
