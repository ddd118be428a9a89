"""The serving engine on a GPU, a part of bench.gpu: first against plain forms, then how fast it generates."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from bench import models as vocabularies
from bench import results

BATCHES = (1, 16, 64)
PROMPT, ANSWER = 64, 128  # tokens
LONG = 1024  # tokens of the prompt whose first answer is timed


def loaded(cfg: Any, dtype: str) -> Any:
    """A random model of this shape, ready to use."""
    from min_llm import models
    from min_llm.infer.load import Loaded
    from min_llm.nn.runtime import RuntimeConfig, resolve

    runtime = resolve(RuntimeConfig(dtype=dtype), cfg.n_layers)  # type: ignore[arg-type]
    return Loaded("random", cfg, models.init(cfg, 0), runtime, vocabularies.every_pair(cfg.vocab_size))


def answers(engine: Any, prompts: np.ndarray, n: int) -> tuple[list[list[int]], float, float]:
    """n greedy tokens behind each prompt; seconds until each has its first, and until all have their last."""
    from min_llm.infer.request import Sampling

    began, first = time.perf_counter(), 0.0
    sampling = Sampling(temperature=0.0, max_tokens=n, ignore_end=True)
    made: dict[int, list[int]] = {engine.add(prompt.tolist(), sampling): [] for prompt in prompts}
    while engine.busy:
        for output in engine.step():
            made[output.request] += [token.id for token in output.tokens]
        if not first and all(made.values()):
            first = time.perf_counter() - began
    return list(made.values()), first, time.perf_counter() - began


def correct(cfg: Any) -> list[results.Row]:
    """In float32 with full-precision products: paged attention against the plain one, the products of every kind of
    quantization against NumPy, and the engine's greedy tokens against those of the sampler without pages."""
    import jax

    with jax.default_matmul_precision("highest"):
        return [*_paged(), *_products(), *_tokens(cfg)]


def _paged() -> list[results.Row]:
    import jax
    import jax.numpy as jnp

    from min_llm.kernels.attention import paged
    from min_llm.quant.rounding import int8_rows

    rng, rows = np.random.default_rng(0), []
    layers, pages, size, groups, depth, singles = 2, 40, 16, 2, 64, 8
    q = jnp.asarray(rng.normal(size=(singles + 2 * paged.BLOCK, 6, depth)), jnp.float32)
    keys, values = (
        jnp.asarray(rng.normal(size=(layers, pages, size, groups, depth)), jnp.float32) for _ in "kv"
    )
    tables = jnp.asarray(rng.permutation(pages).reshape(4, 10), jnp.int32)
    blocks = [np.full(paged.BLOCK, row) for row in (1, 3)]
    row = jnp.asarray(np.concatenate([np.arange(singles) % 4, *blocks]), jnp.int32)
    places = [np.arange(start, start + paged.BLOCK) for start in (90, 0)]
    index = jnp.asarray(np.concatenate([rng.integers(0, 160, singles), *places]), jnp.int32)
    for name, change in (("float32", lambda x: x), ("int8", lambda x: _int8(int8_rows(x)))):
        pool = (change(keys), change(values))
        for window in (None, 50):
            run = jax.jit(paged.xla, static_argnames="singles")
            got = run(q, *pool, 1, tables, row, index, window, singles=singles)
            want = paged.reference(q, *pool, 1, tables, row, index, window, singles)
            error = float(jnp.abs(got - want).max() / jnp.abs(want).max())
            case = f"engine paged attention {name}{'' if window is None else ' window'}"
            rows.append(results.row(case, "largest_error", "share of largest", "float32", error))
    return rows


def _int8(parts: tuple[Any, Any]) -> Any:
    from min_llm.kernels.attention.paged import Int8

    return Int8(parts[0], parts[1][..., 0])


def _products() -> list[results.Row]:
    import jax
    import jax.numpy as jnp

    from min_llm.quant.leaves import METHODS

    rng, rows = np.random.default_rng(1), []
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((16, 256), (192, 256)))
    for method, kind in METHODS.items():
        leaf = kind.of(w, (256, 192))
        got = np.asarray(jax.jit(lambda x, leaf=leaf: leaf.product(x))(x), np.float64)
        want = np.asarray(x, np.float64) @ np.asarray(leaf.matrix(), np.float64)[:, :256].T
        # activations are rounded too where the method says so, to 8 bits or 3 after the point
        error = float(np.abs(got - want).max() / np.abs(want).max())
        rows.append(
            results.row(f"engine product {method}", "largest_error", "share of largest", "float32", error)
        )
    return rows


def _tokens(cfg: Any) -> list[results.Row]:
    from min_llm.infer.engine import Engine, EngineConfig
    from min_llm.infer.request import Sampling
    from min_llm.infer.sample import generate

    model = loaded(cfg, "float32")
    prompts = np.random.default_rng(2).integers(0, cfg.vocab_size, (4, 40))
    engine = Engine(model, EngineConfig(max_sequences=4, chunk=64, model_len=128, cache_tokens=512))
    paged, *_ = answers(engine, prompts, 16)
    plain = generate(model.params, cfg, model.runtime, prompts.tolist(), 16, Sampling(0.0))
    same = np.mean([a == b for row in zip(paged, plain, strict=True) for a, b in zip(*row, strict=True)])
    return [results.row("engine greedy tokens", "same_as_without_pages", "share", "float32", float(same))]


def speed(name: str, cfg: Any, weights: int, bandwidth: float, smoke: bool) -> list[results.Row]:
    """Tokens/s of answers at several batches, the share of the measured bandwidth (bytes/s) that reading the weights
    (bytes) takes, and the time to the first token behind a long prompt; bfloat16."""
    from min_llm.infer.engine import Engine, EngineConfig

    batches, answer, long = ((1, 4), 16, 48) if smoke else (BATCHES, ANSWER, LONG)
    model, rows, times = loaded(cfg, "bfloat16"), [], 1 if smoke else 3
    length, rng = long + answer, np.random.default_rng(3)
    for batch in batches:
        config = EngineConfig(
            max_sequences=batch, model_len=length, cache_tokens=batch * length, prefix_cache=False
        )
        engine = Engine(model, config)
        draw = lambda n, batch=batch: rng.integers(0, cfg.vocab_size, (batch, n))
        answers(engine, draw(PROMPT if not smoke else 16), 4)
        rates = []
        for _ in range(times):
            _, first, last = answers(engine, draw(PROMPT if not smoke else 16), answer)
            rates.append(batch * (answer - 1) / (last - first))
        rate, case = statistics.median(rates), f"engine {name} batch {batch}"
        rows.append(results.row(case, "tokens_per_second", "tok/s", "bfloat16", rate, runs=times))
        share = rate / batch * weights / bandwidth
        rows.append(results.row(case, "bandwidth_share", "", "bfloat16", share, runs=times))
        if batch == 1:
            firsts = [answers(engine, draw(long), 1)[1] for _ in range(times)]
            case = f"engine {name} prompt {long}"
            rows.append(
                results.row(case, "first_token", "s", "bfloat16", statistics.median(firsts), runs=times)
            )
    return rows
