"""Everything that is asked of a GPU, in one command: correctness first, then speed.

    python -m bench.gpu [--parts masks,correct,mfu,torch,decode,engine] [--smoke]

    masks     the attention that training takes on this machine against the plain one, under every kind of mask
    correct   every attention implementation and both models against the NumPy oracles, on the card
    mfu       training tokens/s and MFU of 124M and 1B Llama shapes in bfloat16, packed documents
    torch     the same shapes in PyTorch with torch.compile on the same card, where torch sees it
    decode    tokens/s of generation and its share of the memory bandwidth
    engine    the serving engine: its attention, products and tokens against plain forms, then its speed

Rows go to bench/results/gpu.<card>.json. Each part is a process of its own, so that JAX and PyTorch never share the
card's memory; `torch` sets its figures beside those that `mfu` wrote before. --smoke runs tiny shapes on whatever
device there is and writes nothing.
nanoGPT's GPU setting over seeds is `python -m apps.nanogpt.run --configs gpt2-gpu llama-gpu`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench import results

PARTS = ("masks", "correct", "mfu", "torch", "decode", "engine")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Llama and its batch: rows x length tokens, packed from documents of about a third of a row."""

    name: str
    model: dict[str, Any]
    rows: int
    length: int


def shapes(smoke: bool) -> list[Shape]:
    if smoke:
        tiny = {"n_layers": 2, "dim": 64, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 320}
        return [Shape("tiny", tiny, 2, 64)]
    small = {"n_layers": 12, "dim": 768, "n_heads": 12, "n_kv_heads": 4, "vocab_size": 32_000}
    large = {"n_layers": 16, "dim": 2048, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 32_000}
    return [
        Shape("124M", {**small, "hidden_dim": 2560}, 32, 1024),
        Shape("1B", {**large, "hidden_dim": 8192, "tie_embeddings": True}, 8, 2048),
    ]


def config(shape: Shape) -> Any:
    from min_llm.models import ModelConfig

    return ModelConfig.from_mapping(
        {"family": "llama", "max_seq_len": 4 * shape.length, **shape.model}, "model"
    )


def packed(shape: Shape, seed: int = 0) -> Any:
    """A batch of random tokens with documents of random lengths."""
    import jax.numpy as jnp

    from min_llm.nn.batch import Batch

    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, shape.model["vocab_size"], (shape.rows, shape.length + 1), dtype=np.int32)
    starts = rng.random((shape.rows, shape.length)) < 3 / shape.length
    starts[:, 0] = True
    segments = np.cumsum(starts, axis=1, dtype=np.int32)
    index = np.arange(shape.length, dtype=np.int32)
    positions = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1).astype(np.int32)
    fields: Any = dict(positions=positions, segment_ids=segments)
    return Batch(*(jnp.asarray(t) for t in (tokens[:, :-1], tokens[:, 1:])), **fields)


# Correctness


def masks(smoke: bool) -> list[results.Row]:
    """Largest error of output and gradients in bfloat16 over the largest entry, against the reference in float32."""
    import jax
    import jax.numpy as jnp

    from min_llm.kernels import attention
    from min_llm.kernels.mask import Mask

    name, (b, s, h, g, d) = attention.fastest("bfloat16"), (2, 160, 4, 2, 64)
    index = jnp.broadcast_to(jnp.arange(s), (b, s))
    segments = jnp.stack([1 + index[0] // 50, jnp.where(index[0] < 100, 1, 0)])
    late = index[:, : s // 2] + s // 2
    cases = {
        "causal": Mask(),
        "full": Mask(causal=False),
        "window": Mask(window=30),
        "packed": Mask(q_segments=segments, kv_segments=segments),
        "packed, window": Mask(q_segments=segments, kv_segments=segments, window=30),
        "prefix": Mask(prefix=jnp.array([70, 0])),
        "given order": Mask(q_index=index[:, ::-1], kv_index=index[:, ::-1]),
        "later half": Mask(q_index=late, kv_index=index),
        "cross, packed": Mask(causal=False, q_segments=segments[:, ::2], kv_segments=segments),
    }
    rng = np.random.default_rng(0)
    rows, kept = [], []
    for case, mask in cases.items():
        queries = s // 2 if case in ("later half", "cross, packed") else s
        sizes = ((b, queries, h, d), (b, s, g, d), (b, s, g, d), (b, queries, h, d))
        given = [jnp.asarray(rng.normal(size=size), jnp.bfloat16) for size in sizes]

        def run(kind: str, dtype: str, given: list = given, mask: Any = mask) -> list[np.ndarray]:
            def both(q: Any, k: Any, v: Any, d_out: Any) -> tuple:
                out, pull = jax.vjp(lambda q, k, v: attention.get(kind)(q, k, v, mask), q, k, v)
                return out, *pull(d_out)

            kept.append(jax.jit(both))  # jaxlib 0.12 may abort where a CPU program is freed early
            return [np.asarray(x, np.float32) for x in kept[-1](*(x.astype(dtype) for x in given))]

        with jax.default_matmul_precision("highest"):
            exact = run("reference", "float32")
        pairs = zip(run(name, "bfloat16"), exact, strict=True)
        worst = max(float(np.abs(got - want).max() / np.abs(want).max()) for got, want in pairs)
        rows.append(
            results.row(f"{name}: {case}", "reference_difference", "", "bfloat16", worst, better="lower")
        )
        if not worst <= 0.02:
            raise SystemExit(f"{name} attention under {case!r} differs from the reference by {worst:.2g}")
    return rows


def correct(smoke: bool) -> list[results.Row]:
    """Largest differences of loss and gradients to the NumPy oracles, packed documents: in float32 with full-precision
    products as they are, in bfloat16 over the gradient's largest entry."""
    import jax

    from min_llm import models
    from min_llm.kernels.attention import fastest
    from min_llm.nn.runtime import Runtime
    from min_llm.reference import gpt2, llama

    rows, kept = [], []
    base: dict[str, Any] = {"n_layers": 2, "dim": 128, "n_heads": 4, "vocab_size": 97, "max_seq_len": 200}
    for family, oracle, extra in (("llama", llama, {"n_kv_heads": 2}), ("gpt2", gpt2, {})):
        cfg = models.ModelConfig.from_mapping({"family": family, **base, **extra}, "model")
        params = models.init(cfg, 0)
        batch = packed(Shape("oracle", {"vocab_size": 97}, 2, 150))
        want_loss, want = oracle.loss_and_grads(jax.tree.map(np.asarray, params), cfg, batch)
        for dtype, limit in (("float32", 1e-4), ("bfloat16", 5e-2)):
            jax.config.update("jax_default_matmul_precision", "highest" if dtype == "float32" else None)
            for name in sorted({"reference", "xla", "blockwise", fastest(dtype)}):
                runtime = Runtime(dtype, attention=name)

                def loss(params: Any, runtime: Any = runtime, cfg: Any = cfg, batch: Any = batch) -> Any:
                    return models.loss_sum(params, cfg, batch, runtime) / batch.tokens.size

                # jaxlib 0.12 may abort where a CPU program is freed early
                kept.append(jax.jit(jax.value_and_grad(loss)))
                got_loss, got = kept[-1](params)
                pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
                worst = max(float(np.abs(np.asarray(g) - w).max()) for g, w in pairs)
                if dtype == "bfloat16":
                    worst /= max(float(np.abs(w).max()) for _, w in pairs)
                worst = max(worst, abs(float(got_loss) - float(want_loss)))
                rows.append(
                    results.row(f"{family} {name}", "oracle_difference", "", dtype, worst, better="lower")
                )
                if not worst <= limit:
                    raise SystemExit(
                        f"{family} with {name} attention in {dtype} is {worst:.2g} from the oracle"
                    )
    jax.config.update("jax_default_matmul_precision", None)
    return rows


# Training


def timed(step: Callable[[], Any], n: int = 20, warm: int = 3) -> list[float]:
    """Seconds of each of n calls; `step` returns when its work is done."""
    seconds = []
    for i in range(warm + n):
        began = time.perf_counter()
        step()
        if i >= warm:
            seconds.append(time.perf_counter() - began)
    return seconds


def mfu(smoke: bool) -> list[results.Row]:
    import jax

    from min_llm import models, platform
    from min_llm.kernels import peaks
    from min_llm.nn.runtime import RuntimeConfig, resolve
    from min_llm.plan import flops, hardware
    from min_llm.train import optim, step
    from min_llm.train.config import OptimConfig

    rows = []
    sheet = hardware.datasheet(platform.device_kind())
    peak = peaks.measure()["flops_bfloat16"]
    for shape in shapes(smoke):
        cfg = config(shape)
        runtime = resolve(RuntimeConfig(dtype="bfloat16"), cfg.n_layers)
        optimizer = optim.optimizer(OptimConfig(), models.spec(cfg), 1000)
        run = step.jit_step(step.make_step(step.language_model_loss(cfg, runtime), optimizer))
        box = [step.init_state(models.init(cfg, 0), optimizer)]
        batch = jax.device_put(packed(shape))

        def one(run: Any = run, box: list = box, batch: Any = batch) -> None:
            box[0], out = run(box[0], batch)
            jax.block_until_ready((box[0], out))

        seconds = timed(one, 3 if smoke else 20)
        count = flops.flops_per_token(cfg, shape.length)
        tokens = shape.rows * shape.length
        rate = tokens / statistics.median(seconds)
        spread = [tokens / max(seconds), tokens / min(seconds)]
        common: dict[str, Any] = {"runs": len(seconds), "seed": 0, "formula": count.formula}
        rows.append(
            results.row(
                f"train {shape.name}", "tokens_per_second", "tok/s", "bfloat16", rate, spread=spread, **common
            )
        )
        for kind, top in (("measured", peak), ("datasheet", _bf16(sheet))):
            if top:
                value = flops.mfu(rate, count, top)
                rows.append(
                    results.row(
                        f"train {shape.name}", f"mfu_{kind}", "", "bfloat16", value, peak=top, **common
                    )
                )
    return rows


def _bf16(sheet: Any) -> float | None:
    return None if sheet is None else sheet.flops_bfloat16


TORCH = """
import json, sys
from peers.gpu import measure
print(json.dumps(measure(json.loads(sys.argv[1]))))
"""


def torch(smoke: bool) -> list[results.Row]:
    """The same shapes in PyTorch, on a card that JAX does not hold. Its attention is plainly causal, which favours it:
    ours keeps documents apart."""
    rows = []
    for shape in shapes(smoke):
        request = {"model": dataclasses.asdict(config(shape)), "rows": shape.rows, "length": shape.length}
        request["n"], request["on_cpu"] = 3 if smoke else 20, smoke
        done = subprocess.run(
            [sys.executable, "-c", TORCH, json.dumps(request)],
            capture_output=True,
            text=True,
            cwd=results.ROOT,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            print(f"torch {shape.name}: not measured ({last})", file=sys.stderr)
            continue
        answer = json.loads(done.stdout.splitlines()[-1])
        seconds, tokens = answer["seconds"], shape.rows * shape.length
        case = f"train {shape.name}"
        before = [] if smoke else results.read("gpu", results.machine_name(answer["device"]))
        ours = [
            row["ours"]
            for row in before
            if (row["case"], row["metric"], row["commit"]) == (case, "tokens_per_second", results.commit())
            and row["peer_name"] is None
        ]
        rows.append(
            results.row(
                case,
                "tokens_per_second",
                "tok/s",
                "bfloat16",
                ours[0] if ours else None,
                peer_name="torch.compile",
                peer=tokens / statistics.median(seconds),
                runs=len(seconds),
                peer_spread=[tokens / max(seconds), tokens / min(seconds)],
                versions={**results.own_versions(), "peer_torch": answer["torch"]},
                machine=results.machine_name(answer["device"]),
            )
        )
    return rows


# Decoding


def decode(smoke: bool) -> list[results.Row]:
    """Greedy tokens/s at batch 1 and 16, and the share of the measured bandwidth that reading the weights takes."""
    from min_llm import models
    from min_llm.infer.request import Sampling
    from min_llm.infer.sample import generate
    from min_llm.kernels import peaks
    from min_llm.nn.runtime import RuntimeConfig, resolve
    from min_llm.plan import flops

    rows = []
    bandwidth = peaks.measure()["bytes"]
    for shape in shapes(smoke):
        cfg = config(shape)
        params = models.init(cfg, 0)
        runtime = resolve(RuntimeConfig(dtype="bfloat16"), cfg.n_layers)
        weights = 2 * flops.matmul_parameters(models.spec(cfg))
        n = 16 if smoke else 128
        for batch in (1, 16):
            prompts = [[1, 2, 3, 4]] * batch

            def one(arguments: tuple = (params, cfg, runtime, prompts, n, Sampling(0.0))) -> None:
                generate(*arguments)

            seconds = timed(one, 2 if smoke else 5, 1)
            rate = batch * n / statistics.median(seconds)
            case = f"decode {shape.name} batch {batch}"
            rows.append(results.row(case, "tokens_per_second", "tok/s", "bfloat16", rate, runs=len(seconds)))
            share = rate / batch * weights / bandwidth
            rows.append(results.row(case, "bandwidth_share", "", "bfloat16", share, runs=len(seconds)))
    return rows


def engine(smoke: bool) -> list[results.Row]:
    """bench/gpu_engine.py on every shape."""
    from bench import gpu_engine
    from min_llm import models
    from min_llm.kernels import peaks
    from min_llm.plan import flops

    rows = gpu_engine.correct(config(shapes(True)[0]))
    bandwidth = peaks.measure()["bytes"]
    for shape in shapes(smoke):
        cfg = config(shape)
        weights = 2 * flops.matmul_parameters(models.spec(cfg))
        rows += gpu_engine.speed(shape.name, cfg, weights, bandwidth, smoke)
    return rows


def card() -> str:
    """The card's name, or an exit where JAX sees none."""
    import jax

    import min_llm  # noqa: F401
    from min_llm import platform

    if jax.default_backend() == "cpu":
        sys.exit("JAX sees no GPU here, so there is nothing to measure; --smoke tries the script on a CPU.")
    return results.machine_name(platform.device_kind())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, any device, nothing written")
    options = parser.parse_args()
    parts = options.parts.split(",")
    for part in parts:
        if part not in PARTS:
            sys.exit(f"There is no part {part!r}; the parts are {', '.join(PARTS)}.")
    if len(parts) > 1:
        smoke = ["--smoke"] * options.smoke
        for part in parts:
            done = subprocess.run([sys.executable, "-m", "bench.gpu", "--parts", part, *smoke])
            if done.returncode:
                sys.exit(done.returncode)
        return
    machine = None if options.smoke or parts == ["torch"] else card()
    rows = globals()[parts[0]](options.smoke)
    for made in rows:
        value = made["ours"] if made["ours"] is not None else made["peer"]
        against = f"{made['peer_name']} {made['peer']:.5g}" if made["peer"] is not None else ""
        line = (
            f"{made['case']:24} {made['metric']:20} {value:14.5g} {made['unit']:6} {made['dtype']} {against}"
        )
        print(line.rstrip())
    if rows and not options.smoke:
        print(f"wrote {results.write('gpu', rows, machine=machine or rows[0]['machine'])}", flush=True)


if __name__ == "__main__":
    main()
