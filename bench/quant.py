"""What each way of quantizing costs a model, and what it brings on this machine.

    python -m bench.quant [MODEL...] [--windows N] [--methods w8a8,int8,int4,fp8] [--into FOLDER] [--dry]

MODEL is a name, SmolLM2-135M-Instruct if none is given, or a run folder; `make demo ARGS=runtime.dtype=float32` trains
one on Shakespeare in some minutes. Quality is min_llm.quant.quality on windows of 256 tokens, of tinyshakespeare or of
the text that the run kept for validation, against the model in float32. Weights rounded to bfloat16 are the floor, and
groups of two bits through the rounding of int4 the ceiling: a measure that cannot tell them apart sees nothing.
SmolLM2's packaged weights are a Q4_1 file: they lie on a grid of 4 bits already, which int8 stays close to, while int4,
which has no offsets, misses it by up to half a unit. A run's weights lie on none. "int8 cache" is the model itself with
keys and values as the engine's kv_dtype int8 keeps them. Speed is of one product in XLA beside float32, at as many rows
as the engine has.
"""

import argparse
import dataclasses
import json
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
from min_llm import models, spec
from min_llm.data.prepare import prepare
from min_llm.infer import paged
from min_llm.infer.load import Loaded
from min_llm.infer.paged import PagedCache
from min_llm.kernels.product import product
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.quant.leaves import METHODS
from min_llm.quant.quality import Quality, Tokens, compare, summary
from min_llm.quant.quantize import quantize
from min_llm.train.run import load_config

SMOLLM2 = "smollm2-135m-instruct"
TEXT = results.ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
LENGTH = 256
CEILING, CACHE = "2 bits", "int8 cache"
METRICS = {
    "ratio": "changed / reference", "mean_divergence": "nats", "median_divergence": "nats", "divergence_99": "nats",
    "same_top": "share of tokens", "rms_delta_p": "probability",
}  # fmt: skip
SHAPES = ((576, 1536), (1536, 576), (576, 49_152), (2048, 8192))
ROWS = (1, 8, 16, 256)
MOST_OUTPUTS = 8 << 20  # of a product that is timed


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and what it is measured on. name: that of its cases. facts: fields of its rows."""

    name: str
    loaded: Loaded
    windows: list[list[int]]
    facts: dict[str, Any]


def packaged(model: str, n: int) -> Subject:
    """A model by its name, on the beginning of tinyshakespeare."""
    loaded = min_llm.load(model)
    tokens = loaded.prompt(TEXT.read_text()[: 8 * LENGTH * n])
    windows = [tokens[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(n)]
    return Subject(model.removesuffix("-instruct"), loaded, windows, {"text": TEXT.name})


def trained(folder: Path, n: int) -> Subject:
    """A run's model, on windows from all over the text that it kept for validation."""
    cfg = load_config(folder)
    loaded = min_llm.load(folder)
    tokens = prepare(cfg.data).val.plain
    starts = np.linspace(0, len(tokens) - LENGTH - 1, n).astype(int)
    windows = [tokens[start : start + LENGTH + 1].tolist() for start in starts]
    first = json.loads((folder / "environment.json").read_text())["starts"][0]
    millions = spec.count(models.spec(cfg.model)) / 1e6
    return Subject(
        f"{cfg.name} ({millions:.1f}M, trained here)", loaded, windows,
        {"text": "validation", "seed": cfg.seed, "trained_by": first["command"], "trained_at": first["commit"]},
    )  # fmt: skip


def changed(loaded: Loaded, methods: list[str]) -> dict[str, Any]:
    """Parameters by what was done to them, from floor to ceiling."""
    described = models.spec(loaded.cfg)
    made = {"bfloat16": jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), loaded.params)}
    made |= {method: quantize(loaded.params, described, method) for method in methods}
    return made | {CEILING: quantize(loaded.params, described, "int4", bits=2)}


def empty_cache(loaded: Loaded, tokens: int) -> PagedCache:
    """For one sequence, whose length is a multiple of 16, in int8."""
    keys, values = paged.pool(loaded.cfg, 1, tokens, "int8")
    index = jnp.arange(tokens)
    return PagedCache(keys, values, jnp.ones((1, 1), int), jnp.zeros_like(index), index, singles=0)


def quality(loaded: Loaded, changed: dict[str, Any], windows: list[list[int]]) -> dict[str, Quality]:
    """Of each changed set of parameters, and of the cache in int8, one window after the other: a window's logits are
    50 MB."""
    runtime = Runtime("float32", scan=True)

    @jax.jit
    def logits(params: Any, batch: Batch, cache: PagedCache | None = None) -> Any:
        return models.logits(params, loaded.cfg, batch, runtime, cache)[0][0]

    cases: dict[str, tuple] = {name: (params, None) for name, params in changed.items()}
    cases[CACHE] = (loaded.params, empty_cache(loaded, len(windows[0]) - 1))
    found: dict[str, list[Tokens]] = {name: [] for name in cases}
    for i, window in enumerate(windows):
        batch, targets = Batch(np.array([window[:-1]], np.int32)), np.array(window[1:])
        reference = logits(loaded.params, batch)
        for name, (params, cache) in cases.items():
            found[name].append(jax.device_get(compare(reference, logits(params, batch, cache), targets)))
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


def rows_of(subject: Subject, found: dict[str, Quality]) -> list[results.Row]:
    """A row a change and metric."""
    return [
        results.row(
            f"{subject.name} {name}", metric, unit, name, getattr(lost, metric), **subject.facts,
            tokens=sum(len(window) - 1 for window in subject.windows),
            spread=[lost.ratio - lost.ratio_error, lost.ratio + lost.ratio_error] if metric == "ratio" else None,
            about=f"perplexity {lost.perplexity:.3f}, of the reference {lost.reference_perplexity:.3f}",
        )
        for name, lost in found.items()
        for metric, unit in METRICS.items()
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", default=[SMOLLM2])
    parser.add_argument("--windows", type=int, default=32, help=f"of {LENGTH} tokens")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--into", type=Path, default=results.RESULTS, help="folder of the result file")
    parser.add_argument("--dry", action="store_true", help="write no results")
    args = parser.parse_args()
    methods = args.methods.split(",")

    rows = []
    for model in args.models:
        folder = (Path(model) / "config.yaml").exists()
        subject = trained(Path(model), args.windows) if folder else packaged(model, args.windows)
        found = quality(subject.loaded, changed(subject.loaded, methods), subject.windows)
        rows += rows_of(subject, found)
    rows += speeds(methods)
    for row in rows:
        spread = "" if row["spread"] is None else " ({:.4f} to {:.4f})".format(*row["spread"])
        beside = "" if row["ratio"] is None else f", {row['ratio']:.2f} times as fast as float32"
        print(
            f"{row['case']} {row['dtype']} {row['metric']}: {row['ours']:.5g} {row['unit']}{spread}{beside}"
        )
    if not args.dry:
        results.write("quant", rows, into=args.into)
    return 0


if __name__ == "__main__":
    sys.exit(main())
