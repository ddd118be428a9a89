"""Our side of the generation benchmark: a child process whose engine continues prompts when it is told to."""

import time
from typing import Any

import numpy as np

from peers.memory import peak
from peers.pipe import serve

_engine: Any = None


def versions() -> dict[str, str]:
    from bench.results import own_versions

    return own_versions()


def load(path: str, runtime: dict[str, Any], rows: int, length: int) -> dict[str, Any]:
    """The engine on a file or folder, for `rows` texts of `length` tokens; the seconds it took, with compilation."""
    global _engine
    from min_llm import platform

    began = time.perf_counter()
    platform.use_compilation_cache()
    from min_llm.infer.engine import Engine, EngineConfig
    from min_llm.infer.load import load as read
    from min_llm.nn.runtime import RuntimeConfig

    settings = EngineConfig(
        max_sequences=rows, model_len=length, cache_tokens=rows * length, prefix_cache=False
    )
    _engine = Engine(read(path, runtime=RuntimeConfig(**runtime)), settings)
    return {"seconds": time.perf_counter() - began, "chunk": settings.chunk}


def generate(prompts: np.ndarray, n: int) -> dict[str, Any]:
    """n greedy tokens behind each row of prompts [B, S]: seconds [B, n] at which each was there, and of all."""
    from min_llm.infer.request import Sampling

    at = np.full((len(prompts), n), np.inf)
    done = np.zeros(len(prompts), int)
    began = time.perf_counter()
    sampling = Sampling(temperature=0.0, max_tokens=n, ignore_end=True, seed=0)
    row_of = {_engine.add(prompt.tolist(), sampling): row for row, prompt in enumerate(prompts)}
    while _engine.busy:
        outputs = _engine.step()
        now = time.perf_counter() - began
        for output in outputs:
            row, count = row_of[output.request], len(output.tokens)
            at[row, done[row] : done[row] + count] = now
            done[row] += count
    return {"seconds": time.perf_counter() - began, "at": at, "peak": peak()}


if __name__ == "__main__":
    serve({f.__name__: f for f in (versions, load, generate)})
