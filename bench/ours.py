"""Our side of the training benchmark: a child process that makes the library's own training steps when told to.

What is timed is what min_llm.train.loop does: the batch comes from the loader through the prefetcher, the jitted
step donates its state, and the loss of step n is read while step n + 1 runs.
"""

import time
from typing import Any

from peers.memory import peak
from peers.pipe import serve

_run: dict[str, Any] = {}


def versions() -> dict[str, str]:
    from bench.results import own_versions

    return own_versions()


def imports() -> dict[str, Any]:
    """Import the library and start JAX's backend; the peak memory then, in bytes."""
    from min_llm import platform

    platform.run_in_turn()
    import jax

    import min_llm.train.loop  # noqa: F401
    from min_llm.kernels import cpu

    cpu.keep_blocks()
    jax.devices()
    return {"peak": peak()}


def measured() -> dict[str, float]:
    """The machine's peaks as the library measures them: flops_float32, flops_bfloat16 (FLOP/s), bytes (B/s)."""
    from min_llm.kernels import peaks

    return peaks.measure()


def start(
    model: dict[str, Any],
    runtime: dict[str, Any],
    micro_batches: int,
    batch: dict[str, Any],
    optimizer: dict[str, float],
    seed: int,
) -> dict[str, Any]:
    """Build the model and make the first step, compilation included, without a compilation cache.

    `batch` is {tokens [N], rows, length}; `optimizer` {learning_rate, betas, eps, weight_decay, clip}. Returns the
    seconds of building and of the first step, the loss, the parameter count, and the FLOPs of a token with their
    formula.
    """
    import jax

    from min_llm import models
    from min_llm.data import loader, tokenfile
    from min_llm.nn.runtime import RuntimeConfig, resolve
    from min_llm.plan.flops import flops_per_token
    from min_llm.spec import count
    from min_llm.train import optim, step
    from min_llm.train.config import OptimConfig

    began = time.perf_counter()
    cfg = models.ModelConfig.from_mapping(model, "model")
    spec = models.spec(cfg)
    file = tokenfile.join([batch["tokens"]], cfg.vocab_size)
    facts = resolve(RuntimeConfig(**runtime), cfg.n_layers)  # type: ignore[attr-defined]
    settings = OptimConfig(
        lr=optimizer["learning_rate"],
        schedule="constant",
        warmup=0,
        beta1=optimizer["betas"][0],  # type: ignore[index]
        beta2=optimizer["betas"][1],  # type: ignore[index]
        eps=optimizer["eps"],
        weight_decay=optimizer["weight_decay"],
        clip=optimizer["clip"],
    )
    tx = optim.optimizer(settings, spec, steps=1)
    state = step.init_state(models.init(cfg, seed), tx)

    def make_batch(n: int) -> Any:
        made = loader.batch(
            file, seed=seed, step=n, rows=batch["rows"], seq_len=batch["length"], order="random"
        )
        return jax.block_until_ready(jax.device_put(made))

    make = step.make_step(step.language_model_loss(cfg, facts), tx, micro_batches)
    _run["batches"] = loader.Prefetcher(make_batch, 0)
    _run["state"] = jax.block_until_ready(state)
    built = time.perf_counter()
    _run["step"] = step.compile_step(make, state, make_batch(0))
    loss = _steps(1)
    flops = flops_per_token(cfg, batch["length"])
    return {
        "build_seconds": built - began,
        "first_step_seconds": time.perf_counter() - built,
        "loss": loss,
        "parameters": count(spec),
        "flops_per_token": flops.training,
        "formula": flops.formula,
        "runtime": {
            "dtype": facts.dtype,
            "attention": facts.attention,
            "scan": facts.scan,
            "remat": facts.remat,
        },
    }


def _steps(n: int) -> float:
    """n steps as the loop makes them; the last loss."""
    loss, pending = float("nan"), None
    for _ in range(n):
        batch, _ = _run["batches"].next()
        _run["state"], out = _run["step"](_run["state"], batch)
        if pending is not None:
            loss = float(pending["loss"])
        pending = out
    import jax

    jax.block_until_ready(_run["state"])
    return float(pending["loss"]) if pending is not None else loss


def steps(n: int) -> dict[str, Any]:
    """n more steps: the seconds of all together, the last loss, and the peak memory in bytes."""
    began = time.perf_counter()
    loss = _steps(n)
    return {"seconds": time.perf_counter() - began, "loss": loss, "peak": peak()}


if __name__ == "__main__":
    serve({f.__name__: f for f in (versions, imports, measured, start, steps)})
