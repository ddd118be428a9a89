"""What making a batch costs beside the training step it is for: rows of bench.data.

Shape: a Llama of 1.05 M parameters (mini-1m, 2,048 tokens of vocabulary), 16 rows of 256 tokens. Batches are made as a
run makes them: cut from one document; from documents of Wikipedia's lengths, told apart by segments, positions and
weights; and out of three such files by a mix. "batch" is the time of one by itself; "wait" is what the training loop
waits for a batch that its prefetcher makes while a step runs. Both come as shares of the step, too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from bench.results import Row, row
from min_llm import models, platform
from min_llm.data import loader
from min_llm.data.mix import Phase
from min_llm.data.mixture import Mixture
from min_llm.data.tokenfile import TokenFile, join
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import RuntimeConfig, resolve
from min_llm.spec import count
from min_llm.train import step as step_lib
from min_llm.train.config import OptimConfig
from min_llm.train.optim import optimizer

VOCABULARY, ROWS, LENGTH = 2048, 16, 256
TOKENS = 1 << 22
SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}
MADE = 100  # batches of a round
STEPS = 30  # steps of a round
TARGET = 0.01  # of a step


def tokens(seed: int, documents: bool) -> TokenFile:
    """Random tokens: one document, or documents of 20 to 250 tokens and an EOS each."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(20, 250, TOKENS // 135) if documents else [TOKENS]
    return join([draw.integers(1, VOCABULARY, n) for n in lengths], VOCABULARY, eos=0 if documents else None)


def kinds() -> dict[str, Callable[[int], Batch]]:
    """name -> the batch of a step."""
    plain, files = tokens(0, False), {name: tokens(k, True) for k, name in enumerate(SHARES)}
    mixture = Mixture(files, [Phase(SHARES)], seed=0, seq_len=LENGTH)
    cut = lambda file: lambda step: loader.batch(file, seed=0, step=step, rows=ROWS, seq_len=LENGTH)
    return {
        "batch, plain": cut(plain),
        "batch, documents": cut(files["a"]),
        "batch, mix of three": lambda step: mixture.batch(step, ROWS),
    }


class Training:
    """The training step of the model, in the dtype that is fastest here."""

    def __init__(self, like: Batch) -> None:
        cfg = models.ModelConfig.from_mapping({"preset": "mini-1m", "vocab_size": VOCABULARY}, "model")
        self.runtime = resolve(RuntimeConfig(), cfg.n_layers)  # type: ignore[attr-defined]
        spec = models.spec(cfg)
        self.parameters = count(spec)
        tx = optimizer(OptimConfig(), spec, steps=10**6)
        self.state = step_lib.init_state(models.init(cfg, 0), tx)
        made = step_lib.make_step(step_lib.language_model_loss(cfg, self.runtime), tx)
        self.step = step_lib.compile_step(made, self.state, like)

    def run(self, make: Callable[[int], Batch], steps: int) -> tuple[float, float]:
        """Seconds of a step and, of them, seconds waited for its batch, as train/loop.py takes them: the mean of so
        many, after two that fill the queue."""
        ready = lambda step: jax.block_until_ready(jax.device_put(make(step)))
        waits, pending, began = 0.0, None, 0.0
        with loader.Prefetcher(ready, 0) as batches:
            for number in range(steps + 2):
                if number == 2:
                    began = time.perf_counter()
                batch, waited = batches.next()
                waits += waited if number >= 2 else 0.0
                self.state, out = self.step(self.state, batch)
                if pending is not None:
                    float(pending["loss"])
                pending = out
            jax.block_until_ready(self.state)
        return (time.perf_counter() - began) / steps, waits / steps


def seconds(make: Callable[[int], Batch], batches: int) -> float:
    """The median of so many batches, after one that draws the epoch's order."""
    make(0)
    taken = []
    for step in range(1, batches + 1):
        began = time.perf_counter()
        make(step)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def rows(rounds: int, made: int = MADE, steps: int = STEPS) -> list[Row]:
    """Medians over the rounds, in which the kinds of batches take turns."""
    platform.run_in_turn()
    by_kind = kinds()
    trainings = {name: Training(make(0)) for name, make in by_kind.items()}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in by_kind}
    for _ in range(rounds):
        for name, make in by_kind.items():
            found[name].append((seconds(make, made), *trainings[name].run(make, steps)))
    return [made for name, runs in found.items() for made in _rows(name, runs, trainings[name])]


def _rows(name: str, runs: list[tuple[float, float, float]], training: Training) -> list[Row]:
    about = {"parameters": training.parameters, "batch_size": ROWS, "seq_len": LENGTH, "runs": len(runs)}
    values: dict[tuple[str, str], list[float]] = {
        ("batch_seconds", "s"): [raw for raw, _, _ in runs],
        ("step_seconds", "s"): [step for _, step, _ in runs],
        ("batch_of_step", "share"): [raw / step for raw, step, _ in runs],
        ("wait_of_step", "share"): [wait / step for _, step, wait in runs],
    }
    return [
        row(
            name, metric, unit, training.runtime.dtype, statistics.median(each),
            spread=[min(each), max(each)], **about, **({"target": TARGET} if unit == "share" else {}),
        )
        for (metric, unit), each in values.items()
    ]  # fmt: skip
